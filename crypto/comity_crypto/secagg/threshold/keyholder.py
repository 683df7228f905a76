"""A holder of a share of a round's key: checks the aggregate as the parties committed to it, and shares it to a quorum.

1. Shares one aggregate per session, and only if every member signed roster and set, and the sum of the members' linear
   digests is the digest of the aggregate under the challenge that the aggregate's own hash fixed.
2. Answers the lead's calls, at most `threshold_messages.ANSWERS_MAX`, each once: a repeated call gets the same share
   again, never the same product under other noise.
3. The share of the key is erased when the sum is open, when the session fails, and when the time is up.

The shell lets no second session begin with the same key (`used once` is its journal's to keep).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import check_digest, sum_digests
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import (
    AggregatePublished,
    Audience,
    EraseKey,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    RosterProposed,
    Send,
    Tick,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import Abort, Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest
from comity_crypto.secagg.lead_key.messages import LinearDigest, Ready
from comity_crypto.secagg.lead_key.transcript import Transcript
from comity_crypto.secagg.threshold.events import ShareMade, StartShare
from comity_crypto.secagg.threshold.messages import Checked, Opened, QuorumCall, ShareReady, ThresholdOffer


class Phase(StrEnum):
    """What the holder waits for."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    COMMITMENTS = "commitments"
    SET = "set"
    AGGREGATE = "aggregate"
    CHECK = "check"
    CALLS = "calls"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
AWAITED: dict[str, type[Body]] = {
    "roster": Ready,
    "signatures": RosterSignature,
    "commitments": Commitment,
    "set": CommitmentsSignature,
    "check": LinearDigest,
}


@dataclass(frozen=True)
class KeyHolderState:
    """Everything the machine knows; the share of the key stays with the shell."""

    me: str
    offer: ThresholdOffer
    phase: Phase
    seen: Transcript
    limits: Limits
    deadline: float
    values: tuple[int, ...] | None = None
    calls: Mapping[int, QuorumCall] = field(default_factory=dict)
    answers: Mapping[str, ShareReady] = field(default_factory=dict)
    sent: frozenset[str] = frozenset()
    opened: Opened | None = None


Step = tuple[KeyHolderState, list[Output]]


def start(me: str, offer: ThresholdOffer, *, now: float, limits: Limits | None = None) -> Step:
    """Begin a session with a key of which this organisation holds a share.

    Raises:
        ComityError: `FORBIDDEN` if the offer does not name this organisation as a party.
    """
    if me not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation")
    limits = limits or Limits()
    return KeyHolderState(me, offer, Phase.ROSTER, Transcript(offer), limits, now + limits.ready_s + limits.step_s), []


def step(state: KeyHolderState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        awaited = AWAITED.get(state.phase)
        missing = state.seen.missing(awaited) if awaited else ()
        return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), missing)
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    if isinstance(event, Received) and isinstance(event.message, QuorumCall):
        return _called(state, event.issuer, event.message, now)
    return _advance(_absorb(state, event), now)


def _absorb(state: KeyHolderState, event: Event) -> KeyHolderState:
    seen = state.seen
    if isinstance(event, Received):
        if isinstance(event.message, Opened):
            return _told(state, event.issuer, event.message)
        if isinstance(event.message, Checked | ShareReady):
            return state  # the lead's own holder hears what the others tell the lead
        return replace(state, seen=seen.absorb(event.issuer, event.message))
    if isinstance(event, RosterProposed):
        return replace(state, seen=seen.with_roster(event.roster))
    if isinstance(event, AggregatePublished):
        return replace(state, seen=seen.with_notice(event.notice))
    if isinstance(event, DigestReady) and state.phase is Phase.CHECK and state.values is None:
        check_digest(state.offer.parameter_set, event.values)
        return replace(state, values=event.values)
    if isinstance(event, ShareMade) and event.call in {call.digest for call in state.calls.values()}:
        answer = ShareReady(state.offer.digest, event.call, event.digest)
        return replace(state, answers={event.call: answer, **state.answers})  # the first answer stays
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the holder is doing", phase=state.phase)


def _told(state: KeyHolderState, issuer: str, message: Opened) -> KeyHolderState:
    """Take the lead's word that the sum is open. Raises `FORBIDDEN`, `ROSTER_MISMATCH`."""
    if issuer != state.offer.lead:
        raise ComityError(ErrorCode.FORBIDDEN, "only the lead says that the sum is open")
    if message.session != state.offer.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")
    return replace(state, opened=message)


