"""The aggregator: the coordinator's part of a secure sum. It closes the roster, adds, and holds no key of any kind.

1. The roster is everyone who is ready, closed when all are or when the time is up and the minimum is there.
2. An upload counts if it is, byte for byte, what its organisation committed to; nothing is added before all are there.
3. One aggregate per session.
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
from comity_crypto.secagg.frame.messages import Roster
from comity_crypto.secagg.lead_key.messages import AggregateNotice, Offer, Ready
from comity_crypto.secagg.lead_key.transcript import Transcript


class Phase(StrEnum):
    """What the aggregator waits for."""

    READY = "ready"
    UPLOADS = "uploads"
    SUM = "sum"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)


@dataclass(frozen=True)
class AggregatorState:
    """Everything the machine knows: digests and sizes, never a value."""

    phase: Phase
    seen: Transcript
    limits: Limits
    deadline: float
    uploads: Mapping[str, UploadStored] = field(default_factory=dict)
    total: BlobReady | None = None

    @property
    def offer(self) -> Offer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[AggregatorState, list[Output]]


def start(offer: Offer, *, now: float, limits: Limits | None = None) -> Step:
    """Begin a session with the lead's signed offer (the coordinator gets it beside the order, without the key)."""
    limits = limits or Limits()
    return AggregatorState(Phase.READY, Transcript(offer), limits, now + limits.ready_s), []


def awaited(state: AggregatorState) -> tuple[str, ...]:
    """Return the organisations that the session waits for now, for status pages."""
    if state.phase is Phase.READY:
        return state.seen.missing(Ready)
    if state.phase is Phase.UPLOADS:
        return tuple(org for org in state.seen.members if org not in state.uploads)
    return ()


def step(state: AggregatorState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        if state.phase is not Phase.READY or len(_ready(state)) < state.offer.minimum:
            return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), awaited(state))
        return _close(state, now)
    state = _absorb(state, event)
    try:
        return _advance(state, now)
    except ComityError as error:
        return _fail(state, error)


def _absorb(state: AggregatorState, event: Event) -> AggregatorState:
    if isinstance(event, Received):
        return replace(state, seen=state.seen.absorb(event.issuer, event.message))
    if isinstance(event, UploadStored):
        return _stored(state, event)
    if isinstance(event, BlobReady) and state.phase is Phase.SUM:
        return replace(state, total=event)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the aggregator is doing", phase=state.phase)


def _stored(state: AggregatorState, event: UploadStored) -> AggregatorState:
    """Record an upload; one that overtakes signatures is judged when they are there. Raises `FORBIDDEN`, `CONFLICT`."""
    if event.org not in state.offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "not a party of this secure sum", org=event.org)
    before = state.uploads.get(event.org)
    if before is not None and before != event:
        raise ComityError(ErrorCode.CONFLICT, "the party has uploaded something else before", org=event.org)
    state = replace(state, uploads={**state.uploads, event.org: event})
    _judge(state)
    return state


def _judge(state: AggregatorState) -> None:
    """Raise `PAYLOAD_DIGEST` if an upload is not what its organisation committed to."""
    if state.phase is not Phase.UPLOADS or not state.seen.set_signed():
        return
    for org, promised in state.seen.commitments.items():
        upload = state.uploads.get(org)
        if upload is not None and (promised.upload, promised.size_bytes) != (upload.digest, upload.size_bytes):
            raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the upload is not what was committed to", org=org)


def _advance(state: AggregatorState, now: float) -> Step:
    state.seen.check_split()
    gone = state.seen.aborted()
    if gone:
        return _fail(state, ComityError(ErrorCode(gone[1].code), "a party gave up", org=gone[0]), (gone[0],))
    if state.phase is Phase.READY and not state.seen.missing(Ready):
        return _close(state, now)
    _judge(state)
    if state.phase is Phase.UPLOADS and state.seen.set_signed() and not awaited(state):
        return replace(state, phase=Phase.SUM, deadline=now + state.limits.step_s), [StartAdd(state.seen.members)]
    if state.phase is Phase.SUM and state.total is not None and state.seen.roster is not None:
        notice = AggregateNotice(
            session=state.offer.digest,
            roster=state.seen.roster.digest,
            commitments=state.seen.commitments_digest,
            aggregate=state.total.digest,
            size_bytes=state.total.size_bytes,
        )
        state = replace(state, phase=Phase.DONE, seen=state.seen.with_notice(notice))
        return state, [Send(Audience.ALL, notice), Finished(state.seen.members)]
    return state, []


def _ready(state: AggregatorState) -> dict[str, Ready]:
    found = ((org, state.seen.get(Ready, org)) for org in state.offer.parties)
    return {org: item for org, item in found if item is not None}


def _close(state: AggregatorState, now: float) -> Step:
    roster = Roster(state.offer.digest, tuple((org, item.digest) for org, item in sorted(_ready(state).items())))
    wait_s = state.limits.values_s + 3 * state.limits.step_s
    state = replace(state, phase=Phase.UPLOADS, seen=state.seen.with_roster(roster), deadline=now + wait_s)
    return state, [Send(Audience.ALL, roster)]


def _fail(state: AggregatorState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    return replace(state, phase=Phase.FAILED), [Failed(error, missing)]
