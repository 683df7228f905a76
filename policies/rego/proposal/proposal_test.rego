package comity.proposal_test

settings := {
	"purposes": ["research"],
	"data_classes": ["pseudonymous"],
	"proposers": ["hospital-a"],
	"min_cohort": 20,
	"rounds_max": 50,
	"uses_max": 2,
	"hours": null,
	"app_digests": ["listed"],
	"published_only": false,
	"app_signers": ["signer"],
	"reviewers": ["reviewer"],
	"privacy": null,
	"aggregation": "lead-key",
	"egress": {"kinds": ["model"], "metrics": ["accuracy"], "size_bytes_max": 1000},
	"terms": {},
	"known_members": {"hospital-d": "right"},
	"reviews": {"role": "reviewer", "approvals": 1},
}

good := {
	"me": "hospital-b",
	"proposer": "hospital-a",
	"now": "2029-06-01T10:30:00Z",
	"proposal": {
		"proposer": "hospital-a",
		"purpose": "research",
		"uses": 1,
		"terms": {},
		"steps": [{"id": "fit", "kind": "train", "rounds": 10, "app": {"digest": "listed", "name": "tumours"}}],
		"datasets": [{"org": "hospital-b", "dataset": "patients", "columns": ["age"]}],
	},
	"datasets": [{"name": "patients", "classification": "pseudonymous", "records": 20, "columns": ["age"]}],
	"app": {"digest": "listed", "signed_by": []},
	"charter": {
		"version": 3,
		"roles": {"hospital-a": ["researcher"], "hospital-b": []},
		"published": [],
		"trust_roots": [],
	},
}

