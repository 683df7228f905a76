"""What people decide, as pure functions (negotiation.md sections 3 to 5): no clock, no I/O.

Rules, in this order:
1. an item is what a person sees: a stage, a subject and one document. Its id is made of their digests, so that an id
   names one document for ever, and a vote that names another document is refused;
2. OPEN -> APPROVED | DENIED | EXPIRED | OBSOLETE. The last four are terminal: no event changes them;
3. APPROVED takes `approvals` different users, each with a voice of its own; one denial denies;
4. a vote counts in the voter's own voice if the voter has the item's role, else in the voice of somebody who has it
   and delegated it; nobody's voice approves twice, and a voice that was delegated is not delegated on;
5. whoever asked does not decide what was asked, in no voice. The organisation's local account stands for the whole
   organisation: it may decide what it asked, unless four eyes are asked (`approvals` above 1);
6. an event that was taken before changes nothing: the same object comes back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any

from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.model import LOCAL_USER
from comity_policies.document import choice_of, instant_of, items_of, line_of
from comity_policies.documents import REASONS_MAX, Reason
from comity_policies.term_rows import malformed, text_of, whole_number

STAGES = ("proposal", "agreement", "dispatch", "egress", "membership")
APPROVE, DENY = "approve", "deny"
APPROVALS_MAX = 5
DOCUMENT_BYTES_MAX = 1 << 20
USER_CHARS_MAX = 128
ROLE_CHARS_MAX = 64
REASON_CHARS_MAX = 500
DELEGATION_S_MAX = 366 * 24 * 3600
# When people are reminded: these fractions of the time from asking to the end.
REMINDERS = (0.5, 0.9)


class ReviewState(StrEnum):
    """Where an item stands."""

    OPEN = "OPEN"
    APPROVED = "APPROVED"
    DENIED = "DENIED"
    EXPIRED = "EXPIRED"
    OBSOLETE = "OBSOLETE"


@dataclass(frozen=True, slots=True)
class ReviewAsk:
    """What is put before people.

    Args:
        stage: one of `STAGES`.
        subject: hexadecimal SHA-256 of what is decided on: a proposal, an agreement, a run's step, an order, a charter.
        title: one line.
        document: what is shown, whole; its canonical digest is what a vote names.
        reasons: of the policy or term that asks.
        role: who may decide.
        approvals: how many different users, 1 to 5.
        until: RFC 3339 instant at which nobody decides any more.
        run: the run whose events tell of it, if any.
        proposal: digest of the proposal that it belongs to, if any: its asker does not decide.

    Raises:
        ComityError: `MALFORMED` if a field has not its form, `TOO_LARGE` for a document beyond 1 MiB.
    """

    stage: str
    subject: str
    title: str
    document: dict[str, Any]
    reasons: tuple[Reason, ...]
    role: str
    approvals: int
    until: str
    run: str = ""
    proposal: str = ""
    document_digest: str = field(init=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        choice_of(self.stage, STAGES)
        ids.sha256_hex(text_of(self.subject))
        line_of(self.title)
        items_of(self.reasons, REASONS_MAX)
        line_of(self.role, ROLE_CHARS_MAX)
        whole_number(self.approvals, 1, APPROVALS_MAX)
        instant_of(self.until)
        if self.proposal:
            ids.sha256_hex(text_of(self.proposal))
        data = canonical.canonical(self.document)
        if len(data) > DOCUMENT_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "the document of a review", limit_bytes=DOCUMENT_BYTES_MAX)
        digest = hashlib.sha256(data).hexdigest()
        named = hashlib.sha256(f"{self.stage}/{self.subject}/{digest}".encode()).hexdigest()
        object.__setattr__(self, "document_digest", digest)
        object.__setattr__(self, "id", f"rev-{named[:20]}")

    @classmethod
    def without_document(cls, name: str, document_digest: str, **values: Any) -> ReviewAsk:
        """Return an item that was checked when it was asked, its document left in the store: here it is empty."""
        made = cls(document={}, **values)
        object.__setattr__(made, "document_digest", document_digest)
        object.__setattr__(made, "id", name)
        return made


@dataclass(frozen=True, slots=True)
class Vote:
    """One user's decision on one document. `voice` is whose role it used; `reason` may be read by others."""

    user: str
    voice: str
    decision: str
    reason: str
    at: str
    document: str

    def __post_init__(self) -> None:
        person(self.user)
        person(self.voice)
        choice_of(self.decision, (APPROVE, DENY))
        text_of(self.reason, REASON_CHARS_MAX)
        instant_of(self.at)
        ids.sha256_hex(text_of(self.document))


@dataclass(frozen=True, slots=True)
class Review:
    """An item as it stands. `asker` is the user who asked, if it was one of ours; `why` says how it ended."""

    ask: ReviewAsk
    asked_at: str
    asker: str = ""
    state: ReviewState = ReviewState.OPEN
    votes: tuple[Vote, ...] = ()
    decided_at: str = ""
    why: str = ""

    @property
    def missing(self) -> int:
        """How many approvals are still needed, 0 once it ended."""
        return self.ask.approvals - len(self.votes) if self.state is ReviewState.OPEN else 0


