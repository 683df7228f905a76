# METADATA
# scope: package
# title: Shall this organisation be admitted?
# description: |
#   A candidate whose key fingerprint this organisation has written down beforehand is admitted; for any other a person
#   compares the fingerprint (negotiation.md section 6). Input: `schemas/membership.json`.
package comity.membership

# METADATA
# scope: document
# title: Decision and reasons
# entrypoint: true
default result := {
	"decision": "deny",
	"reasons": [{"rule": "membership.default", "code": "UNDECIDED", "message": "no rule of this policy could decide"}],
	"terms": {},
}

result := data.comity.lib.answer(deny, review, {}) if {
	is_object(data.settings.known_members)
	data.comity.lib.texts([input.candidate.org, input.candidate.fingerprint])
}

# METADATA
# scope: rule
# title: A fingerprint that differs from the one written down is an impostor's
deny contains {
	"rule": "membership.fingerprint",
	"code": "FINGERPRINT",
	"message": sprintf("the keys of %s are not those that this organisation wrote down", [input.candidate.org]),
} if {
	expected := data.settings.known_members[input.candidate.org]
	not input.candidate.fingerprint == expected
}

# METADATA
# scope: rule
# title: An unknown candidate is compared by a person
review contains {
	"rule": "membership.unknown",
	"code": "UNKNOWN",
	"message": sprintf("the key fingerprint of %s has to be compared by a person", [input.candidate.org]),
} if {
	not data.settings.known_members[input.candidate.org]
}
