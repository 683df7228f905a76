package comity.bank_test

good := {
	"me": "bank-a",
	"proposer": "bank-b",
	"now": "2029-06-01T10:30:00Z",
	"proposal": {
		"proposer": "bank-b",
		"purpose": "fraud-prevention",
		"uses": 1,
		"terms": {"aggregation": "lead-key"},
		"steps": [{"id": "fit", "kind": "train", "rounds": 10, "app": {"digest": "listed", "name": "fraud"}}],
		"datasets": [{"org": "bank-a", "dataset": "payments", "columns": ["amount", "country"]}],
	},
	"datasets": [{
		"name": "payments",
		"classification": "confidential",
		"records": 90000,
		"columns": ["amount", "country", "iban"],
	}],
	"app": {"digest": "listed", "signed_by": []},
	"charter": {
		"version": 2,
		"roles": {"bank-a": [], "bank-b": []},
		"published": [{"digest": "listed", "name": "fraud", "version": "1.0.0", "publisher": "bank-b"}],
		"trust_roots": [],
	},
}

answer(changes) := result if {
	result := data.comity.proposal.result with input as object.union(good, changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_two_people_look_at_it if {
	answered := answer({})
	answered.decision == "review"
	answered.review == {"role": "reviewer", "approvals": 2}
	"bank.four-eyes" in rules(answered)
	answered.terms.human_review == ["agreement"]
	answered.terms.min_participants == 3
}

test_an_account_number_is_denied if {
	answered := answer({"proposal": {"datasets": [{"org": "bank-a", "dataset": "payments", "columns": ["iban"]}]}})
	answered.decision == "deny"
	rules(answered) == {"bank.identifying"}
}

test_code_that_the_members_have_not_published if {
	rules(answer({"charter": {"published": []}})) == {"proposal.published"}
}

test_a_stranger_does_not_propose if {
	answer({"proposer": "broker", "proposal": {"proposer": "broker"}}).decision == "deny"
}

test_marketing_is_denied if {
	answer({"proposal": {"purpose": "marketing"}}).decision == "deny"
}
