"""The coordinator's part of a sum: it closes the roster, adds, says what it has added. It holds no key of any kind.

1. The roster is everyone who is ready, closed when all are or when the time is up and the minimum is there.
2. An upload counts if it is, byte for byte, what its organisation committed to.
3. One notice and one aggregate per session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import (
    Audience,
    BlobReady,
    Event,
    Finished,
    Limits,
    Send,
    StartAdd,
    UploadStored,
)
from comity_crypto.secagg.frame.machine import Machine, State, Step, T, Turn, finished, until
from comity_crypto.secagg.frame.messages import Commitment, CommitmentsSignature, Roster, RosterSignature


class Phase(StrEnum):
    """What the adder waits for."""

    READY = "ready"
    SIGNATURES = "signatures"
    UPLOADS = "uploads"
    SUM = "sum"


@dataclass(frozen=True, kw_only=True)
class AdderState(State[T]):
    """Everything the machine knows: digests and sizes, never a value."""

    uploads: Mapping[str, UploadStored] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    total: BlobReady | None = None

    @property
    def good(self) -> tuple[str, ...]:
        """The members whose uploads are what they committed to."""
        wrong = self.wrong
        return tuple(org for org in self.seen.commitments if org in self.uploads and org not in wrong)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The members whose uploads are something else."""
        return tuple(
            org
            for org, said in self.seen.commitments.items()
            if (stored := self.uploads.get(org)) is not None
            and (stored.digest, stored.size_bytes) != (said.upload, said.size_bytes)
        )


A = TypeVar("A", bound=AdderState[Any])


def started(seen: T, now: float, limits: Limits | None) -> Step[AdderState[T]]:
    """Return a machine that waits for announcements."""
    limits = limits or Limits()
    return AdderState(phase=Phase.READY, seen=seen, limits=limits, deadline=now + limits.ready_s), []


class AdderMachine(Machine[A]):
    """See the head of this module; it is the coordinator, and hears no coordinator's words."""

    TELLS = False

    def __init__(self, on_uploads: Turn[A]) -> None:
        turns: dict[Phase, Turn[A]] = {
            Phase.READY: self._on_ready,
            Phase.SIGNATURES: until(lambda seen: seen.set_signed(), Phase.UPLOADS),
            Phase.UPLOADS: on_uploads,
            Phase.SUM: _publish,
        }
        super().__init__(turns)

    def take(self, state: A, event: Event, now: float) -> Step[A] | None:
        """Take an upload, which may overtake signatures, and the sum. Raises `FORBIDDEN`, `CONFLICT`."""
        if isinstance(event, UploadStored):
            if event.org not in state.seen.offer.parties:
                raise ComityError(ErrorCode.FORBIDDEN, "not a party of this secure sum", org=event.org)
            if state.uploads.get(event.org, event) != event:
                raise ComityError(ErrorCode.CONFLICT, "the party has uploaded something else before", org=event.org)
            return replace(state, uploads={**state.uploads, event.org: event}), []
        if isinstance(event, BlobReady) and state.phase is Phase.SUM:
            return replace(state, total=event), []
        return super().take(state, event, now)

    def late(self, state: A, now: float) -> Step[A]:
        """Go on without those who are not ready, where that is allowed."""
        announced = state.seen.all_of(state.seen.ANNOUNCEMENT)
        if state.phase is Phase.READY and len(announced) >= state.seen.offer.minimum:
            closed, outputs = self.closed(state)
            return replace(closed, deadline=now + self.wait_s(closed)), outputs
        return super().late(state, now)

    def awaited(self, state: A) -> tuple[str, ...]:
        """Return the organisations that the session waits for now."""
        if state.phase is Phase.READY:
            missing: tuple[str, ...] = state.seen.missing(state.seen.ANNOUNCEMENT)
            return missing
        if state.phase is Phase.SUM:
            return ()
        if state.phase is Phase.UPLOADS:
            return tuple(org for org in state.seen.members if org not in state.good)
        stages = (state.seen.missing(kind) for kind in (RosterSignature, Commitment, CommitmentsSignature))
        return next((missing for missing in stages if missing), ())

    def closed(self, state: A) -> Step[A]:
        """Close the roster."""
        ready = state.seen.all_of(state.seen.ANNOUNCEMENT)
        roster = Roster(state.seen.offer.digest, tuple((org, said.digest) for org, said in ready.items()))
        return replace(state, phase=Phase.SIGNATURES, seen=state.seen.with_roster(roster)), [Send(Audience.ALL, roster)]

    def wait_s(self, state: A) -> float:
        """Once the roster is closed, parties train, and say three things; then they upload."""
        if state.phase is Phase.SIGNATURES:
            return state.limits.values_s + 3 * state.limits.step_s
        if state.phase is Phase.UPLOADS:
            return state.limits.uploads_s(state.seen.offer.upload_bytes)
        return state.limits.step_s

    def _on_ready(self, state: A) -> Step[A] | None:
        """Close the roster when all are ready."""
        return None if state.seen.missing(state.seen.ANNOUNCEMENT) else self.closed(state)


def add(state: A) -> Step[A]:
    """Add what is good."""
    return replace(state, phase=Phase.SUM, added=state.good), [StartAdd(state.good)]


def _publish(state: A) -> Step[A] | None:
    """Say what was added."""
    if state.total is None:
        return None
    seen = state.seen
    dropped = tuple(org for org in seen.members if org not in state.added)
    notice = seen.notice_of(state.total.digest, state.total.size_bytes, dropped)
    state = replace(state, seen=seen.with_notice(notice))
    return finished(state, Send(Audience.ALL, notice), Finished(state.added))
