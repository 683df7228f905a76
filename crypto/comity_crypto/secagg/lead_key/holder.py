"""The holder of a round key: the lead, under `lead-key` (secure-aggregation.md sections 1 and 4).

1. A fresh key for every round and every attempt; it is erased when the session ends, well or badly.
2. Decrypts one aggregate, and only if every member signed roster and set, and the sum of the members' linear digests is
   the digest of the aggregate under the challenge that the aggregate's own hash fixed.
3. A missing party ends the session with its name; `next_offer` makes the restart, under a fresh key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import check_digest, sum_digests
from comity_crypto.secagg.frame.events import (
    AggregatePublished,
    EraseKey,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    RosterProposed,
    SumDecoded,
    Tick,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX, Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.lead_key.events import DigestReady, StartDecrypt, StartDigest
from comity_crypto.secagg.lead_key.messages import Body, LinearDigest, Offer, Ready
from comity_crypto.secagg.lead_key.transcript import Transcript


class Phase(StrEnum):
    """What the holder waits for."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    COMMITMENTS = "commitments"
    SET = "set"
    AGGREGATE = "aggregate"
    CHECK = "check"
    DECRYPTION = "decryption"
    DONE = "done"
    FAILED = "failed"


_OVER = (Phase.DONE, Phase.FAILED)
_AWAITED: dict[Phase, type[Body]] = {
    Phase.ROSTER: Ready,
    Phase.SIGNATURES: RosterSignature,
    Phase.COMMITMENTS: Commitment,
    Phase.SET: CommitmentsSignature,
    Phase.CHECK: LinearDigest,
}


@dataclass(frozen=True)
class HolderState:
    """Everything the machine knows; the secret key itself stays with the shell."""

    phase: Phase
    seen: Transcript
    limits: Limits
    deadline: float
    values: tuple[int, ...] | None = None
    decoded: bool = False

    @property
    def offer(self) -> Offer:
        """The session's offer."""
        return self.seen.offer


Step = tuple[HolderState, list[Output]]


def start(offer: Offer, *, now: float, limits: Limits | None = None) -> Step:
    """Begin a session with an offer of the own fresh key. The shell seals offer and public key into the order."""
    limits = limits or Limits()
    # Contributors wait `ready_s` for the roster; the holder waits a step longer, to hear why they gave up.
    return HolderState(Phase.ROSTER, Transcript(offer), limits, now + limits.ready_s + limits.step_s), []


def next_offer(offer: Offer, key_id: str, without: Iterable[str] = ()) -> Offer:
    """Return the offer of the next attempt, under a fresh key, without the parties that went missing.

    Contributors whose update has left for the old roster refuse a smaller one; for those call it with nobody missing.

    Raises:
        ComityError: `PARTICIPANTS_TOO_FEW` (fewer than the minimum are left), `RUN_FAILED` (attempts used up),
            `INTERNAL` (the key is the old one).
    """
    if key_id == offer.key_id:
        raise ComityError(ErrorCode.INTERNAL, "a round key is used once")
    if offer.attempt >= ATTEMPT_MAX:
        raise ComityError(ErrorCode.RUN_FAILED, "the secure sum did not succeed", attempts=offer.attempt + 1)
    parties = tuple(org for org in offer.parties if org not in set(without))
    if len(parties) < offer.minimum:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "too few parties are left", n=len(parties))
    return replace(offer, attempt=offer.attempt + 1, key_id=key_id, parties=parties)


def step(state: HolderState, event: Event, now: float) -> Step:
    """Take one event. Raises `ComityError` if the event is refused; the state then stays as it was."""
    if state.phase in _OVER:
        return state, []
    if isinstance(event, Tick):
        if now < state.deadline:
            return state, []
        awaited = _AWAITED.get(state.phase)
        missing = state.seen.missing(awaited) if awaited else ()
        return _fail(state, ComityError(ErrorCode.TIMEOUT, f"waited for {state.phase}"), missing)
    if isinstance(event, WorkFailed):
        return _fail(state, event.error)
    return _advance(_absorb(state, event), now)


def _absorb(state: HolderState, event: Event) -> HolderState:
    seen = state.seen
    if isinstance(event, Received):
        return replace(state, seen=seen.absorb(event.issuer, event.message))
    if isinstance(event, RosterProposed):
        return replace(state, seen=seen.with_roster(event.roster))
    if isinstance(event, AggregatePublished):
        return replace(state, seen=seen.with_notice(event.notice))
    if isinstance(event, DigestReady) and state.phase is Phase.CHECK and state.values is None:
        check_digest(state.offer.parameter_set, event.values)
        return replace(state, values=event.values)
    if isinstance(event, SumDecoded) and state.phase is Phase.DECRYPTION:
        return replace(state, decoded=True)
    raise ComityError(ErrorCode.CONFLICT, "this does not fit into what the holder is doing", phase=state.phase)


def _advance(state: HolderState, now: float) -> Step:
    outputs: list[Output] = []
    try:
        for _ in Phase:  # each turn enters a later phase
            state.seen.check_split()
            gone = state.seen.aborted()
            if gone:
                error = ComityError(ErrorCode(gone[1].code), "a party gave up", org=gone[0])
                failed, more = _fail(state, error, tuple(sorted({gone[1].blame or gone[0]})))
                return failed, outputs + more
            phase = state.phase
            if phase not in _TURNS:
                break
            state, more = _TURNS[phase](state)
            outputs += more
            if state.phase is phase:
                break
            slow = state.phase is Phase.COMMITMENTS  # parties may still be training
            state = replace(state, deadline=now + (state.limits.values_s if slow else 0) + state.limits.step_s)
    except ComityError as error:
        failed, more = _fail(state, error)
        return failed, outputs + more
    return state, outputs


def _fail(state: HolderState, error: ComityError, missing: tuple[str, ...] = ()) -> Step:
    told = abort_of(state.offer.digest, error)
    return replace(state, phase=Phase.FAILED), [EraseKey(), told, Failed(error, missing)]


def _to(phase: Phase, done: Callable[[Transcript], bool]) -> Callable[[HolderState], Step]:
    """Return a turn that enters `phase` once the transcript says so."""

    def turn(state: HolderState) -> Step:
        return (replace(state, phase=phase), []) if done(state.seen) else (state, [])

    return turn


def _on_aggregate(state: HolderState) -> Step:
    if not state.seen.published() or state.seen.notice is None:
        return state, []
    notice = state.seen.notice
    return replace(state, phase=Phase.CHECK), [StartDigest(notice.challenge, notice.aggregate)]


def _on_check(state: HolderState) -> Step:
    digests = state.seen.digests()
    if state.values is None or digests is None:
        return state, []
    if sum_digests(state.offer.parameter_set, digests) != state.values:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is not the sum of the committed uploads")
    return replace(state, phase=Phase.DECRYPTION), [StartDecrypt(len(state.seen.members))]


def _on_decryption(state: HolderState) -> Step:
    if not state.decoded:
        return state, []
    return replace(state, phase=Phase.DONE), [EraseKey(), Finished(state.seen.members)]


_TURNS: dict[Phase, Callable[[HolderState], Step]] = {
    Phase.ROSTER: _to(Phase.SIGNATURES, Transcript.ready),
    Phase.SIGNATURES: _to(Phase.COMMITMENTS, Transcript.roster_signed),
    Phase.COMMITMENTS: _to(Phase.SET, Transcript.committed),
    Phase.SET: _to(Phase.AGGREGATE, Transcript.set_signed),
    Phase.AGGREGATE: _on_aggregate,
    Phase.CHECK: _on_check,
    Phase.DECRYPTION: _on_decryption,
}
