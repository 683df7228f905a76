# Everybody may propose, and everybody gets the result.
# A network of universities shares what comes out: a proposal whose result goes to some of its organisations only is
# denied. Every app is looked at once; a listed one runs without anybody's word.
package comity.proposal

# METADATA
# scope: rule
# title: The result goes to everyone who takes part
deny contains {
	"rule": "open.result",
	"code": "RESULT_WITHHELD",
	"message": sprintf("%s takes part and does not get the result", [org]),
} if {
	some org in array.concat(input.proposal.required, input.proposal.optional)
	not gets_result(org)
}

# Terms that do not speak of recipients leave the result to everyone.
gets_result(_) if not input.proposal.terms.result_recipients

gets_result(org) if org in input.proposal.terms.result_recipients
