"""Steps (a) to (d) of a contributor, which all profiles have (secure-aggregation.md section 4).

1. Signs one roster per round, and only one that names it and every member's announcement as it saw them.
2. Makes its upload only when every member has signed H(R), hands it out only when every member has signed the set of
   commitments. Before that a session may be restarted with fewer parties, under a fresh key.
3. A release is journalled before the upload. After it, the same order is answered again only with the same integers:
   otherwise the difference of two sums would be somebody's update.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import (
    Audience,
    BlobReady,
    Event,
    Failed,
    RecordRelease,
    Release,
    Send,
    StartUpload,
    ValuesReady,
)
from comity_crypto.secagg.frame.machine import Over, R, RoundMachine, State, Step, Turn
from comity_crypto.secagg.frame.messages import Commitment, CommitmentsSignature, RosterSignature, RoundOffer


@dataclass(frozen=True, kw_only=True)
class PartyState(State[R]):
    """What contributors of all profiles know. The digest of the values is not shown by repr."""

    release: Release | None = None  # what the journal holds of this agreement and order
    values_digest: str = field(default="", repr=False)
    upload: BlobReady | None = None

    def may_join(self, members: tuple[str, ...]) -> bool:
        """Whether an update that has left before may go into a sum of these members."""
        return self.release is None or self.release.parties == members


P = TypeVar("P", bound=PartyState[Any])


def check_offer(
    me: str,
    offer: RoundOffer,
    order_digest: str,
    *,
    fits: bool,
    used_keys: Collection[str],
    kept: Collection[str],
) -> None:
    """Refuse an offer that is not for this party, order and size, or not fresh. `kept`: orders of what was journalled.

    Raises:
        ComityError: `FORBIDDEN` (not a party), `ROSTER_MISMATCH` (another order, or the size does not fit),
            `ORDER_REPLAYED` (the round key or secret was used before), `INTERNAL` (`kept` is of another order).
    """
    if me not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation")
    if offer.order_digest != order_digest or not fits:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is for another order or size")
    if offer.key_id in used_keys:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "a round key is used once")
    if any(each != order_digest for each in kept):
        raise ComityError(ErrorCode.INTERNAL, "what was journalled is of another order")


def say(state: P, message: Body, to: Audience = Audience.ALL) -> Step[P]:
    """Record an own message and send it."""
    return replace(state, seen=state.seen.absorb(state.me, message)), [Send(to, message)]


def left_out(state: P, what: str) -> Step[P]:
    """End a session that goes on without this organisation; nobody else has to hear of it."""
    failed = Failed(ComityError(ErrorCode.TIMEOUT, f"{what} was closed without this organisation"))
    return replace(state.cleared(), phase=Over.FAILED), [failed]


class ContributorMachine(RoundMachine[P]):
    """A contributor; profiles add what lies between the steps that all have."""

    ROLE = "the contributor"
    PATIENT = False
    BLOB: ClassVar[StrEnum]  # the phase in which the upload is made

    def take(self, state: P, event: Event, now: float) -> Step[P] | None:
        """Take values and upload, each once."""
        if isinstance(event, ValuesReady) and not state.values_digest:
            return replace(state, values_digest=event.values_digest), []
        if isinstance(event, BlobReady) and state.phase is self.BLOB:
            return replace(state, upload=event), []
        return super().take(state, event, now)


# -- turns; each takes the phase that follows


def sign_roster(phase: StrEnum) -> Turn[P]:
    """(b) Sign H(R)."""

    def turn(state: P) -> Step[P] | None:
        seen = state.seen
        if not seen.ready():
            return None
        if state.me not in seen.members:
            return left_out(state, "the roster")
        if not state.may_join(seen.members):
            raise ComityError(ErrorCode.ORDER_REPLAYED, "this update has left for another roster")
        return say(replace(state, phase=phase), RosterSignature(seen.offer.digest, seen.roster_digest))

    return turn


def check_values(state: PartyState[Any]) -> None:
    """Refuse other integers than those that have left for this order. Raises `ORDER_REPLAYED`."""
    if state.release is not None and state.release.values_digest != state.values_digest:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "another update has left for this order")


def commit(phase: StrEnum) -> Turn[P]:
    """(c) Commit to the upload."""

    def turn(state: P) -> Step[P] | None:
        seen, upload = state.seen, state.upload
        if upload is None:
            return None
        said = Commitment(seen.offer.digest, seen.roster_digest, upload.digest, upload.size_bytes)
        return say(replace(state, phase=phase), said)

    return turn


def sign_set(phase: StrEnum) -> Turn[P]:
    """(d) Sign the set of commitments."""

    def turn(state: P) -> Step[P] | None:
        seen = state.seen
        if not seen.committed():
            return None
        said = CommitmentsSignature(seen.offer.digest, seen.roster_digest, seen.commitments_digest)
        return say(replace(state, phase=phase), said)

    return turn


def hand_out(phase: StrEnum) -> Turn[P]:
    """Journal the release, then upload."""

    def turn(state: P) -> Step[P] | None:
        seen, upload = state.seen, state.upload
        if upload is None or not seen.set_signed():
            return None
        release = Release(seen.offer.order_digest, seen.members, state.values_digest)
        state = replace(state, phase=phase, release=release)
        return state, [RecordRelease(release), StartUpload(upload.digest, upload.size_bytes)]

    return turn
