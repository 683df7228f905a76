"""One run, as a pure function (training.md section 3).

Rules, in this order:
1. `step(run, event, now)` returns the next run, or raises and changes nothing: no clock, no I/O;
2. PREPARING until every party is ready, READY when the lead may start, RUNNING from its first progress, then one of
   COMPLETED, FAILED, DIVERGED, CANCELLED;
3. the lead alone ends a run; the coordinator ends it only at a deadline or when a party withdrew, and then still takes
   the lead's word on who took part until then, if it comes before the run is closed and says the same ending;
4. a run that ended waits a little for its receipts, then it is closed; whatever comes later changes nothing;
5. duplicates and late events return the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode

# Every party must have said that it is ready.
PREPARE_S = 900
# Receipts are asynchronous: the end of a run, not a round, waits for them (training.md section 2).
RECEIPTS_S = 10
RECEIPTS_UNCOUNTED_S = 3


class RunState(StrEnum):
    """Where a run stands."""

    PREPARING = "PREPARING"
    READY = "READY"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    DIVERGED = "DIVERGED"
    CANCELLED = "CANCELLED"


ACTIVE = frozenset({RunState.PREPARING, RunState.READY, RunState.RUNNING})
ENDINGS = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.DIVERGED, RunState.CANCELLED})


@dataclass(frozen=True, slots=True)
class Run:
    """One use of an agreement.

    `steps` are the ids of the agreement's steps, `limits` what it grants at most to any one party. `limit_s` bounds the
    time from READY to the end. `until` is the instant at which `DeadlinePassed` takes effect.
    `expected` is how many receipts each party owes, as far as the lead said; `received` how many came. `finished` is
    the digest of the lead's statement about the end, empty if the coordinator ended the run. `proved` is the number of
    the newest order whose sum the lead has proved, -1 before the first.
    """

    run: str
    agreement: str
    use: int
    lead: str
    parties: tuple[str, ...]
    steps: tuple[str, ...]
    limits: Mapping[str, int]
    limit_s: int
    state: RunState
    since: str
    until: str
    ready: frozenset[str] = frozenset()
    round: int = 0
    rounds: int = 0
    code: str = ""
    detail: str = ""
    move: str = ""
    finished: str = ""
    expected: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    closed: bool = False
    proved: int = -1

    @property
    def awaited(self) -> tuple[str, ...]:
        """Whose move it is."""
        if self.state is RunState.PREPARING:
            return tuple(org for org in self.parties if org not in self.ready)
        return (self.lead,) if self.state in ACTIVE else ()

    @property
    def receipts_complete(self) -> bool:
        """True if every party has handed in what it owes."""
        return bool(self.expected) and all(self.received.get(org, 0) >= n for org, n in self.expected.items())


@dataclass(frozen=True, slots=True)
class Ready:
    """A party has everything it needs."""

    org: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The lead reports a round."""

    org: str
    round: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The lead's word on the end; `digest` is that of its statement; `exact` if `expected` is its count of orders."""

    org: str
    state: RunState
    code: str
    detail: str
    rounds: int
    digest: str
    expected: Mapping[str, int]
    exact: bool


@dataclass(frozen=True, slots=True)
class Received:
    """A party handed in `count` new receipts."""

    org: str
    count: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The coordinator ends the run, because of `org`."""

    code: ErrorCode
    detail: str
    org: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The timer rang; early or late rings are harmless."""


Event = Ready | Progressed | Finished | Received | Cancelled | DeadlinePassed


def create(
    run: str,
    agreement: str,
    use: int,
    lead: str,
    parties: tuple[str, ...],
    steps: tuple[str, ...],
    limits: Mapping[str, int],
    limit_s: int,
    now: str,
) -> Run:
    """Return a run that waits for its parties."""
    until = _later(now, PREPARE_S)
    return Run(run, agreement, use, lead, parties, steps, dict(limits), limit_s, RunState.PREPARING, now, until)


