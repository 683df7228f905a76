# METADATA
# scope: package
# title: May this workflow be agreed to?
# description: |
#   Input: `schemas/proposal.json`. An organisation's own Rego may add to `deny`, `review` and `own_terms` in this
#   package; it cannot take a denial away.
package comity.proposal

# METADATA
# scope: document
# title: Decision, reasons and the terms that this organisation asks for
# entrypoint: true
default result := {
	"decision": "deny",
	"reasons": [{"rule": "proposal.default", "code": "UNDECIDED", "message": "no rule of this policy could decide"}],
	"terms": {},
}

result := data.comity.lib.answer(deny, review, object.union(terms, own_terms)) if {
	data.comity.lib.settings_complete
	complete
}

# METADATA
# scope: rule
# title: Whether the input has every field that a rule reads, in its type
complete if {
	data.comity.lib.texts([input.me, input.proposer, input.proposal.proposer, input.proposal.purpose])
	is_number(input.proposal.uses)
	data.comity.lib.terms_sound(input.proposal.terms)
	app_known
	data.comity.lib.charter_sound(input.charter)
	is_array(input.proposal.datasets)
	is_array(input.proposal.steps)
	is_array(input.datasets)
	every ask in input.proposal.datasets {
		data.comity.lib.texts([ask.org, ask.dataset])
		data.comity.lib.texts(ask.columns)
	}
	every step in input.proposal.steps {
		data.comity.lib.texts([step.id, step.kind])
		step_known(step)
	}
	every dataset in input.datasets {
		data.comity.lib.texts([dataset.name, dataset.classification])
		is_number(dataset.records)
		data.comity.lib.texts(dataset.columns)
	}
}

# A proposal brings an app if, and only if, one of its steps runs one.
app_known if {
	input.app == null
	every step in input.proposal.steps {
		step.kind != "train"
	}
}

app_known if {
	is_string(input.app.digest)
	data.comity.lib.texts(input.app.signed_by)
}

# A step of a kind that this policy does not know is not one that it can judge.
step_known(step) if {
	step.kind == "train"
	data.comity.lib.texts([step.app.name, step.app.digest])
	is_number(step.rounds)
}

step_known(step) if {
	step.kind == "aggregate"
	is_string(step.query.measure)
	is_number(step.rounds)
}

step_known(step) if {
	step.kind == "intersect"
	data.comity.lib.texts([step.lead, step.partner, step.mode])
}

# METADATA
# scope: rule
# title: Terms that an organisation's own Rego adds
own_terms[field] := value if {
	some field, value in data.settings.terms
}

# METADATA
# scope: rule
# title: The purpose is one that this organisation supports
deny contains {
	"rule": "proposal.purpose",
	"code": "PURPOSE",
	"message": sprintf("purpose %s is not one that %s supports", [input.proposal.purpose, input.me]),
} if {
	not input.proposal.purpose in data.settings.purposes
}

# METADATA
# scope: rule
# title: The proposer may ask
deny contains {
	"rule": "proposal.proposer",
	"code": "PROPOSER",
	"message": sprintf("%s may not propose work to %s", [input.proposer, input.me]),
} if {
	not proposer_known
}

proposer_known if {
	input.proposer == input.proposal.proposer
	data.comity.lib.names(data.settings.proposers, input.proposer)
}

proposer_known if {
	input.proposer == input.proposal.proposer
	some wanted in data.settings.proposers
	startswith(wanted, "role:")
	data.comity.lib.holds(input.charter, input.proposer, trim_prefix(wanted, "role:"))
}

# METADATA
# scope: rule
# title: Every dataset asked for is one of ours
deny contains {
	"rule": "proposal.dataset",
	"code": "DATASET",
	"message": sprintf("%s has no dataset %s", [input.me, ask.dataset]),
} if {
	some ask in input.proposal.datasets
	ask.org == input.me
	not ask.dataset in {dataset.name | some dataset in input.datasets}
}

# METADATA
# scope: rule
# title: Every column asked for exists
deny contains {
	"rule": "proposal.columns",
	"code": "COLUMNS",
	"message": sprintf("dataset %s has no column %s", [ask.dataset, name]),
} if {
	some ask in input.proposal.datasets
	ask.org == input.me
	some dataset in input.datasets
	dataset.name == ask.dataset
	some name in ask.columns
	not name in dataset.columns
}

# METADATA
# scope: rule
# title: The classification of every dataset permits shared work
deny contains {
	"rule": "proposal.classification",
	"code": "CLASSIFICATION",
	"message": sprintf("dataset %s is classified %s, which stays out of shared work", [dataset.name, dataset.classification]),
} if {
	some dataset in input.datasets
	not dataset.classification in data.settings.data_classes
}