# The result for the good input with one part of the input and one part of the settings replaced.
answer(changes, settings_changes) := result if {
	result := data.comity.proposal.result with input as object.union(good, changes)
		with data.settings as object.union(settings, settings_changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_good_is_allowed if {
	answered := answer({}, {})
	answered.decision == "allow"
	answered.terms.rounds == 50
	answered.terms.aggregation == "lead-key"
	answered.terms.egress == ["model"]
	answered.terms.columns == {"hospital-b/patients": ["age"]}
	answered.terms.min_cohort == {"hospital-b/patients": 20}
}

aggregate := {"id": "ask", "kind": "aggregate", "rounds": 1, "query": {"measure": "count"}}

# Nobody's code runs here, so nobody has to have read any.
test_a_statistic_needs_no_reviewed_app if {
	answered := answer({"proposal": {"steps": [aggregate]}, "app": null}, {"app_digests": []})
	answered.decision == "allow"
}

intersect := {"id": "meet", "kind": "intersect", "lead": "hospital-a", "partner": "hospital-b", "mode": "cardinality"}

test_an_intersection_needs_no_reviewed_app if {
	answered := answer({"proposal": {"steps": [intersect]}, "app": null}, {"app_digests": []})
	answered.decision == "allow"
	not answered.terms.aggregation
}

test_rows_stay_inside_by_default if {
	rows := object.union(intersect, {"mode": "ids"})
	rules(answer({"proposal": {"steps": [rows]}, "app": null}, {})) == {"proposal.rows"}
	ours := object.union(rows, {"lead": "hospital-b", "partner": "hospital-a"})
	received := answer({"proposal": {"steps": [ours]}, "app": null}, {})
	received.decision == "allow"
	received.terms.egress == ["model", "record"]
	open_kinds := {"egress": {"kinds": ["statistic", "record"]}}
	answer({"proposal": {"steps": [rows]}, "app": null}, open_kinds).decision == "allow"
}

test_rounds_of_a_statistic_are_counted if {
	many := object.union(aggregate, {"rounds": 51})
	rules(answer({"proposal": {"steps": [many]}, "app": null}, {})) == {"proposal.rounds"}
}

test_a_training_without_its_app_is_undecided if rules(answer({"app": null}, {})) == {"proposal.default"}

test_a_step_of_unknown_kind_is_undecided if {
	odd := object.union(aggregate, {"kind": "dump"})
	rules(answer({"proposal": {"steps": [odd]}, "app": null}, {})) == {"proposal.default"}
}

published := {"charter": {"published": [{
	"digest": "listed",
	"name": "tumours",
	"version": "1.0.0",
	"publisher": "hospital-a",
}]}}

test_only_published_code_where_the_settings_say_so if {
	rules(answer({}, {"published_only": true})) == {"proposal.published"}
	answer(published, {"published_only": true}).decision == "allow"
}

test_a_statistic_is_nobodys_code if {
	changes := {"proposal": {"steps": [aggregate]}, "app": null}
	answer(changes, {"published_only": true}).decision == "allow"
}

test_proposers_by_role_of_the_charter if {
	answer({}, {"proposers": ["role:researcher"]}).decision == "allow"
	rules(answer({}, {"proposers": ["role:auditor"]})) == {"proposal.proposer"}
	changes := {"charter": {"roles": {"hospital-a": ["auditor"]}}}
	rules(answer(changes, {"proposers": ["role:researcher"]})) == {"proposal.proposer"}
}

test_odd_facts_of_the_charter_are_undecided if {
	every odd in [{"version": "3"}, {"roles": {"hospital-a": "researcher"}}, {"published": {}}, {"trust_roots": null}] {
		rules(answer({"charter": odd}, {})) == {"proposal.default"}
	}
}

test_purpose if {
	answered := answer({"proposal": {"purpose": "marketing"}}, {})
	answered.decision == "deny"
	rules(answered) == {"proposal.purpose"}
	answered.reasons[0].message == "purpose marketing is not one that hospital-b supports"
	answered.terms == {}
}

test_proposer if rules(answer({"proposer": "hospital-c"}, {})) == {"proposal.proposer"}

test_every_member_may_propose if {
	answer({"proposer": "hospital-c", "proposal": {"proposer": "hospital-c"}}, {"proposers": ["*"]}).decision == "allow"
}

test_dataset_unknown if rules(answer({"datasets": []}, {})) == {"proposal.dataset"}

test_column_unknown if {
	changed := [{"org": "hospital-b", "dataset": "patients", "columns": ["age", "name"]}]
	rules(answer({"proposal": {"datasets": changed}}, {})) == {"proposal.columns"}
}

test_datasets_of_others_are_not_ours_to_judge if {
	changed := [{"org": "hospital-c", "dataset": "elsewhere", "columns": ["x"]}]
	answer({"proposal": {"datasets": changed}}, {}).decision == "allow"
}

test_classification if {
	changed := [{"name": "patients", "classification": "secret", "records": 20, "columns": ["age"]}]
	rules(answer({"datasets": changed}, {})) == {"proposal.classification"}
}

test_cohort if {
	changed := [{"name": "patients", "classification": "pseudonymous", "records": 19, "columns": ["age"]}]
	rules(answer({"datasets": changed}, {})) == {"proposal.cohort"}
}

test_records_as_text_are_refused if {
	changed := [{"name": "patients", "classification": "pseudonymous", "records": "19", "columns": ["age"]}]
	rules(answer({"datasets": changed}, {})) == {"proposal.default"}
}

test_rounds_and_uses if {
	steps := [{"id": "fit", "kind": "train", "rounds": 51, "app": {"digest": "listed", "name": "tumours"}}]
	rules(answer({"proposal": {"steps": steps, "uses": 3}}, {})) == {"proposal.rounds", "proposal.uses"}
}

unlisted := [{"id": "fit", "kind": "train", "rounds": 10, "app": {"digest": "other", "name": "tumours"}}]

test_unlisted_app_is_reviewed if {
	answered := answer({"proposal": {"steps": unlisted}}, {})
	answered.decision == "review"
	rules(answered) == {"proposal.app"}
}

test_review_says_who_looks if {
	answer({"proposal": {"steps": unlisted}}, {}).review == {"role": "reviewer", "approvals": 1}
	four_eyes := {"reviews": {"role": "admin", "approvals": 2}}
	answer({"proposal": {"steps": unlisted}}, four_eyes).review == {"role": "admin", "approvals": 2}
}

test_only_a_review_says_who_looks if {
	not answer({}, {}).review
	not answer({"proposal": {"purpose": "marketing"}}, {}).review
}

test_review_setting_that_is_no_number_fails_closed if {
	odd := {"reviews": {"role": "admin", "approvals": "two"}}
	rules(answer({"proposal": {"steps": unlisted}}, odd)) == {"proposal.default"}
}

test_signature_of_a_reviewer_counts if {
	signed := {"digest": "other", "signed_by": ["reviewer"]}
	answer({"proposal": {"steps": unlisted}, "app": signed}, {}).decision == "allow"
}

test_signature_on_another_app_does_not_count if {
	signed := {"digest": "third", "signed_by": ["reviewer"]}
	answer({"proposal": {"steps": unlisted}, "app": signed}, {}).decision == "review"
}

test_privacy_with_clipping_bounds_the_app if {
	terms := {"privacy": {"epsilon": "1", "delta": "0.00001"}, "clip_norm": "1"}
	answer({"proposal": {"steps": unlisted, "terms": terms}}, {}).decision == "allow"
}

test_privacy_without_clipping_does_not if {
	terms := {"privacy": {"epsilon": "1", "delta": "0.00001"}}
	answer({"proposal": {"steps": unlisted, "terms": terms}}, {}).decision == "review"
}

test_own_terms_are_asked_for if answer({}, {"terms": {"retention_s": 60}}).terms.retention_s == 60

test_missing_setting_fails_closed if {
	every name in object.keys(settings) - {"terms", "known_members"} {
		result := data.comity.proposal.result with input as good with data.settings as object.remove(settings, [name])
		result.decision == "deny"
	}
}

test_missing_input_fails_closed if {
	every name in object.keys(good) - {"now"} {
		result := data.comity.proposal.result with input as object.remove(good, [name]) with data.settings as settings
		result.decision == "deny"
	}
}
