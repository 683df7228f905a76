# METADATA
# scope: package
# title: Which roles does this person have?
# description: |
#   Asked by the organisation's own node about its own people, at each request; the coordinator is not. The settings'
#   `access.roles` names users and groups for each role. An organisation's own Rego joins this package: `grant` adds
#   roles, `withhold` takes them away and wins. A token never gives more than the roles that are written on it.
#   Input: user, groups, via ("token" or "oidc"), issuer ("" for tokens), roles (those of a token).
package comity.access

# METADATA
# scope: document
# title: Roles, sorted
# entrypoint: true
default result := {"roles": []}

result := {"roles": sort(grant - withhold)} if sound

# Nothing is granted on an input or settings that are not in their form: iterating over text is silent in one engine.
sound if {
	is_string(input.user)
	is_string(input.issuer)
	input.via in ["token", "oidc"]
	data.comity.lib.texts(input.groups)
	data.comity.lib.texts(input.roles)
	is_object(data.settings.access.roles)
	is_object(data.settings.access.issuers)
	every _, names in data.settings.access.roles {
		data.comity.lib.texts(names)
	}
}

# METADATA
# scope: rule
# title: A token of the organisation gives the roles that its admin wrote on it
grant contains role if {
	input.via == "token"
	some role in input.roles
}

# METADATA
# scope: rule
# title: Users that the settings name
grant contains role if {
	input.via == "oidc"
	some role, names in data.settings.access.roles
	input.user in names
}

# METADATA
# scope: rule
# title: Groups that the settings name, as group:NAME
grant contains role if {
	input.via == "oidc"
	some role, names in data.settings.access.roles
	some group in input.groups
	concat("", ["group:", group]) in names
}

# METADATA
# scope: rule
# title: Where the settings name issuers, nobody else's word counts
withhold contains role if {
	input.via == "oidc"
	count(data.settings.access.issuers) > 0
	not data.settings.access.issuers[input.issuer]
	some role in grant
}