def _called(state: KeyHolderState, issuer: str, call: QuorumCall, now: float) -> Step:
    """Answer a call. Raises `FORBIDDEN`, `ROSTER_MISMATCH`, `SUM_MISMATCH` (another aggregate), `CONFLICT`, `BUSY`."""
    offer, notice = state.offer, state.seen.notice
    if issuer != offer.lead:
        raise ComityError(ErrorCode.FORBIDDEN, "only the lead calls a quorum")
    if call.session != offer.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the call belongs to another session")
    if len(call.members) != offer.threshold or not set(call.members) <= set(offer.parties):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the call names no quorum of this session")
    before = state.calls.get(call.number)
    if before is not None and before != call:
        raise ComityError(ErrorCode.CONFLICT, "the lead called another quorum by this number")
    if state.phase is not Phase.CALLS or notice is None:
        raise ComityError(ErrorCode.BUSY, "the aggregate is not checked yet", phase=state.phase)
    if call.notice != notice.digest:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the call is for another aggregate")
    if before is not None:
        answer = state.answers.get(call.digest)
        return state, [Send(Audience.LEAD, answer)] if answer else []
    # Numbers are below ANSWERS_MAX and each is taken once: that bounds answers and patience alike.
    state = replace(state, calls={**state.calls, call.number: call}, deadline=now + _patience_s(state.limits))
    return state, [StartShare(call.digest, call.members)] if state.me in call.members else []


def _patience_s(limits: Limits) -> float:
    """How long a holder keeps its key for more calls: the lead waits `step_s` for each one's shares."""
    return 3 * limits.step_s


def _advance(state: KeyHolderState, now: float) -> Step:
    outputs: list[Output] = []
    try:
        for _ in Phase:  # each turn enters a later phase
            state.seen.check_split()
            ended = failure_of(state.seen)
            if ended is not None:
                return replace(state, phase=Phase.FAILED), [*outputs, EraseKey(), ended]
            phase = state.phase
            if phase not in _TURNS:
                break
            state, more = _TURNS[phase](state)
            outputs += more
            if state.phase is phase:
                break
            state = replace(state, deadline=now + _wait_s(state))
    except ComityError as error:
        failed, more = _fail(state, error)
        return failed, outputs + more
    return state, outputs


def failure_of(seen: Transcript) -> Failed | None:
    """Return why a session cannot go on after a party gave up; one that has given its digest is merely not there."""
    for org in sorted({*(seen.members or seen.offer.parties), seen.offer.lead}):
        said = seen.get(Abort, org)
        if said is not None and (org == seen.offer.lead or seen.get(LinearDigest, org) is None):
            error = ComityError(ErrorCode(said.code), "a party gave up", org=org)
            return Failed(error, tuple(sorted({said.blame or org})))
    return None


def _wait_s(state: KeyHolderState) -> float:
    if state.phase is Phase.CALLS:
        return _patience_s(state.limits)
    slow = state.phase is Phase.COMMITMENTS  # parties may still be training
    return (state.limits.values_s if slow else 0.0) + state.limits.step_s


def _fail(state: KeyHolderState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    told = abort_of(state.offer.digest, error)
    return replace(state, phase=Phase.FAILED), [EraseKey(), told, Failed(error, missing)]


def _to(phase: Phase, done: Callable[[Transcript], bool]) -> Callable[[KeyHolderState], Step]:
    """Return a turn that enters `phase` once the transcript says so."""

    def turn(state: KeyHolderState) -> Step:
        return (replace(state, phase=phase), []) if done(state.seen) else (state, [])

    return turn


def _on_aggregate(state: KeyHolderState) -> Step:
    if not state.seen.published() or state.seen.notice is None:
        return state, []
    notice = state.seen.notice
    return replace(state, phase=Phase.CHECK), [StartDigest(notice.challenge, notice.aggregate)]


def _on_check(state: KeyHolderState) -> Step:
    digests, notice = state.seen.digests(), state.seen.notice
    if state.values is None or digests is None or notice is None:
        return state, []
    if sum_digests(state.offer.parameter_set, digests) != state.values:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is not the sum of the committed uploads")
    return replace(state, phase=Phase.CALLS), [Send(Audience.LEAD, Checked(state.offer.digest, notice.digest))]


def _on_calls(state: KeyHolderState) -> Step:
    if state.opened is None:
        fresh = [answer for answer in state.answers.values() if answer.call not in state.sent]
        sent = state.sent | {answer.call for answer in fresh}
        return replace(state, sent=sent), [Send(Audience.LEAD, answer) for answer in fresh]
    return replace(state, phase=Phase.DONE), [EraseKey(), Finished(state.seen.members)]


_TURNS: dict[Phase, Callable[[KeyHolderState], Step]] = {
    Phase.ROSTER: _to(Phase.SIGNATURES, Transcript.ready),
    Phase.SIGNATURES: _to(Phase.COMMITMENTS, Transcript.roster_signed),
    Phase.COMMITMENTS: _to(Phase.SET, Transcript.committed),
    Phase.SET: _to(Phase.AGGREGATE, Transcript.set_signed),
    Phase.AGGREGATE: _on_aggregate,
    Phase.CHECK: _on_check,
    Phase.CALLS: _on_calls,
}