def step(run: Run, event: Event, now: str) -> Run:
    """Return the run after `event` at instant `now`; the same object if nothing changes.

    Raises:
        ComityError: `NOT_A_MEMBER` if the organisation is no party; `ORDER_NOT_LEAD` if only the lead may say this;
            `ILLEGAL_EVENT` if it does not fit the state; `CONFLICT` if the lead ended the run otherwise before.
    """
    if isinstance(event, DeadlinePassed):
        return _deadline(run, now)
    if isinstance(event, Cancelled):
        return _end(run, RunState.CANCELLED, str(event.code), event.detail, event.org, now)
    if event.org not in run.parties:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{event.org} is no party of this run")
    if isinstance(event, Ready):
        return _ready(run, event, now)
    if isinstance(event, Received):
        return _received(run, event, now)
    if event.org != run.lead:
        raise ComityError(ErrorCode.ORDER_NOT_LEAD, "only the lead speaks for the run")
    if isinstance(event, Progressed):
        return _progressed(run, event, now)
    return _finished(run, event, now)


def _later(now: str, seconds: int) -> str:
    return instants.to_text(instants.parse(now) + timedelta(seconds=seconds))


def _ready(run: Run, event: Ready, now: str) -> Run:
    if event.org in run.ready or run.state is not RunState.PREPARING:
        return run
    after = replace(run, ready=run.ready | {event.org})
    if after.ready == frozenset(run.parties):
        return replace(after, state=RunState.READY, since=now, until=_later(now, run.limit_s))
    return after


def _progressed(run: Run, event: Progressed, now: str) -> Run:
    if run.state not in ACTIVE:
        return run
    if run.state is RunState.PREPARING:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "the run has not started: parties are awaited")
    if run.state is RunState.RUNNING and (run.round, run.rounds) == (event.round, event.rounds):
        return run
    since = now if run.state is RunState.READY else run.since
    return replace(run, state=RunState.RUNNING, since=since, round=event.round, rounds=event.rounds)


def _finished(run: Run, event: Finished, now: str) -> Run:
    if run.state in ENDINGS:
        if run.finished and run.finished != event.digest:
            raise ComityError(ErrorCode.CONFLICT, "the lead has ended the run before, otherwise")
        if run.finished or run.closed or event.state is not run.state:
            return run
        until = max(run.until, _later(now, RECEIPTS_UNCOUNTED_S))
        expected = dict(event.expected) if event.exact else {}
        return _close_if_complete(
            replace(run, finished=event.digest, rounds=event.rounds, expected=expected, until=until)
        )
    if event.state not in ENDINGS:
        raise ComityError(ErrorCode.MALFORMED, "a run ends COMPLETED, FAILED, DIVERGED or CANCELLED")
    if run.state is RunState.PREPARING and event.state is RunState.COMPLETED:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "the run has not started: parties are awaited")
    after = replace(
        run,
        state=event.state,
        since=now,
        until=_later(now, RECEIPTS_S if event.exact else RECEIPTS_UNCOUNTED_S),
        rounds=event.rounds,
        code=event.code,
        detail=event.detail,
        move="",
        finished=event.digest,
        expected=dict(event.expected) if event.exact else {},
    )
    return _close_if_complete(after)


def _received(run: Run, event: Received, now: str) -> Run:
    if run.closed or event.count == 0:
        return run
    received = {**run.received, event.org: run.received.get(event.org, 0) + event.count}
    return _close_if_complete(replace(run, received=received))


def _deadline(run: Run, now: str) -> Run:
    if run.closed or now < run.until:
        return run
    if run.state in ENDINGS:
        return replace(run, closed=True)
    whose = ",".join(run.awaited)
    what = "was not ready in time" if run.state is RunState.PREPARING else "did not end the run in time"
    return _end(run, RunState.FAILED, str(ErrorCode.TIMEOUT), f"{whose} {what}", whose, now)


def _end(run: Run, state: RunState, code: str, detail: str, move: str, now: str) -> Run:
    if run.state in ENDINGS:
        return run
    # Nobody took part before everybody was ready; afterwards the lead says who did.
    wait_s = RECEIPTS_UNCOUNTED_S if run.state is RunState.PREPARING else RECEIPTS_S
    return replace(run, state=state, since=now, until=_later(now, wait_s), code=code, detail=detail, move=move)


def _close_if_complete(run: Run) -> Run:
    return replace(run, closed=True) if run.state in ENDINGS and run.receipts_complete else run
