# METADATA
# scope: package
# title: May this result leave?
# description: |
#   Asked before a byte leaves, over measured facts of the result, never over what the app claims (negotiation.md
#   section 5). Input: `schemas/egress.json`.
package comity.egress

# METADATA
# scope: document
# title: Decision and reasons
# entrypoint: true
default result := {
	"decision": "deny",
	"reasons": [{"rule": "egress.default", "code": "UNDECIDED", "message": "no rule of this policy could decide"}],
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
	data.comity.lib.texts([input.me, input.result.kind, input.result.aggregation])
	is_number(input.result.cohort)
	is_number(input.result.size_bytes)
	data.comity.lib.texts(input.result.metrics)
	data.comity.lib.terms_sound(input.agreement.terms)
}

# METADATA
# scope: rule
# title: This kind of result may leave
deny contains {
	"rule": "egress.kind",
	"code": "KIND",
	"message": sprintf("a result of kind %s stays inside", [input.result.kind]),
} if {
	not kind_agreed
}

kind_agreed if {
	input.result.kind in data.settings.egress.kinds
	input.result.kind in object.get(input.agreement.terms, "egress", data.settings.egress.kinds)
}

# METADATA
# scope: rule
# title: Enough records stand behind the result
deny contains {
	"rule": "egress.cohort",
	"code": "COHORT",
	"message": sprintf("fewer records than the minimum cohort of %v stand behind the result", [least]),
} if {
	some least in cohort_floors
	not input.result.cohort >= least
}

cohort_floors := array.concat(
	[data.settings.min_cohort],
	[least |
		some key, least in object.get(input.agreement.terms, "min_cohort", {})
		startswith(key, sprintf("%s/", [input.me]))
	],
)

# METADATA
# scope: rule
# title: The result is not larger than permitted
deny contains {
	"rule": "egress.size",
	"code": "SIZE",
	"message": sprintf("the result has %v bytes, the most is %v", [input.result.size_bytes, data.settings.egress.size_bytes_max]),
} if {
	not input.result.size_bytes <= data.settings.egress.size_bytes_max
}

# METADATA
# scope: rule
# title: Only declared metrics leave
deny contains {
	"rule": "egress.metrics",
	"code": "METRIC",
	"message": sprintf("metric %s may not leave", [name]),
} if {
	some name in input.result.metrics
	not data.comity.lib.names(data.settings.egress.metrics, name)
}

# METADATA
# scope: rule
# title: The result is aggregated as strongly as agreed and as this organisation asks
deny contains {
	"rule": "egress.aggregation",
	"code": "AGGREGATION",
	"message": sprintf("aggregation %s is weaker than agreed", [input.result.aggregation]),
} if {
	not input.step.kind == "intersect"
	some wanted in [data.comity.lib.profile(input.agreement.terms), data.settings.aggregation]
	not data.comity.lib.as_strong(input.result.aggregation, wanted)
}

# METADATA
# scope: rule
# title: A privacy budget means noise
deny contains {
	"rule": "egress.noise",
	"code": "NOISE",
	"message": "the agreement has a privacy budget, and no noise was added",
} if {
	input.agreement.terms.privacy
	not input.result.noise == true
}

# METADATA
# scope: rule
# title: A person looks where the terms say so
review contains {
	"rule": "egress.review",
	"code": "HUMAN_REVIEW",
	"message": "the terms ask for a person before a result leaves",
} if {
	"egress" in input.agreement.terms.human_review
}
