package comity.membership_test

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
	"candidate": {"org": "hospital-d", "fingerprint": "right"},
}

# The result for the good input with one part of the input and one part of the settings replaced.
answer(changes, settings_changes) := result if {
	result := data.comity.membership.result with input as object.union(good, changes)
		with data.settings as object.union(settings, settings_changes)
}

rules(answered) := {reason.rule | some reason in answered.reasons}

test_known_is_admitted if answer({}, {}).decision == "allow"

test_impostor if rules(answer({"candidate": {"fingerprint": "wrong"}}, {})) == {"membership.fingerprint"}

test_unknown_is_reviewed if answer({"candidate": {"org": "hospital-e"}}, {}).decision == "review"

test_missing_fingerprint_fails_closed if {
	result := data.comity.membership.result with input as {"candidate": {"org": "hospital-d"}}
		with data.settings as settings
	result.decision == "deny"
}
