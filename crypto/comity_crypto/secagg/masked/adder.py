"""The coordinator's part of a masked sum: it closes the roster, adds vectors, lists who dropped out. It has no secret.

1. The roster is everyone who is ready, closed when all are or when the time is up and the minimum is there.
2. An upload counts if it is, byte for byte, what its organisation committed to. The sum is closed when all uploads are
   there; or when the time is up, or parties gave up, and enough uploads are there: then without the others.
3. One list and one aggregate per session. What it adds is uniform noise to it (`masked_words` 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import (
    Audience,
    BlobReady,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    Send,
    StartAdd,
    Tick,
    UploadStored,
    WorkFailed,
)
from comity_crypto.secagg.frame.messages import Abort, Roster
from comity_crypto.secagg.masked.messages import MaskedNotice, MaskedOffer, MaskedReady
from comity_crypto.secagg.masked.transcript import MaskedTranscript


class Phase(StrEnum):
    """What the adder waits for."""

    READY = "ready"
    SIGNATURES = "signatures"
    UPLOADS = "uploads"
    SUM = "sum"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)


@dataclass(frozen=True)
class MaskedAdderState:
    """Everything the machine knows: digests and sizes, never a value."""

    phase: Phase
    seen: MaskedTranscript
    limits: Limits
    deadline: float
    uploads: Mapping[str, UploadStored] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    total: BlobReady | None = None

    @property
    def offer(self) -> MaskedOffer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[MaskedAdderState, list[Output]]


def start(offer: MaskedOffer, *, now: float, limits: Limits | None = None) -> Step:
    """Begin a session with the lead's signed offer."""
    limits = limits or Limits()
    return MaskedAdderState(Phase.READY, MaskedTranscript(offer), limits, now + limits.ready_s), []


def awaited(state: MaskedAdderState) -> tuple[str, ...]:
    """Return the organisations that the session waits for now, for status pages."""
    if state.phase is Phase.READY:
        return state.seen.missing(MaskedReady)
    if state.phase in (Phase.SIGNATURES, Phase.UPLOADS):
        return tuple(org for org in state.seen.members if org not in state.uploads)
    return ()


def step(state: MaskedAdderState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    if isinstance(event, Tick):
        return (state, []) if now < state.deadline else _late(state, now)
    state = _absorb(state, event)
    try:
        return _advance(state, now)
    except ComityError as error:
        return _fail(state, error)


def _absorb(state: MaskedAdderState, event: Event) -> MaskedAdderState:
    if isinstance(event, Received):
        return replace(state, seen=state.seen.absorb(event.issuer, event.message))
    if isinstance(event, UploadStored):
        if event.org not in state.offer.parties:
            raise ComityError(ErrorCode.FORBIDDEN, "not a party of this masked sum", org=event.org)
        before = state.uploads.get(event.org)
        if before is not None and before != event:
            raise ComityError(ErrorCode.CONFLICT, "the party has uploaded something else before", org=event.org)
        return replace(state, uploads={**state.uploads, event.org: event})
    if isinstance(event, BlobReady) and state.phase is Phase.SUM:
        return replace(state, total=event)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the adder is doing", phase=state.phase)


def _late(state: MaskedAdderState, now: float) -> Step:
    """The time is up: go on without who is missing, where that is allowed."""
    if state.phase is Phase.READY and len(_ready(state)) >= state.offer.minimum:
        return _close(state, now)
    if state.phase is Phase.UPLOADS and _enough(state):
        return _add(state, now)
    error = ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}")
    return _fail(state, error, awaited(state))


def _advance(state: MaskedAdderState, now: float) -> Step:
    seen = state.seen
    seen.check_over()
    if state.phase is Phase.READY and not seen.missing(MaskedReady):
        return _close(state, now)
    if state.phase is Phase.SIGNATURES and seen.set_signed():
        state = replace(state, phase=Phase.UPLOADS, deadline=now + state.limits.step_s)
    if state.phase is Phase.UPLOADS:
        coming = [org for org in seen.members if org not in _good(state) and seen.get(Abort, org) is None]
        if not coming and _enough(state):
            return _add(state, now)
    if state.phase is Phase.SUM and state.total is not None and seen.roster is not None:
        notice = MaskedNotice(
            session=state.offer.digest,
            roster=seen.roster.digest,
            commitments=seen.commitments_digest,
            dropped=tuple(org for org in seen.members if org not in state.added),
            aggregate=state.total.digest,
            size_bytes=state.total.size_bytes,
        )
        state = replace(state, phase=Phase.DONE, seen=seen.with_notice(notice))
        return state, [Send(Audience.ALL, notice), Finished(state.added)]
    return state, []


def _good(state: MaskedAdderState) -> tuple[str, ...]:
    """Return the members whose uploads are what they committed to; another upload is none."""
    return tuple(
        org
        for org, promised in state.seen.commitments.items()
        if (stored := state.uploads.get(org)) is not None
        and (stored.digest, stored.size_bytes) == (promised.upload, promised.size_bytes)
    )


def _enough(state: MaskedAdderState) -> bool:
    return len(_good(state)) >= max(state.seen.needed, state.offer.minimum)


def _add(state: MaskedAdderState, now: float) -> Step:
    added = _good(state)
    return replace(state, phase=Phase.SUM, added=added, deadline=now + state.limits.step_s), [StartAdd(added)]


def _ready(state: MaskedAdderState) -> dict[str, MaskedReady]:
    found = ((org, state.seen.get(MaskedReady, org)) for org in state.offer.parties)
    return {org: item for org, item in found if item is not None}


def _close(state: MaskedAdderState, now: float) -> Step:
    roster = Roster(state.offer.digest, tuple((org, item.digest) for org, item in sorted(_ready(state).items())))
    wait_s = state.limits.values_s + 3 * state.limits.step_s
    state = replace(state, phase=Phase.SIGNATURES, seen=state.seen.with_roster(roster), deadline=now + wait_s)
    return state, [Send(Audience.ALL, roster)]


def _fail(state: MaskedAdderState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    return replace(state, phase=Phase.FAILED), [Failed(error, missing)]
