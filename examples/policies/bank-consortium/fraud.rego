# Banks fight fraud together, and two people of each bank look at it first.
# Whatever the shipped rules permit still goes before two different people of risk or compliance (`reviews` in
# data.json). Accounts of people never take part by name: columns that identify somebody are denied outright.
package comity.proposal

# Columns that identify a customer, wherever a dataset has them.
identifying := {"iban", "account", "name", "email", "phone", "address", "date_of_birth"}

# METADATA
# scope: rule
# title: No column identifies a customer
deny contains {
	"rule": "bank.identifying",
	"code": "IDENTIFYING_COLUMN",
	"message": sprintf("column %s of %s identifies customers", [name, ask.dataset]),
} if {
	some ask in input.proposal.datasets
	ask.org == input.me
	some name in ask.columns
	name in identifying
}

# METADATA
# scope: rule
# title: Every agreement is looked at by two people
review contains {
	"rule": "bank.four-eyes",
	"code": "FOUR_EYES",
	"message": "two people of risk or compliance look at every agreement",
} if {
	input.me != ""
}
