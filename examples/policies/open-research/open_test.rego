package comity.open_test

good := {
	"me": "university-a",
	"proposer": "university-b",
	"now": "2029-06-01T10:30:00Z",
	"proposal": {
		"proposer": "university-b",
		"purpose": "academic-research",
		"uses": 1,
		"required": ["university-a", "university-b"],
		"optional": ["university-c"],
		"terms": {"result_recipients": ["university-a", "university-b", "university-c"]},
		"steps": [{"id": "fit", "kind": "train", "rounds": 10, "app": {"digest": "new", "name": "stars"}}],
		"datasets": [{"org": "university-a", "dataset": "stars", "columns": ["redshift"]}],
	},
	"datasets": [{"name": "stars", "classification": "public", "records": 4000, "columns": ["redshift"]}],
	"app": {"digest": "new", "signed_by": []},
	"charter": {"version": 2, "roles": {"university-a": [], "university-b": [], "university-c": []}, "published": [], "trust_roots": []},
}

answer(changes) := result if {
	result := data.comity.proposal.result with input as object.union(good, changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_a_new_app_is_looked_at if {
	answered := answer({})
	answered.decision == "review"
	rules(answered) == {"proposal.app"}
}

test_nobody_keeps_the_result if {
	answered := answer({"proposal": {"terms": {"result_recipients": ["university-b"]}}})
	answered.decision == "deny"
	rules(answered) == {"open.result"}
}

test_silence_means_everyone if {
	answered := answer({"proposal": object.union(object.remove(good.proposal, ["terms"]), {"terms": {}})})
	not "open.result" in rules(answered)
}
