# Work on health data needs a permit that names it.
# A data authority issues permits: for one purpose, to one organisation and persons of it, on named datasets, until an
# instant. Whatever no permit covers is denied; what one covers is bound to its expiry and its minimum cohort.
package comity.proposal

# The permits in force, by number. Withdraw one by taking it out and `comity policy reload`.
permits := {
	"2029-0117": {
		"proposer": "institute",
		"purpose": "public-health",
		"persons": ["ada@institute.example", "grace@institute.example"],
		"datasets": ["screenings"],
		"min_cohort": 100,
		"not_after": "2030-06-30T00:00:00Z",
	},
	"2029-0204": {
		"proposer": "ministry",
		"purpose": "statistics",
		"persons": ["mary@ministry.example"],
		"datasets": ["screenings", "diagnoses"],
		"min_cohort": 500,
		"not_after": "2029-12-31T00:00:00Z",
	},
}

# METADATA
# scope: rule
# title: A permit covers the proposal
deny contains {
	"rule": "permit.none",
	"code": "NO_PERMIT",
	"message": sprintf("no permit in force lets %s use this data for %s", [input.proposer, input.proposal.purpose]),
} if {
	count(ours) > 0
	count(covering) == 0
}

# METADATA
# scope: rule
# title: The proposal names the persons who will see the result
deny contains {
	"rule": "permit.persons",
	"code": "PERSONS_UNNAMED",
	"message": "a proposal on health data names the persons who will see the result (--person)",
} if {
	count(ours) > 0
	not names_persons
}

names_persons if {
	is_array(input.proposal.persons)
	count(input.proposal.persons) > 0
}

# The datasets of this organisation that are asked for.
ours contains ask.dataset if {
	some ask in input.proposal.datasets
	ask.org == input.me
}

covering contains number if {
	some number, permit in permits
	permit.proposer == input.proposer
	permit.purpose == input.proposal.purpose
	input.now < permit.not_after
	every dataset in ours {
		dataset in permit.datasets
	}
	every person in input.proposal.persons {
		person in permit.persons
	}
}

# METADATA
# scope: rule
# title: The agreement ends when the permit does
# description: If several cover it, the strictest of each holds, so that a proposal cannot pick the weaker one.
own_terms["not_after"] := sort(ends)[0] if count(covering) > 0

ends := [permits[number].not_after | some number in covering]

# METADATA
# scope: rule
# title: Behind every released number stand as many records as the permit asks for
own_terms["min_cohort"] := cohorts if count(covering) > 0

cohorts[name] := max(least) if {
	some ask in input.proposal.datasets
	ask.org == input.me
	name := data.comity.proposal.key(ask)
}

least := [permits[number].min_cohort | some number in covering]
