# METADATA
# scope: package
# title: What every stage shares
# description: |
#   Rules are written as "deny unless shown": a missing setting or a missing input field denies.
#   Only built-ins of the portable profile are used, so that the embedded engine and an OPA server answer alike;
#   functions of other packages are called by their full path, the only form that both engines resolve.
package comity.lib

# METADATA
# scope: rule
# title: The answer of a stage
# description: |
#   A denial beats a review, a review beats a permission. Reasons come sorted, as sets have no order. A reason of a
#   review may carry `approvals`: the largest number asked for holds, and never less than the settings say. It may
#   carry `scope`: with "order" an approval at dispatch holds for one order, not for the rest of the run's step.
answer(denials, reviews, terms) := {"decision": "deny", "reasons": sort(denials), "terms": {}} if {
	count(denials) > 0
} else := {
	"decision": "review",
	"reasons": sort(plain(reviews)),
	"terms": terms,
	"review": object.union({"role": data.settings.reviews.role, "approvals": approvals(reviews)}, scope(reviews)),
} if {
	count(reviews) > 0
} else := {"decision": "allow", "reasons": [], "terms": terms}

plain(reviews) := {object.remove(reason, ["approvals", "scope"]) | some reason in reviews}

approvals(reviews) := max({data.settings.reviews.approvals} | {reason.approvals | some reason in reviews})

# What is not spelt "run" is the narrower of the two.
scope(reviews) := {} if {reason.scope | some reason in reviews} - {"run"} == set()

scope(reviews) := {"scope": "order"} if {reason.scope | some reason in reviews} - {"run"} != set()

# METADATA
# scope: rule
# title: Whether every setting that a rule reads is there, in its type
# description: |
#   A denial whose message cannot be written is no denial: without this rule a missing setting would fail open, and so
#   would a number written as text, because any text is larger than any number.
settings_complete if {
	every name in ["purposes", "data_classes", "proposers", "app_digests", "app_signers", "reviewers"] {
		is_array(data.settings[name])
	}
	is_boolean(data.settings.published_only)
	every name in ["min_cohort", "rounds_max", "uses_max"] {
		is_number(data.settings[name])
	}
	is_number(data.settings.egress.size_bytes_max)
	is_array(data.settings.egress.kinds)
	is_array(data.settings.egress.metrics)
	data.settings.aggregation in ladder
	is_string(data.settings.reviews.role)
	is_number(data.settings.reviews.approvals)
	settings_optional
}

# These two may be null, which is not the same as missing.
settings_optional if {
	some hours in [data.settings.hours]
	some privacy in [data.settings.privacy]
	{type_name(hours), type_name(privacy)} & {"array", "boolean", "number", "string"} == set()
}

# METADATA
# scope: rule
# title: Whether the terms that rules read are in their types
# description: Iterating over what is no collection is silent in one engine and an error in the other.
terms_sound(terms) if {
	is_object(terms)
	profile(terms) in ladder
	is_string(object.get(terms, "not_after", ""))
	is_object(object.get(terms, "privacy", {}))
	texts(object.get(terms, "egress", []))
	texts(object.get(terms, "human_review", []))
	every _, least in object.get(terms, "min_cohort", {}) {
		is_number(least)
	}
	is_object(object.get(terms, "min_cohort", {}))
}

# METADATA
# scope: rule
# title: Whether every one of these is text
texts(values) if {
	is_array(values)
	every value in values {
		is_string(value)
	}
}

# METADATA
# scope: rule
# title: Profiles of aggregation, the weakest first
ladder := ["plain", "lead-key", "masked", "threshold"]

# METADATA
# scope: rule
# title: Whether one profile protects at least as well as another
as_strong(one, other) if {
	some i, one_name in ladder
	one_name == one
	some j, other_name in ladder
	other_name == other
	i >= j
}

# METADATA
# scope: rule
# title: The profile that terms ask for
# description: Terms that do not speak of aggregation ask for the weakest.
profile(terms) := object.get(terms, "aggregation", "plain")

# METADATA
# scope: rule
# title: Whether the facts from the charter in force are there, in their types
charter_sound(charter) if {
	is_number(charter.version)
	is_object(charter.roles)
	every org, roles in charter.roles {
		is_string(org)
		texts(roles)
	}
	is_array(charter.published)
	every app in charter.published {
		texts([app.digest, app.name, app.version, app.publisher])
	}
	is_array(charter.trust_roots)
	every root in charter.trust_roots {
		texts([root.kind, root.name, root.digest])
	}
}

# METADATA
# scope: rule
# title: Whether the members have published an app, by its digest, in the charter in force
published(charter, digest) if {
	some app in charter.published
	app.digest == digest
}

# METADATA
# scope: rule
# title: Whether an organisation holds a role of the charter in force
holds(charter, org, role) if role in object.get(charter.roles, org, [])

# METADATA
# scope: rule
# title: Whether only published apps may run here
published_only if not data.settings.published_only == false

# METADATA
# scope: rule
# title: Whether work may run at this instant
# description: Hours are whole hours in UTC, from inclusive, to exclusive; no hours means always.
open_now(_) if data.settings.hours == null

open_now(now) if {
	hour := to_number(trim_left_zero(substring(now, 11, 2)))
	hour >= data.settings.hours.from
	hour < data.settings.hours.to
}

trim_left_zero(text) := substring(text, 1, 1) if startswith(text, "0")

trim_left_zero(text) := text if not startswith(text, "0")

# METADATA
# scope: rule
# title: Whether a list names this element, or everyone
names(list, element) if element in list

names(list, _) if "*" in list
