"""Obligation 3 of `history.py`: how each later charter was proposed, voted on and put into force, or was not.

1. proposals, votes and the ends of proposals are about the charter that would replace the one in force at their place;
2. a member says yes or no to a charter once, and no yes comes after the proposal's end;
3. a charter in force carries the statements of those whose signatures its certificate joins, if it carries any;
4. the coordinator ends a proposal only where the votes before it, or the deadline, end it, and names who said what;
5. a charter that names another log names where the former one ended: these entries have that root there, and what
   follows up to the charter begins with a proposal or vote.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.charter_votes import (
    ENDED,
    PROPOSAL,
    VOTE,
    Ballot,
    CharterEnded,
    CharterProposal,
    Outcome,
    read_proposal,
    read_vote,
)

KINDS = frozenset({PROPOSAL, VOTE, ENDED})
VOTES_MAX = 64
ENDS_KEPT = 4_096


@dataclass(slots=True)
class _Put:
    """A charter that was put to the vote, perhaps several times: open proposals by statement digest, and the votes."""

    previous: Charter
    open: dict[str, CharterProposal] = field(default_factory=dict)
    votes: dict[str, bool] = field(default_factory=dict)


@dataclass(slots=True)
class Decided:
    """One version of the charter, for people: which kinds of decision led there, and who signed."""

    version: int
    digest: str
    kinds: tuple[str, ...]
    signers: tuple[str, ...]


@dataclass(slots=True)
class CharterBook:
    """What was decided so far."""

    put: dict[str, _Put] = field(default_factory=dict)
    chain: list[Decided] = field(default_factory=list)
    ends: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=ENDS_KEPT))

    def may_have_ended(self, size: int, root: bytes) -> None:
        """Note the log before a proposal or vote: a successor takes over there, and begins with the vote on itself."""
        self.ends.append((size, root))

    def enter(self, statement: Statement, charter: Charter) -> None:
        """Check one statement under the charter in force at its place. Raises `LEDGER_INVALID` and more."""
        if statement.kind == PROPOSAL:
            proposal = read_proposal(statement, charter)
            put = self.put.setdefault(proposal.charter.digest, _Put(charter))
            put.open[statement.digest] = proposal
        elif statement.kind == VOTE:
            vote = read_vote(statement, charter)
            found = self._put(vote.charter, charter)
            if statement.issuer in found.votes:
                raise _broken(f"{statement.issuer} voted twice on one charter")
            if vote.allow and not found.open:
                raise _broken(f"{statement.issuer} said yes after the end")
            found.votes[statement.issuer] = vote.allow
        else:
            self._ended(CharterEnded.from_json(statement.body), statement.issued_at)

    def in_force(
        self,
        previous: Charter,
        charter: Charter,
        certificate: QuorumCertificate,
        signatures: object,
    ) -> None:
        """Check a charter whose certificate was verified, with the statements that it carries (rules 3 and 5)."""
        if signatures:
            if not isinstance(signatures, list) or len(signatures) > VOTES_MAX:
                raise _broken("a charter carries a short list of votes")
            said = [Statement.from_json(each) for each in signatures]
            votes = [read_vote(each, previous) for each in said]
            if any(not vote.allow or vote.charter != charter.digest for vote in votes):
                raise _broken("a charter carries a vote that is none for it")
            if sorted(each.issuer for each in said) != list(certificate.signers):
                raise _broken("a charter carries other votes than its certificate joins")
        moved = (previous.log_name, previous.log_key) != (charter.log_name, charter.log_key)
        former = charter.adopted
        if moved and former is not None and (former.size, bytes.fromhex(former.root)) not in self.ends:
            raise _broken("these entries do not have the former log's end", size=former.size)

    def decided(self, charter: Charter, kinds: tuple[str, ...], signers: tuple[str, ...]) -> None:
        """Note a version for the report."""
        self.chain.append(Decided(charter.version, charter.digest, kinds, signers))

    def _put(self, digest: str, charter: Charter) -> _Put:
        found = self.put.get(digest)
        if found is None or found.previous.digest != charter.digest:
            raise _broken("a vote on a charter that was not proposed under the one in force")
        return found

    def _ended(self, ended: CharterEnded, at: str) -> None:
        found = self.put.get(ended.charter)
        proposal = None if found is None else found.open.pop(ended.proposal, None)
        if found is None or proposal is None:
            raise _broken("the end of a proposal that is not open")
        ballot = Ballot(found.previous, proposal, found.votes)
        if (ended.allowed, ended.denied, ended.missing) != (ballot.allowed, ballot.denied, ballot.awaited):
            raise _broken("an end that counts other votes than there are")
        overtaken = self.chain[-1].version >= proposal.charter.version
        if ended.state == Outcome.SUPERSEDED:
            if not overtaken or self.chain[-1].digest == ended.charter:
                raise _broken("nothing has overtaken this proposal")
        elif overtaken or ballot.judge(at) != ended.state:
            raise _broken(f"the votes do not end this proposal as {ended.state}")


def _broken(detail: str, **facts: str | int) -> ComityError:
    return ComityError(ErrorCode.LEDGER_INVALID, detail, **facts)