@dataclass(frozen=True, slots=True)
class Voter:
    """Who wants to vote: whether the user has the item's role, and who delegated that role to the user."""

    user: str
    has_role: bool
    voices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an item ended. `reason` is one sentence for the other organisations, `document` the digest that was shown."""

    id: str
    stage: str
    subject: str
    state: ReviewState
    document: str
    reason: str
    users: tuple[str, ...] = ()
    run: str = ""

    @property
    def allowed(self) -> bool:
        """Whether as many people approved as had to; everything else is a denial."""
        return self.state is ReviewState.APPROVED


@dataclass(frozen=True, slots=True)
class Delegation:
    """`giver` lets `receiver` decide in its voice, for one role, from `since` until `until` or `ended_at`."""

    id: str
    giver: str
    receiver: str
    role: str
    since: str
    until: str
    entered_by: str
    ended_at: str = ""

    def __post_init__(self) -> None:
        for user in (self.giver, self.receiver, self.entered_by):
            person(user)
        line_of(self.role, ROLE_CHARS_MAX)
        since, until = instants.parse(self.since), instants.parse(self.until)
        if self.giver == self.receiver:
            raise malformed("nobody delegates to oneself")
        if not since < until <= since + timedelta(seconds=DELEGATION_S_MAX):
            raise malformed("a delegation ends in the future, within 366 days")

    def holds(self, now: str) -> bool:
        """Tell whether it is in force at `now`."""
        return not self.ended_at and self.since <= now < self.until


def person(user: str) -> str:
    """Return `user` if it can name a person. Raises `MALFORMED`."""
    if not line_of(user, USER_CHARS_MAX).strip():
        raise malformed("a user has a name")
    return user


def open_review(ask: ReviewAsk, now: str, asker: str = "") -> Review:
    """Return the open item. Raises `DEADLINE_PASSED` if nobody could decide in time."""
    if ask.until <= now:
        raise ComityError(ErrorCode.DEADLINE_PASSED, "there is no time for a person to decide", until=ask.until)
    return Review(ask, now, asker)


def cast(review: Review, voter: Voter, decision: str, reason: str, document: str, now: str) -> Review:
    """Return the item after a vote.

    Raises:
        ComityError: `CONFLICT` if the vote names another document or the user voted otherwise before, `FORBIDDEN` if
            the user may not decide, `ILLEGAL_EVENT` if the item has ended, `DEADLINE_PASSED`, `MALFORMED`.
    """
    choice_of(decision, (APPROVE, DENY))
    if document != review.ask.document_digest:
        raise ComityError(ErrorCode.CONFLICT, "the vote names another document than the one that is asked about")
    before = next((vote for vote in review.votes if vote.user == voter.user), None)
    if before is not None and before.decision == decision:
        return review
    if review.state is not ReviewState.OPEN:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, f"it has ended: {review.state.lower()}", state=str(review.state))
    if before is not None:
        raise ComityError(ErrorCode.CONFLICT, "you have voted otherwise; another person may still deny")
    if now >= review.ask.until:
        raise ComityError(ErrorCode.DEADLINE_PASSED, until=review.ask.until)
    if decision == DENY and not reason.strip():
        raise malformed("a denial gives a reason")
    vote = Vote(voter.user, _voice(review, voter, decision), decision, reason, now, document)
    voted = replace(review, votes=(*review.votes, vote))
    if decision == DENY:
        return _ended(voted, ReviewState.DENIED, reason, now)
    if len(voted.votes) >= review.ask.approvals:
        said = next((each.reason for each in reversed(voted.votes) if each.reason), "")
        return _ended(voted, ReviewState.APPROVED, said, now)
    return voted


def expire(review: Review, now: str) -> Review:
    """Return the item after its end came; early or late is harmless."""
    if review.state is not ReviewState.OPEN or now < review.ask.until:
        return review
    return _ended(review, ReviewState.EXPIRED, "nobody decided in time", now)


def make_obsolete(review: Review, why: str, now: str) -> Review:
    """Return the item after there is nothing left to decide."""
    if review.state is not ReviewState.OPEN:
        return review
    return _ended(review, ReviewState.OBSOLETE, why[:REASON_CHARS_MAX], now)


def verdict_of(review: Review) -> Verdict | None:
    """Return how an item ended, None while it is open."""
    if review.state is ReviewState.OPEN:
        return None
    ask = review.ask
    users = tuple(vote.user for vote in review.votes)
    return Verdict(ask.id, ask.stage, ask.subject, review.state, ask.document_digest, review.why, users, ask.run)


def voices_of(delegations: Iterable[Delegation], user: str, role: str, now: str) -> tuple[str, ...]:
    """Return who delegated `role` to `user`, in force at `now`, sorted."""
    found = {each.giver for each in delegations if each.receiver == user and each.role == role and each.holds(now)}
    return tuple(sorted(found))


def next_reminder(review: Review, now: str) -> str:
    """Return when people are reminded next after `now`, "" if they are not."""
    if review.state is not ReviewState.OPEN:
        return ""
    start, end = instants.parse(review.asked_at), instants.parse(review.ask.until)
    due = (instants.to_text(start + (end - start) * part) for part in REMINDERS)
    return next((at for at in due if at > now), "")


def excluded(review: Review) -> str:
    """Return the user who must not decide this item, "" if everybody may (rule 5)."""
    alone = review.asker == LOCAL_USER and review.ask.approvals == 1
    return "" if alone else review.asker


def _voice(review: Review, voter: Voter, decision: str) -> str:
    """Return in whose voice a user votes; a denial may use one that was used to approve. Raises `FORBIDDEN`."""
    barred = excluded(review)
    if barred and voter.user == barred:
        raise ComityError(ErrorCode.FORBIDDEN, "whoever asked does not decide; another person has to")
    used = {vote.voice for vote in review.votes} if decision == APPROVE else set[str]()
    own: tuple[str, ...] = (voter.user,) if voter.has_role else ()
    free = [voice for voice in (*own, *voter.voices) if voice not in used and voice != barred]
    if not free:
        detail = f"this takes the role {review.ask.role}, or a delegation by somebody who has it and has not voted"
        raise ComityError(ErrorCode.FORBIDDEN, detail, role=review.ask.role)
    return free[0]


def _ended(review: Review, state: ReviewState, why: str, now: str) -> Review:
    return replace(review, state=state, why=why, decided_at=now)
