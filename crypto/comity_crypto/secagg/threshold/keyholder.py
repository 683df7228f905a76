"""A holder of a share of a round's key: checks the aggregate as the parties committed to it, and shares it to a quorum.

1. Shares one aggregate per session, and only if every member signed roster and set, and the sum of the members' linear
   digests is the digest of the aggregate under the challenge that the aggregate's own hash fixed.
2. Answers the lead's calls, at most `threshold.messages.ANSWERS_MAX`, each once: a repeated call gets the same share
   again, never the same product under other noise.
3. Seals a share to the openers that the offer names, and to nobody else: to the lead's key in the offer, and to the
   keys in the announcements that the signed roster names. All of them get the same share.
4. The share of the key is erased when the sum is open, when the session fails, and when the time is up.

The shell lets no second session begin with the same key (`used once` is its journal's to keep).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Audience, EraseKey, Event, Finished, Limits, Received, Send
from comity_crypto.secagg.frame.machine import Step, finished, opening
from comity_crypto.secagg.frame.messages import Abort
from comity_crypto.secagg.lead_key import watcher
from comity_crypto.secagg.lead_key.messages import LinearDigest, Ready
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript
from comity_crypto.secagg.lead_key.watcher import WATCHING, WatcherMachine, WatcherState, check_aggregate
from comity_crypto.secagg.threshold.events import ShareMade, StartShare
from comity_crypto.secagg.threshold.messages import Checked, Opened, QuorumCall, ShareReady, SumSeen, ThresholdOffer


class Phase(StrEnum):
    """What the holder waits for after those of `watcher`."""

    CALLS = "calls"


@dataclass(frozen=True)
class HolderTranscript(EncryptedTranscript):
    """What the lead and the holders see: a party that gives up after its digest is merely not there."""

    def aborts(self) -> list[tuple[str, Abort]]:
        """Return who gave up before its digest, and the lead at any time."""
        lead = self.offer.lead
        return [(org, said) for org, said in super().aborts() if org == lead or self.get(LinearDigest, org) is None]


@dataclass(frozen=True, kw_only=True)
class KeyHolderState(WatcherState):
    """Everything the machine knows; the share of the key stays with the shell."""

    offer: ThresholdOffer
    calls: Mapping[int, QuorumCall] = field(default_factory=dict)
    answers: Mapping[str, ShareReady] = field(default_factory=dict)
    sent: frozenset[str] = frozenset()
    opened: Opened | None = None


def start(me: str, offer: ThresholdOffer, *, now: float, limits: Limits | None = None) -> Step[KeyHolderState]:
    """Begin a session with a key of which this organisation holds a share.

    Raises:
        ComityError: `FORBIDDEN` if the offer does not name this organisation as a party.
    """
    if me not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation")
    return KeyHolderState(**opening(HolderTranscript(offer), now, limits, me), offer=offer), []


class _KeyHolder(WatcherMachine[KeyHolderState]):
    ROLE = "the holder"
    HOLDS_KEY = True

    def take(self, state: KeyHolderState, event: Event, now: float) -> Step[KeyHolderState] | None:
        if isinstance(event, Received):
            match event.message:
                case QuorumCall() as call:
                    return self._called(state, event.issuer, call, now)
                case Opened() as word:
                    _check_lead(state, event.issuer, word)
                    return replace(state, opened=word), []
                case Checked() | ShareReady() | SumSeen():
                    return state, []  # an opener's own holder hears what openers are told
        if isinstance(event, ShareMade) and event.call in {call.digest for call in state.calls.values()}:
            answer = ShareReady(state.offer.digest, event.call, event.digest)
            return replace(state, answers={event.call: answer, **state.answers}), []  # the first answer stays
        return super().take(state, event, now)

    def _called(self, state: KeyHolderState, issuer: str, call: QuorumCall, now: float) -> Step[KeyHolderState]:
        """Answer a call. Raises as `_check_call`."""
        _check_call(state, issuer, call)
        if call.number in state.calls:
            answer = state.answers.get(call.digest)
            return state, [Send(Audience.OPENERS, answer)] if answer else []
        # Numbers are below ANSWERS_MAX and each is taken once: that bounds answers and patience alike.
        state = replace(state, calls={**state.calls, call.number: call}, deadline=now + self.wait_s(state))
        share = StartShare(call.digest, call.members, _receivers(state))
        return state, [share] if state.me in call.members else []

    def wait_s(self, state: KeyHolderState) -> float:
        """For calls: the lead waits `step_s` for each one's shares."""
        return 3 * state.limits.step_s if state.phase is Phase.CALLS else super().wait_s(state)


def _receivers(state: KeyHolderState) -> tuple[tuple[str, bytes], ...]:
    """Return who opens, with the keys that offer and roster fix: all who signed the roster see the same ones."""
    offer, seen = state.offer, state.seen
    others = [org for org in offer.openers if org != offer.lead and org in seen.members]
    return ((offer.lead, offer.box_key), *((org, seen.said(Ready, org).box_key) for org in others))


def _check_lead(state: KeyHolderState, issuer: str, message: QuorumCall | Opened) -> None:
    if issuer != state.offer.lead:
        raise ComityError(ErrorCode.FORBIDDEN, "only the lead calls a quorum, and says that the sum is open")
    if message.session != state.offer.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")


def _check_call(state: KeyHolderState, issuer: str, call: QuorumCall) -> None:
    """Raise `FORBIDDEN`, `ROSTER_MISMATCH`, `SUM_MISMATCH` (another aggregate), `CONFLICT`, `BUSY`."""
    offer, notice = state.offer, state.seen.notice
    _check_lead(state, issuer, call)
    if len(call.members) != offer.threshold or not set(call.members) <= set(offer.parties):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the call names no quorum of this session")
    if state.calls.get(call.number, call) != call:
        raise ComityError(ErrorCode.CONFLICT, "the lead called another quorum by this number")
    if state.phase is not Phase.CALLS or notice is None:
        raise ComityError(ErrorCode.BUSY, "the aggregate is not checked yet", phase=state.phase)
    if call.notice != notice.digest:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the call is for another aggregate")


def _on_check(state: KeyHolderState) -> Step[KeyHolderState] | None:
    notice = state.seen.notice
    if not state.seen.summed(state.values) or notice is None:
        return None
    return replace(state, phase=Phase.CALLS), [Send(Audience.LEAD, Checked(state.offer.digest, notice.digest))]


def _on_calls(state: KeyHolderState) -> Step[KeyHolderState] | None:
    """Send each answer once by itself; erase when the sum is open."""
    if state.opened is not None:
        return finished(state, EraseKey(), Finished(state.seen.members))
    fresh = [answer for answer in state.answers.values() if answer.call not in state.sent]
    state = replace(state, sent=state.sent | {answer.call for answer in fresh})
    return state, [Send(Audience.OPENERS, answer) for answer in fresh]


step = _KeyHolder(
    {
        **WATCHING,
        watcher.Phase.AGGREGATE: check_aggregate,
        watcher.Phase.CHECK: _on_check,
        Phase.CALLS: _on_calls,
    }
).step
