package comity.egress_test

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
	"now": "2029-06-01T10:30:00Z",
	"agreement": {
		"purpose": "research",
		"parties": ["hospital-a", "hospital-b"],
		"terms": {"aggregation": "lead-key", "not_after": "2029-12-31T00:00:00Z", "egress": ["model"], "min_cohort": {"hospital-b/patients": 30, "hospital-a/patients": 900}},
	},
	"order": {"step": "fit", "round": 1, "message_type": "train", "lead": "hospital-a", "receivers": ["hospital-b"]},
	"result": {
		"kind": "model",
		"cohort": 30,
		"size_bytes": 1000,
		"metrics": ["accuracy"],
		"aggregation": "lead-key",
		"clipped": 0,
		"noise": false,
	},
}

# The result for the good input with one part of the input and one part of the settings replaced.
answer(changes, settings_changes) := result if {
	result := data.comity.egress.result with input as object.union(good, changes)
		with data.settings as object.union(settings, settings_changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_good_is_allowed if answer({}, {}).decision == "allow"

test_kind if rules(answer({"result": {"kind": "record"}}, {})) == {"egress.kind"}

test_kind_not_agreed if rules(answer({"agreement": {"terms": {"egress": ["statistic"]}}}, {})) == {"egress.kind"}

test_cohort_of_the_agreement if rules(answer({"result": {"cohort": 29}}, {})) == {"egress.cohort"}

test_cohort_of_the_settings if rules(answer({}, {"min_cohort": 31})) == {"egress.cohort"}

test_size if rules(answer({"result": {"size_bytes": 1001}}, {})) == {"egress.size"}

test_metrics if rules(answer({"result": {"metrics": ["accuracy", "patient-7"]}}, {})) == {"egress.metrics"}

test_any_metric if {
	anything := {"egress": {"metrics": ["*"]}}
	answer({"result": {"metrics": ["loss"]}}, anything).decision == "allow"
}

test_aggregation if rules(answer({"result": {"aggregation": "plain"}}, {})) == {"egress.aggregation"}

# What leaves is a masked set or a count; the count is the cohort.
meet := {"step": {"id": "meet", "kind": "intersect"}, "result": {"aggregation": "intersect"}}

test_an_intersection_sums_nothing if answer(meet, {}).decision == "allow"

test_too_few_in_common if {
	few := object.union(meet, {"result": {"aggregation": "intersect", "cohort": 29}})
	rules(answer(few, {})) == {"egress.cohort"}
}

private := {"agreement": {"terms": {"privacy": {"epsilon": "1", "delta": "0.00001"}}}}

test_noise_is_missing if rules(answer(private, {})) == {"egress.noise"}

test_noise_was_added if answer(object.union(private, {"result": {"noise": true}}), {}).decision == "allow"

test_human_review if answer({"agreement": {"terms": {"human_review": ["egress"]}}}, {}).decision == "review"

test_missing_setting_fails_closed if {
	every name in object.keys(settings) - {"terms", "known_members"} {
		result := data.comity.egress.result with input as good with data.settings as object.remove(settings, [name])
		result.decision == "deny"
	}
}

test_missing_input_fails_closed if {
	every name in object.keys(good) - {"now", "order"} {
		result := data.comity.egress.result with input as object.remove(good, [name]) with data.settings as settings
		result.decision == "deny"
	}
}
