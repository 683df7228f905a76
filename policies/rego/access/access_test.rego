package comity.access_test

settings := {"access": {
	"roles": {"admin": ["ada"], "proposer": ["group:analysts"], "reviewer": ["ada", "group:board"], "auditor": []},
	"issuers": {},
}}

person := {"user": "ada", "groups": [], "via": "oidc", "issuer": "https://id.example", "roles": []}

roles(changes, access) := result.roles if {
	result := data.comity.access.result with input as object.union(person, changes)
		with data.settings as object.union(settings, {"access": access})
}

test_users if roles({}, {}) == ["admin", "reviewer"]

test_groups if roles({"user": "bob", "groups": ["analysts", "board"]}, {}) == ["proposer", "reviewer"]

test_unknown_person_has_none if roles({"user": "eve", "groups": ["others"]}, {}) == []

test_a_name_is_no_group if roles({"user": "analysts", "groups": ["ada"]}, {}) == []

test_token_gives_what_is_written_on_it if roles({"via": "token", "user": "bob", "roles": ["auditor"]}, {}) == ["auditor"]

test_token_of_an_admin_gives_no_more if roles({"via": "token", "roles": ["auditor"]}, {}) == ["auditor"]

test_listed_issuer if roles({}, {"issuers": {"https://id.example": {}}}) == ["admin", "reviewer"]

test_unlisted_issuer if roles({}, {"issuers": {"https://other.example": {}}}) == []

test_groups_that_are_no_list_grant_nothing if roles({"groups": "board"}, {}) == []

test_unknown_way_in_grants_nothing if roles({"via": "local"}, {}) == []

test_missing_settings_fail_closed if {
	result := data.comity.access.result with input as person with data.settings as {}
	result == {"roles": []}
}

test_missing_input_fails_closed if {
	result := data.comity.access.result with input as {"user": "ada", "via": "oidc"} with data.settings as settings
	result == {"roles": []}
}
