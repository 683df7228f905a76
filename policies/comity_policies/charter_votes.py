"""How members decide on the next charter: a proposal, votes, and how it ended. Documents and judgement, no I/O.

Rules (negotiation.md section 6):
1. a member that may vote proposes the whole next charter, names the kinds of decision in it, and until when it is open;
2. a vote is about one charter, by its digest: a yes is a BLS signature over it, a no gives a reason; what a member said
   once of a charter stays said;
3. enough yes make a certificate; so many no that enough cannot be reached end it; the deadline ends it in any case, and
   who has not voted by then is named;
4. the operator has no vote: what the coordinator states (in force, ended) follows from the members' votes or counts for
   nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import from_base64
from comity_crypto.quorum import bls_verify, message_for
from comity_crypto.statements import Statement, verify_statement
from comity_policies.charter import DECISION_KINDS, Charter, check_follows, enough, reachable
from comity_policies.document import Document, Part, choice_of, digest_of, instant_of, items_of, line_of, org_set
from comity_policies.term_rows import malformed, text_of

PROPOSAL = "charter-proposal"
VOTE = "charter-vote"
ENDED = "charter-ended"
OPEN_DAYS_MAX = 90
REASON_CHARS_MAX = 400
BLS_BYTES = 96
PROPOSAL_BYTES_MAX = 512 << 10
VOTE_BYTES_MAX = 4_096


class Outcome(StrEnum):
    """Where a charter proposal stands."""

    OPEN = "OPEN"
    CARRIED = "CARRIED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    SUPERSEDED = "SUPERSEDED"


@dataclass(frozen=True, slots=True)
class CharterProposal(Document):
    """The next charter, put to the vote: which kinds of decision it takes, why, and until when votes count."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"charter": (Charter, None)}

    charter: Charter
    kinds: tuple[str, ...]
    reason: str
    deadline: str

    def __post_init__(self) -> None:
        kinds = [choice_of(kind, DECISION_KINDS) for kind in items_of(self.kinds, len(DECISION_KINDS))]
        if not kinds or kinds != sorted(set(kinds)):
            raise malformed("the kinds of decision are named once each, in order")
        self._fix(kinds=tuple(kinds), deadline=instant_of(self.deadline))
        line_of(self.reason, REASON_CHARS_MAX)


@dataclass(frozen=True, slots=True)
class CharterVote(Document):
    """What one member says of the charter with this digest; `bls` is base64 of its signature, None for a denial."""

    charter: str
    allow: bool
    bls: str | None
    reason: str

    def __post_init__(self) -> None:
        digest_of(self.charter)
        line_of(self.reason, REASON_CHARS_MAX)
        if not isinstance(self.allow, bool) or self.allow != (self.bls is not None):
            raise malformed("a yes carries a signature, and a no carries none")
        if self.bls is None and not self.reason:
            raise malformed("a denial gives its reason")
        if self.bls is not None:
            from_base64(text_of(self.bls), what="bls", size_bytes=BLS_BYTES)

    @property
    def signature(self) -> bytes:
        """The BLS signature, 96 bytes. Raises `MALFORMED` for a denial."""
        return from_base64(self.bls, what="bls", size_bytes=BLS_BYTES)


@dataclass(frozen=True, slots=True)
class CharterEnded(Document):
    """A proposal that led to no charter: the digest of its statement, how it ended, and who had said what."""

    charter: str
    proposal: str
    state: str
    allowed: tuple[str, ...]
    denied: tuple[str, ...]
    missing: tuple[str, ...]

    def __post_init__(self) -> None:
        digest_of(self.charter)
        digest_of(self.proposal)
        choice_of(self.state, (Outcome.DENIED, Outcome.EXPIRED, Outcome.SUPERSEDED))
        self._fix(allowed=org_set(self.allowed), denied=org_set(self.denied), missing=org_set(self.missing))


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes on a proposal made under `previous`: organisation -> yes or no."""

    previous: Charter
    proposal: CharterProposal
    votes: Mapping[str, bool]

    @property
    def allowed(self) -> tuple[str, ...]:
        """Who said yes, sorted."""
        return tuple(sorted(name for name, allow in self.votes.items() if allow))

    @property
    def denied(self) -> tuple[str, ...]:
        """Who said no, sorted."""
        return tuple(sorted(name for name, allow in self.votes.items() if not allow))

    @property
    def awaited(self) -> tuple[str, ...]:
        """Members that may vote and have not, sorted."""
        return tuple(name for name in self.previous.voters if name not in self.votes)

    def judge(self, now: str) -> Outcome:
        """Return how it stands at the instant `now`; votes that are there count even after the deadline."""
        charter = self.proposal.charter
        if enough(self.previous, charter, self.allowed):
            return Outcome.CARRIED
        if not reachable(self.previous, charter, self.denied):
            return Outcome.DENIED
        return Outcome.EXPIRED if now >= self.proposal.deadline else Outcome.OPEN


def read_proposal(said: Statement, previous: Charter) -> CharterProposal:
    """Return the proposal in a statement, after everything that holds whenever it is read.

    Args:
        said: the statement; its signature is checked here.
        previous: the charter that it would replace.

    Raises:
        ComityError: `NOT_A_MEMBER`, `SUSPENDED`, `SIGNATURE_INVALID`, `MALFORMED`; `CHARTER_INVALID` if it does not
            follow, or names other kinds of decision than it takes.
    """
    check_voter(said, previous, PROPOSAL)
    proposal = CharterProposal.from_json(said.body)
    if tuple(sorted(check_follows(previous, proposal.charter))) != proposal.kinds:
        raise ComityError(ErrorCode.CHARTER_INVALID, "it names other kinds of decision than it takes")
    latest = instants.to_text(instants.parse(said.issued_at) + timedelta(days=OPEN_DAYS_MAX))
    if not said.issued_at < proposal.deadline <= latest:
        raise malformed(f"a charter proposal is open for at most {OPEN_DAYS_MAX} days")
    return proposal


def read_vote(said: Statement, previous: Charter) -> CharterVote:
    """Return the vote in a statement of a member that may vote under `previous`; both signatures are checked.

    Raises:
        ComityError: `NOT_A_MEMBER`, `SUSPENDED`, `SIGNATURE_INVALID`, `MALFORMED`.
    """
    check_voter(said, previous, VOTE)
    vote = CharterVote.from_json(said.body)
    key = previous.member(said.issuer).keys.certificate
    if vote.allow and not bls_verify(key, message_for("charter", vote.charter), vote.signature):
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the signature over the charter does not hold")
    return vote


def check_voter(said: Statement, previous: Charter, kind: str) -> None:
    """Check that a statement of `kind` is signed by a member that may vote."""
    key = previous.member(said.issuer).keys.statement
    verify_statement(said, key, kind=kind, consortium=previous.consortium)
    previous.check_active(said.issuer)
