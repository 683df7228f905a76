package comity.dispatch_test

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
		"terms": {"aggregation": "lead-key", "not_after": "2029-12-31T00:00:00Z"},
	},
	"order": {"step": "fit", "round": 1, "message_type": "train", "lead": "hospital-a", "receivers": ["hospital-b"]},
	"step": {"id": "fit", "kind": "train", "app": {"name": "tumours", "digest": "listed"}},
	"charter": {
		"version": 3,
		"roles": {"hospital-a": ["researcher"], "hospital-b": []},
		"published": [],
		"trust_roots": [],
	},
	"grants": {"rounds_left": 0, "uses_left": null},
	"dataset": {"name": "patients", "classification": "pseudonymous", "records": 20, "columns": ["age"]},
}

# The result for the good input with one part of the input and one part of the settings replaced.
answer(changes, settings_changes) := result if {
	result := data.comity.dispatch.result with input as object.union(good, changes)
		with data.settings as object.union(settings, settings_changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_good_is_allowed if answer({}, {}).decision == "allow"

test_without_dataset_is_allowed if answer({"dataset": null}, {}).decision == "allow"

test_purpose_withdrawn if rules(answer({}, {"purposes": ["statistics"]})) == {"dispatch.purpose"}

test_not_a_party if rules(answer({"me": "hospital-c"}, {})) == {"dispatch.party"}

test_not_a_receiver if rules(answer({"order": {"receivers": ["hospital-a"]}}, {})) == {"dispatch.party"}

test_lead_is_no_party if rules(answer({"order": {"lead": "hospital-c"}}, {})) == {"dispatch.lead"}

test_code_that_is_not_published_any_more if {
	app := {"digest": "listed", "name": "tumours", "version": "1.0.0", "publisher": "hospital-a"}
	rules(answer({}, {"published_only": true})) == {"dispatch.published"}
	answer({"charter": {"published": [app]}}, {"published_only": true}).decision == "allow"
	answer({"step": {"kind": "aggregate"}}, {"published_only": true}).decision == "allow"
}

test_expired if rules(answer({"now": "2029-12-31T00:00:01Z"}, {})) == {"dispatch.expiry"}

test_last_second_counts if answer({"now": "2029-12-31T00:00:00Z"}, {}).decision == "allow"

test_hours if {
	answer({}, {"hours": {"from": 10, "to": 11}}).decision == "allow"
	rules(answer({}, {"hours": {"from": 11, "to": 12}})) == {"dispatch.hours"}
	rules(answer({}, {"hours": {"from": 9, "to": 10}})) == {"dispatch.hours"}
	answer({"now": "2029-06-01T09:00:00Z"}, {"hours": {"from": 9, "to": 10}}).decision == "allow"
	answer({"now": "2029-06-01T00:00:00Z"}, {"hours": {"from": 0, "to": 1}}).decision == "allow"
}

test_overdrawn_grant if rules(answer({"grants": {"rounds_left": -1}}, {})) == {"dispatch.grants"}

test_weak_aggregation if {
	rules(answer({"agreement": {"terms": {"aggregation": "plain"}}}, {})) == {"dispatch.aggregation"}
	answer({"agreement": {"terms": {"aggregation": "threshold"}}}, {}).decision == "allow"
}

test_an_intersection_sums_nothing if {
	meet := {"id": "meet", "kind": "intersect"}
	answer({"step": meet, "agreement": {"terms": {"aggregation": "plain"}}}, {}).decision == "allow"
}

test_unknown_aggregation if answer({"agreement": {"terms": {"aggregation": "none"}}}, {}).decision == "deny"

test_dataset_reclassified if rules(answer({"dataset": {"classification": "secret"}}, {})) == {"dispatch.dataset"}

test_dataset_shrunk if rules(answer({"dataset": {"records": 19}}, {})) == {"dispatch.dataset"}

test_human_review if answer({"agreement": {"terms": {"human_review": ["dispatch"]}}}, {}).decision == "review"

test_missing_setting_fails_closed if {
	every name in object.keys(settings) - {"terms", "known_members"} {
		result := data.comity.dispatch.result with input as good with data.settings as object.remove(settings, [name])
		result.decision == "deny"
	}
}

test_missing_input_fails_closed if {
	every name in object.keys(good) {
		result := data.comity.dispatch.result with input as object.remove(good, [name]) with data.settings as settings
		result.decision == "deny"
	}
}
