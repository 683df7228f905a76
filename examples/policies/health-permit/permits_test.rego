package comity.permits_test

good := {
	"me": "registry",
	"proposer": "institute",
	"now": "2029-06-01T10:30:00Z",
	"proposal": {
		"proposer": "institute",
		"purpose": "public-health",
		"uses": 1,
		"persons": ["ada@institute.example"],
		"terms": {"aggregation": "lead-key"},
		"steps": [{"id": "fit", "kind": "train", "rounds": 10, "app": {"digest": "listed", "name": "screening"}}],
		"datasets": [{"org": "registry", "dataset": "screenings", "columns": ["age", "result"]}],
	},
	"datasets": [{
		"name": "screenings",
		"classification": "pseudonymous",
		"records": 4000,
		"columns": ["age", "result"],
	}],
	"app": {"digest": "listed", "signed_by": []},
	"charter": {"version": 2, "roles": {"institute": [], "registry": []}, "published": [], "trust_roots": []},
}

answer(changes) := result if {
	result := data.comity.proposal.result with input as object.union(good, changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_a_permit_binds_what_it_covers if {
	answered := answer({})
	rules(answered) == {"proposal.app"} # a person looks at the app, and at nothing else
	answered.terms.not_after == "2030-06-30T00:00:00Z"
	answered.terms.min_cohort == {"registry/screenings": 100}
}

test_another_person if {
	rules(answer({"proposal": {"persons": ["eve@institute.example"]}})) == {"permit.none"}
}

test_one_of_two_persons if {
	rules(answer({"proposal": {"persons": ["ada@institute.example", "eve@institute.example"]}})) == {"permit.none"}
}

test_nobody_named if {
	rules(answer({"proposal": {"persons": []}})) == {"permit.persons"}
}

test_persons_that_are_no_list if {
	"permit.persons" in rules(answer({"proposal": {"persons": "ada@institute.example"}}))
}

test_another_purpose if {
	"permit.none" in rules(answer({"proposal": {"purpose": "statistics"}}))
}

test_another_organisation if {
	rules(answer({"proposer": "company", "proposal": {"proposer": "company"}})) == {"permit.none"}
}

test_an_expired_permit if {
	rules(answer({"now": "2030-06-30T00:00:00Z"})) == {"permit.none"}
}
