"""The frame of every machine: events in, turns from phase to phase, outputs out. Pure: no I/O, no clock, no chance.

1. `step` takes one event. One that does not fit is refused with `ComityError`, and the state stays as it was.
2. Then the machine turns as often as it can: the turn of its phase says what it does now and which phase follows, or
   that it waits. What a turn raises ends the session.
3. Who ends a session by its own judgement tells all, with the name of who is missing if it is one. Who ends because
   another one gave up repeats it only as the lead, whose word ends the session for all.
4. Every phase has an end: its deadline, set anew when it is entered. Keys are erased however a session ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import (
    AggregatePublished,
    EraseKey,
    Event,
    Failed,
    Limits,
    Output,
    Received,
    RosterProposed,
    Tick,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.frame.record import Record
from comity_crypto.secagg.frame.transcript import Transcript


class Over(StrEnum):
    """The phases in which nothing happens any more."""

    DONE = "done"
    FAILED = "failed"


R = TypeVar("R", bound=Record[Any])
T = TypeVar("T", bound=Transcript[Any, Any])


@dataclass(frozen=True, kw_only=True)
class State(Generic[R]):
    """What every machine knows."""

    phase: StrEnum
    seen: R
    limits: Limits
    deadline: float
    me: str = ""  # whom the machine speaks for; the coordinator's for nobody

    def cleared(self) -> Self:
        """Return the state without its secrets, for a session that is over."""
        return self


S = TypeVar("S", bound=State[Any])
Step: TypeAlias = tuple[S, list[Output]]
# What a turn does: what follows, or the session's bad end, or nothing: it waits.
Turn: TypeAlias = Callable[[S], tuple[S, list[Output]] | Failed | None]


def until(done: Callable[[Any], bool], phase: StrEnum) -> Turn[Any]:
    """Return the turn that enters `phase` once a stage of the transcript is complete."""

    def turn(state: State[Any]) -> Step[State[Any]] | None:
        return (replace(state, phase=phase), []) if done(state.seen) else None

    return turn


def timed_out(detail: str, missing: tuple[str, ...]) -> Failed:
    """Return a session's end by time; the error itself names who was awaited, so that it does wherever it is told."""
    named = {"missing": ", ".join(missing)} if missing else {}
    return Failed(ComityError(ErrorCode.TIMEOUT, detail, **named), missing)


def finished(state: S, *outputs: Output) -> Step[S]:
    """End a session well; the last output is `Finished`."""
    return replace(state.cleared(), phase=Over.DONE), list(outputs)


def _after(outputs: list[Output], then: Step[S]) -> Step[S]:
    return then[0], [*outputs, *then[1]]


