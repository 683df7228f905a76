# METADATA
# scope: package
# title: May this order run now?
# description: |
#   Asked before every order, after signatures, agreement and grants were checked (negotiation.md section 5). What was
#   agreed yesterday stops today when the organisation changes its settings. Input: `schemas/dispatch.json`.
package comity.dispatch

# METADATA
# scope: document
# title: Decision and reasons
# entrypoint: true
default result := {
	"decision": "deny",
	"reasons": [{"rule": "dispatch.default", "code": "UNDECIDED", "message": "no rule of this policy could decide"}],
	"terms": {},
}

result := data.comity.lib.answer(deny, review, {}) if {
	data.comity.lib.settings_complete
	complete
}

# METADATA
# scope: rule
# title: Whether the input has every field that a rule reads, in its type
complete if {
	data.comity.lib.texts([input.me, input.now, input.order.lead, input.agreement.purpose])
	data.comity.lib.texts(input.agreement.parties)
	data.comity.lib.texts(input.order.receivers)
	data.comity.lib.terms_sound(input.agreement.terms)
	data.comity.lib.charter_sound(input.charter)
	step_known
	is_object(input.grants)
	every left in input.grants {
		type_name(left) in ["number", "null"]
	}
	dataset_known
}

# Only training runs an app.
step_known if {
	is_string(input.step.kind)
	input.step.kind != "train"
}

step_known if {
	input.step.kind == "train"
	data.comity.lib.texts([input.step.app.name, input.step.app.digest])
}

dataset_known if input.dataset == null

dataset_known if {
	is_string(input.dataset.classification)
	is_number(input.dataset.records)
}

# METADATA
# scope: rule
# title: The agreement's purpose is still supported
deny contains {
	"rule": "dispatch.purpose",
	"code": "PURPOSE",
	"message": sprintf("purpose %s is not one that %s supports", [input.agreement.purpose, input.me]),
} if {
	not input.agreement.purpose in data.settings.purposes
}

# METADATA
# scope: rule
# title: This organisation is a party and a receiver
deny contains {
	"rule": "dispatch.party",
	"code": "PARTY",
	"message": "this organisation is not a party to the agreement, or not a receiver of the order",
} if {
	not is_party
}

is_party if {
	input.me in input.agreement.parties
	input.me in input.order.receivers
}

# METADATA
# scope: rule
# title: The order's lead is a party
deny contains {
	"rule": "dispatch.lead",
	"code": "LEAD",
	"message": sprintf("lead %s is not a party to the agreement", [input.order.lead]),
} if {
	not input.order.lead in input.agreement.parties
}

# METADATA
# scope: rule
# title: The agreement has not expired
deny contains {
	"rule": "dispatch.expiry",
	"code": "EXPIRED",
	"message": "the agreement has expired",
} if {
	not in_time
}

# Instants are text whose order is the order of time.
in_time if input.now <= object.get(input.agreement.terms, "not_after", input.now)

# METADATA
# scope: rule
# title: Only published code runs, where the settings say so
# description: What the members have taken off their list stops at its next order.
deny contains {
	"rule": "dispatch.published",
	"code": "NOT_PUBLISHED",
	"message": sprintf("app %s is not published in the charter in force: %s", [input.step.app.name, input.step.app.digest]),
} if {
	input.step.kind == "train"
	data.comity.lib.published_only
	not data.comity.lib.published(input.charter, input.step.app.digest)
}

# METADATA
# scope: rule
# title: The order comes within working hours
deny contains {
	"rule": "dispatch.hours",
	"code": "HOURS",
	"message": "this organisation does not work at this hour",
} if {
	not data.comity.lib.open_now(input.now)
}

# METADATA
# scope: rule
# title: No grant is overdrawn
# description: The journal decides exactly; this rule stops a journal that went below zero.
deny contains {
	"rule": "dispatch.grants",
	"code": "GRANT",
	"message": sprintf("grant %s is overdrawn", [name]),
} if {
	some name, left in input.grants
	is_number(left)
	left < 0
}

# METADATA
# scope: rule
# title: The aggregation is as strong as this organisation asks
deny contains {
	"rule": "dispatch.aggregation",
	"code": "AGGREGATION",
	"message": sprintf("aggregation %s is weaker than this organisation asks", [data.comity.lib.profile(input.agreement.terms)]),
} if {
	not input.step.kind == "intersect"
	not data.comity.lib.as_strong(data.comity.lib.profile(input.agreement.terms), data.settings.aggregation)
}

# METADATA
# scope: rule
# title: The dataset may still be used, and still hides one record
deny contains {
	"rule": "dispatch.dataset",
	"code": "DATASET",
	"message": "the dataset's classification or number of records does not permit this work",
} if {
	input.dataset != null
	not dataset_fits
}

dataset_fits if {
	input.dataset.classification in data.settings.data_classes
	input.dataset.records >= data.settings.min_cohort
}

# METADATA
# scope: rule
# title: A person looks where the terms say so
review contains {
	"rule": "dispatch.review",
	"code": "HUMAN_REVIEW",
	"message": "the terms ask for a person before each order",
} if {
	"dispatch" in input.agreement.terms.human_review
}