# METADATA
# scope: rule
# title: Every dataset holds enough records to hide one
deny contains {
	"rule": "proposal.cohort",
	"code": "COHORT",
	"message": sprintf("dataset %s holds fewer records than the minimum cohort of %v", [dataset.name, data.settings.min_cohort]),
} if {
	some dataset in input.datasets
	not dataset.records >= data.settings.min_cohort
}

# METADATA
# scope: rule
# title: No step runs more rounds than permitted
deny contains {
	"rule": "proposal.rounds",
	"code": "ROUNDS",
	"message": sprintf("step %s asks for %v rounds, the most is %v", [step.id, step.rounds, data.settings.rounds_max]),
} if {
	some step in input.proposal.steps
	step.kind != "intersect"
	not step.rounds <= data.settings.rounds_max
}

# METADATA
# scope: rule
# title: The workflow is not used more often than permitted
deny contains {
	"rule": "proposal.uses",
	"code": "USES",
	"message": sprintf("the proposal asks for %v uses, the most is %v", [input.proposal.uses, data.settings.uses_max]),
} if {
	not input.proposal.uses <= data.settings.uses_max
}

# METADATA
# scope: rule
# title: Another organisation learns which of its records we have too only where records may leave
deny contains {
	"rule": "proposal.rows",
	"code": "ROWS",
	"message": sprintf("step %s tells %s which of its records %s has too: record is not a kind that may leave", [step.id, step.lead, input.me]),
} if {
	some step in input.proposal.steps
	step.kind == "intersect"
	step.mode == "ids"
	step.partner == input.me
	not "record" in data.settings.egress.kinds
}

# METADATA
# scope: rule
# title: Only published code runs, where the settings say so
deny contains {
	"rule": "proposal.published",
	"code": "NOT_PUBLISHED",
	"message": sprintf("app %s is not published in the charter in force: %s", [step.app.name, step.app.digest]),
} if {
	some step in input.proposal.steps
	step.kind == "train"
	data.comity.lib.published_only
	not data.comity.lib.published(input.charter, step.app.digest)
}

# METADATA
# scope: rule
# title: Foreign code is vouched for, or its effect is bounded by privacy
# description: |
#   Secure aggregation does not protect data from the code that makes the update. So `train` needs a listed app, a
#   signature of a signer or reviewer that this organisation names, or a privacy budget with clipping in the terms;
#   otherwise a person looks (architecture.md section 2).
review contains {
	"rule": "proposal.app",
	"code": "APP_UNREVIEWED",
	"message": sprintf("app %s is not reviewed here: %s is not in app_digests", [step.app.name, step.app.digest]),
} if {
	some step in input.proposal.steps
	step.kind == "train"
	not app_vouched(step.app.digest)
	not privacy_bounds
}

app_vouched(digest) if digest in data.settings.app_digests

app_vouched(digest) if {
	input.app.digest == digest
	some signer in input.app.signed_by
	signer in {name | some name in array.concat(data.settings.app_signers, data.settings.reviewers)}
}

privacy_bounds if {
	input.proposal.terms.privacy.epsilon
	input.proposal.terms.clip_norm
}

privacy_bounds if {
	data.settings.privacy.epsilon
	input.proposal.terms.clip_norm
}

# METADATA
# scope: rule
# title: The terms that this organisation asks for
terms := object.union(object.union(fixed_terms, summed), budget)

# An intersection sums nothing: both sides mask what they send, each under its own key.
summed := {"aggregation": data.settings.aggregation} if {
	some step in input.proposal.steps
	step.kind != "intersect"
}

summed := {} if {
	every step in input.proposal.steps {
		step.kind == "intersect"
	}
}

fixed_terms := {
	"purposes": data.settings.purposes,
	"columns": {key(ask): ask.columns | some ask in input.proposal.datasets; ask.org == input.me},
	"min_cohort": {key(ask): data.settings.min_cohort | some ask in input.proposal.datasets; ask.org == input.me},
	"rounds": data.settings.rounds_max,
	"uses": data.settings.uses_max,
	"egress": kinds,
}

# Terms bind every party. Where another one tells us which of our records it has too, it decides whether they may leave.
kinds := data.settings.egress.kinds if not receives_rows

kinds := array.concat(data.settings.egress.kinds, ["record"]) if receives_rows

receives_rows if {
	not "record" in data.settings.egress.kinds
	some step in input.proposal.steps
	step.kind == "intersect"
	step.mode == "ids"
	step.lead == input.me
}

budget := {} if data.settings.privacy == null

budget := {"privacy": data.settings.privacy} if data.settings.privacy.epsilon

key(ask) := sprintf("%s/%s", [ask.org, ask.dataset])