class Machine(Generic[S]):
    """What a role does, in data and a few methods. `step` is the same for all."""

    ROLE: ClassVar[str]
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {}  # what a phase waits for, to name who is missing
    SLOW: ClassVar[Collection[StrEnum]] = ()  # phases in which parties may still be training, or sending
    PATIENT: ClassVar[bool] = True  # waits a step longer than contributors, to hear why they gave up
    HOLDS_KEY: ClassVar[bool] = False
    TELLS: ClassVar[bool] = True
    REPEATS: ClassVar[bool] = False
    NAMES: ClassVar[bool] = False  # whom an error names is told as missing

    def __init__(self, turns: Mapping[Any, Turn[S]]) -> None:
        self._turns = turns

    def step(self, state: S, event: Event, now: float) -> Step[S]:
        """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
        if isinstance(state.phase, Over):
            return state, []
        if isinstance(event, Tick):
            return (state, []) if now < state.deadline else self.late(state, now)
        if isinstance(event, WorkFailed):
            return self.work_failed(state, event.error)
        taken = self.take(state, event, now)
        if taken is None:
            doing = f"this does not fit into what {self.ROLE} is doing"
            raise ComityError(ErrorCode.CONFLICT, doing, phase=state.phase)
        return self.advance(*taken, now)

    def advance(self, state: S, outputs: list[Output], now: float) -> Step[S]:
        """Turn as often as the machine can."""
        try:
            for _ in range(2 * len(self._turns)):  # a quorum that has to be replaced goes back once in a step
                if isinstance(state.phase, Over):
                    break
                gone = state.seen.over()
                if gone is not None:
                    return _after(outputs, self.fail(state, gone, tells=self.REPEATS))
                turned = self._turns[state.phase](state)
                if turned is None:
                    break
                if isinstance(turned, Failed):
                    return _after(outputs, self.fail(state, turned))
                before, (state, outputs) = state.phase, _after(outputs, turned)
                if state.phase is before:
                    break
                state = replace(state, deadline=now + self.wait_s(state))
        except ComityError as error:
            return _after(outputs, self.fail(state, Failed(error, self._named(state, error))))
        return state, outputs

    def fail(self, state: S, failed: Failed, *, tells: bool = True) -> Step[S]:
        """End a session badly."""
        erase: list[Output] = [EraseKey()] if self.HOLDS_KEY else []
        blame = failed.missing[0] if len(failed.missing) == 1 else ""
        told = [abort_of(state.seen.offer.digest, failed.error, blame)] if tells and self.TELLS else []
        return replace(state.cleared(), phase=Over.FAILED), [*erase, *told, failed]

    def _named(self, state: S, error: ComityError) -> tuple[str, ...]:
        named = str(error.facts.get("missing", error.facts.get("org", "")))
        return (named,) if self.NAMES and named in state.seen.speakers and named != state.me else ()

    # -- what a role may do in another way

    def take(self, state: S, event: Event, now: float) -> Step[S] | None:
        """Return the state with an event's fact and what follows at once, or nothing for an event that does not fit."""
        if isinstance(event, Received):
            return replace(state, seen=state.seen.absorb(event.issuer, event.message)), []
        return None

    def late(self, state: S, now: float) -> Step[S]:
        """The phase's time is up."""
        return self.fail(state, timed_out(f"waited for {state.phase}", self.awaited(state)))

    def awaited(self, state: S) -> tuple[str, ...]:
        """Return the organisations that the session waits for now."""
        kind = self.AWAITED.get(state.phase)
        return state.seen.missing(kind) if kind else ()

    def work_failed(self, state: S, error: ComityError) -> Step[S]:
        """A job that the machine ordered failed."""
        return self.fail(state, Failed(error))

    def wait_s(self, state: S) -> float:
        """Return how long the phase that was just entered may take, in seconds."""
        if state.phase not in self.SLOW:
            return state.limits.step_s
        return state.limits.values_s + (state.limits.step_s if self.PATIENT else 0.0)


class Stage(StrEnum):
    """What every machine of a round waits for but the coordinator's, between the steps that profiles add."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    COMMITMENTS = "commitments"
    SET = "set"


def opening(seen: Transcript[Any, Any], now: float, limits: Limits | None, me: str = "") -> dict[str, Any]:
    """Return the fields of a state that waits for the roster, a step longer than the coordinator for the parties."""
    limits = limits or Limits()
    deadline = now + limits.ready_s + limits.step_s
    return {"phase": Stage.ROSTER, "seen": seen, "limits": limits, "deadline": deadline, "me": me}


class RoundMachine(Machine[S]):
    """A machine of a round that hears the coordinator's words."""

    SLOW: ClassVar[Collection[StrEnum]] = (Stage.COMMITMENTS,)
    SUMMED: ClassVar[Collection[StrEnum]] = ()  # phases in which the coordinator waits for uploads, and adds
    _STAGES: ClassVar[Mapping[StrEnum, type[Body]]] = {
        Stage.SIGNATURES: RosterSignature,
        Stage.COMMITMENTS: Commitment,
        Stage.SET: CommitmentsSignature,
    }

    def take(self, state: S, event: Event, now: float) -> Step[S] | None:
        """Take the coordinator's roster and notice, and messages."""
        if isinstance(event, RosterProposed):
            return replace(state, seen=state.seen.with_roster(event.roster)), []
        if isinstance(event, AggregatePublished):
            return replace(state, seen=state.seen.with_notice(event.notice)), []
        return super().take(state, event, now)

    def awaited(self, state: S) -> tuple[str, ...]:
        """Return the organisations that the session waits for now."""
        kind = state.seen.ANNOUNCEMENT if state.phase is Stage.ROSTER else self._STAGES.get(state.phase)
        return super().awaited(state) if kind is None else tuple(state.seen.missing(kind))

    def wait_s(self, state: S) -> float:
        """For the sum a step longer than the coordinator waits for uploads: it knows, and says, whose are missing."""
        if state.phase not in self.SUMMED:
            return super().wait_s(state)
        return state.limits.uploads_s(state.seen.offer.upload_bytes) + state.limits.step_s
