"""A charter proposal as people and programs see it: what changes, who said what, whose vote is awaited, until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comity_node.governance.ballot_store import Known
from comity_node.governance.proposing import differences
from comity_node.governance.store import CharterStore
from comity_policies.charter import Charter, genesis_name
from comity_policies.charter_votes import Ballot, Outcome


def describe(
    known: Known, charters: CharterStore, votes: Mapping[str, bool], reasons: Mapping[str, str], now: str
) -> dict[str, Any]:
    """Return the view of a proposal; `state` is computed from the chain, the votes and the clock (`now`)."""
    charter, previous = known.charter, charters.at(str(known.charter.previous))
    assert previous is not None, "a proposal enters with its predecessor"
    ballot = Ballot(previous, known.proposal, votes)
    in_force = charters.at(charter.digest) is not None
    state = _state(ballot, in_force, charters.current() is previous, now)
    return {
        "digest": charter.digest,
        "name": genesis_name(charter),
        "version": charter.version,
        "attempt": charter.attempt,
        "kinds": list(known.proposal.kinds),
        "proposer": known.statement.issuer,
        "reason": known.proposal.reason,
        "proposed_at": known.statement.issued_at,
        "deadline": known.proposal.deadline,
        "state": str(state),
        "in_force": in_force,
        "allowed": list(ballot.allowed),
        "denied": list(ballot.denied),
        "awaited": list(ballot.awaited) if state is Outcome.OPEN else [],
        "missing": list(ballot.awaited) if state in (Outcome.EXPIRED, Outcome.DENIED) else [],
        "reasons": dict(reasons),
        "needed": {kind: str(previous.rule(kind)) for kind in known.proposal.kinds},
        "differences": differences(previous, charter),
        "charter": charter.to_json(),
        "then": _then(state),
    }


def charter_view(charter: Charter, genesis: str | None) -> dict[str, Any]:
    """Return the charter in force for people: who may decide what, who is in it."""
    return {
        "digest": charter.digest,
        "name": genesis_name(charter),
        "genesis": genesis,
        "version": charter.version,
        "members": [
            {
                "org": member.org,
                "title": member.title,
                "owner": member.owner,
                "fingerprint": member.keys.fingerprint(),
                "suspended": member.org in charter.suspended,
            }
            for member in charter.members
        ],
        "quorum": {kind: str(rule) for kind, rule in charter.quorum.items()},
        "charter": charter.to_json(),
    }


def _state(ballot: Ballot, in_force: bool, still_next: bool, now: str) -> Outcome:
    if in_force:
        return Outcome.CARRIED
    return ballot.judge(now) if still_next else Outcome.SUPERSEDED


def _then(state: Outcome) -> str:
    """What happens next, in one sentence."""
    return {
        Outcome.OPEN: "at the deadline it ends, and who has not voted is named",
        Outcome.CARRIED: "enough members said yes: it is in force once the coordinator has written it down",
        Outcome.DENIED: "too many said no: propose something else, or the same again",
        Outcome.EXPIRED: "the deadline passed: it can be proposed again, and the votes given still count",
        Outcome.SUPERSEDED: "another charter came into force: propose it again on top of that one",
    }[state]
