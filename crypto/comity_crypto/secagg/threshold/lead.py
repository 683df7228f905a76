"""The lead of a sum under `threshold`: calls a quorum, fuses its shares, asks another one where that does not open.

1. Calls only holders that have checked the aggregate, under the notice that this machine saw published itself.
2. One call at a time, at most `ANSWERS_MAX` a session. Who does not answer is left out of the next one. Where others
   can be asked, that is soon (`Limits.shares_s`), and who was slow is asked again, with patience, when nobody else is
   left; fewer than a quorum then ends the session with the names of who is missing.
3. Shares that do not open the sum lead to other quorums (`blame`); at T = n they end the session with
   `BAD_SHARE` and no name. A share that is none names its holder at once.
4. Holders erase their shares of the key on `Opened`; it is said as soon as nothing more is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import POLYS
from comity_crypto.secagg.frame.events import (
    Audience,
    Event,
    Failed,
    Finished,
    Limits,
    Output,
    Received,
    Send,
)
from comity_crypto.secagg.frame.machine import Step, finished, opening, timed_out, until
from comity_crypto.secagg.frame.messages import Abort
from comity_crypto.secagg.lead_key import watcher
from comity_crypto.secagg.lead_key.messages import LinearDigest
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript
from comity_crypto.secagg.lead_key.watcher import WATCHING, WatcherMachine, WatcherState
from comity_crypto.secagg.threshold.blame import Trials, narrowing_quorum, next_quorum
from comity_crypto.secagg.threshold.compared import check_share, with_share
from comity_crypto.secagg.threshold.events import QuorumFailed, ShareRefused, StartFuse, SumOpened, Suspected
from comity_crypto.secagg.threshold.keyholder import HolderTranscript
from comity_crypto.secagg.threshold.messages import (
    ANSWERS_MAX,
    Checked,
    Opened,
    QuorumCall,
    ShareReady,
    SumSeen,
    ThresholdOffer,
)


class Phase(StrEnum):
    """What the lead waits for after those of `watcher`."""

    QUORUM = "quorum"
    SHARES = "shares"
    FUSING = "fusing"


@dataclass(frozen=True, kw_only=True)
class LeadState(WatcherState):
    """Everything the machine knows: names and digests, no key and no value."""

    offer: ThresholdOffer
    checked: Mapping[str, str] = field(default_factory=dict)  # holder -> notice that it checked, in order of arrival
    calls: int = 0
    call: QuorumCall | None = None
    shares: Mapping[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    hasty: bool = False  # a quorum is left without one that does not answer this call
    trials: Trials = field(default_factory=Trials)
    first: SumOpened | None = None  # the call that opened the sum
    decoded: SumOpened | None = None  # what came of the call that is being fused

    @property
    def opened(self) -> bool:
        """Whether the sum is open."""
        return self.first is not None

    @property
    def present(self) -> tuple[str, ...]:
        """Holders that would share, this one first."""
        notice = self.seen.notice.digest if self.seen.notice else ""
        found = [org for org, checked in self.checked.items() if checked == notice and org not in self.gone]
        return tuple(sorted(found, key=lambda org: org != self.offer.lead))

    @property
    def usable(self) -> tuple[str, ...]:
        """Holders that may still share."""
        return tuple(org for org in self.offer.parties if org not in self.gone and org not in self.trials.refused)

    @property
    def coming(self) -> tuple[str, ...]:
        """Those of them that have not checked yet."""
        return tuple(org for org in self.usable if org not in self.checked)


def start(offer: ThresholdOffer, *, now: float, limits: Limits | None = None) -> Step[LeadState]:
    """Begin a session with an offer of a key of the batch."""
    return LeadState(**opening(HolderTranscript(offer), now, limits), offer=offer), []


class _Lead(WatcherMachine[LeadState]):
    ROLE = "the lead"
    REPEATS = True

    def take(self, state: LeadState, event: Event, now: float) -> Step[LeadState] | None:
        if isinstance(event, Received) and isinstance(event.message, Checked | ShareReady):
            return _heard(state, event.issuer, event.message), []
        if isinstance(event, Received) and isinstance(event.message, SumSeen):
            return state, []  # compared by the shell, for as long as words come
        if state.phase is Phase.FUSING and state.call is not None:
            if isinstance(event, SumOpened) and event.call == state.call.digest:
                return replace(state, decoded=event), []
            if isinstance(event, QuorumFailed | ShareRefused) and event.call == state.call.digest:
                return _judged(state, event, state.call), []
        taken = super().take(state, event, now)
        return None if taken is None else (_without_gone(taken[0]), [])

    def late(self, state: LeadState, now: float) -> Step[LeadState]:
        """Leave out who did not answer a call, or end with the names of who is missing."""
        if state.phase is Phase.SHARES and state.call is not None:
            silent = frozenset(state.call.members) - frozenset(state.shares)
            state = replace(state, phase=Phase.QUORUM, deadline=now + state.limits.step_s)
            late = replace(state, slow=state.slow | silent) if state.hasty else replace(state, gone=state.gone | silent)
            return self.advance(late, [], now)
        if state.phase is Phase.QUORUM and state.slow and state.coming:
            state = replace(state, gone=state.gone.union(state.coming), deadline=now + state.limits.step_s)
            return self.advance(state, [], now)
        return _end(state) if state.opened else super().late(state, now)

    def awaited(self, state: LeadState) -> tuple[str, ...]:
        if state.phase is Phase.QUORUM:
            # Nobody can check, and so be present, before all digests are there.
            absent = tuple(org for org in state.offer.parties if org not in state.present)
            return state.seen.missing(LinearDigest) or absent
        return super().awaited(state)

    def wait_s(self, state: LeadState) -> float:
        """For shares less where others can be asked."""
        if state.phase is Phase.SHARES and state.hasty:
            return state.limits.shares_s(state.offer.upload_bytes // POLYS)
        return super().wait_s(state)

    def work_failed(self, state: LeadState, error: ComityError) -> Step[LeadState]:
        """What narrows the suspects down may fail: the sum is open."""
        return _end(state) if state.opened else super().work_failed(state, error)


def _heard(state: LeadState, issuer: str, message: Checked | ShareReady) -> LeadState:
    """Take a holder's word. Raises `FORBIDDEN`, `ROSTER_MISMATCH`, `CONFLICT`."""
    check_share(state.offer, issuer, message)
    if isinstance(message, Checked):
        if state.checked.get(issuer, message.notice) != message.notice:
            raise ComityError(ErrorCode.CONFLICT, "a holder checked another aggregate before")
        return replace(state, checked={**state.checked, issuer: message.notice})
    call = state.call
    if state.phase is not Phase.SHARES or call is None or message.call != call.digest or issuer not in call.members:
        raise ComityError(ErrorCode.CONFLICT, "nobody waits for this share")
    return replace(state, shares=with_share(state.shares, issuer, message))


def _judged(state: LeadState, event: QuorumFailed | ShareRefused, call: QuorumCall) -> LeadState:
    """Record a quorum that did not open. Raises nothing: what follows from it is `_on_quorum`'s."""
    if isinstance(event, QuorumFailed):
        return replace(state, trials=state.trials.with_failure(call.members), phase=Phase.QUORUM)
    if event.org not in call.members:
        raise ComityError(ErrorCode.INTERNAL, "a share of somebody else was fused")
    return replace(state, trials=state.trials.with_refusal(event.org), phase=Phase.QUORUM)


def _without_gone(state: LeadState) -> LeadState:
    """Note holders that gave up after their digest; a call to one of them is over."""
    left = frozenset(org for org in state.offer.parties if state.seen.get(Abort, org) is not None)
    if left <= state.gone:
        return state
    state = replace(state, gone=state.gone | left)
    waiting = state.phase is Phase.SHARES and state.call is not None
    if waiting and state.call is not None and left & set(state.call.members) - set(state.shares):
        return replace(state, phase=Phase.QUORUM)
    return state


def _end(state: LeadState) -> Step[LeadState]:
    """The sum is open: let the holders erase, name the suspects."""
    assert state.seen.notice is not None, "what is open was published"
    assert state.first is not None, "it ends well only with a sum"
    suspects = state.trials.suspects
    named: list[Output] = [Suspected(suspects)] if suspects else []
    word = Opened(state.offer.digest, state.seen.notice.digest, suspects, state.first.call, state.first.sum)
    return finished(state, *named, Send(Audience.ALL, word), Finished(state.seen.members))


def _on_quorum(state: LeadState) -> Step[LeadState] | Failed | None:
    offer, trials, notice = state.offer, state.trials, state.seen.notice
    assert notice is not None, "a quorum is called for what was published"
    choose = narrowing_quorum if state.opened else next_quorum
    prompt = [org for org in state.present if org not in state.slow]
    quorum = choose(trials, prompt, offer.threshold) if state.calls < ANSWERS_MAX else None
    if quorum is None and state.calls < ANSWERS_MAX and not state.coming and not state.opened:
        slow = [org for org in state.present if org in state.slow]
        quorum = choose(trials, [*prompt, *slow], offer.threshold)
    if quorum is None:
        return _end(state) if state.opened else _wait_for_more(state)
    call = QuorumCall(offer.digest, notice.digest, state.calls, quorum)
    hasty = not state.slow.intersection(quorum) and len(set(state.usable) - state.slow) > offer.threshold
    state = replace(state, calls=state.calls + 1, call=call, hasty=hasty, shares={}, phase=Phase.SHARES, decoded=None)
    return state, [Send(Audience.ALL, call)]


def _wait_for_more(state: LeadState) -> Failed | None:
    """No quorum can be called now: wait for holders that still check, or end because none can come."""
    offer, trials, parties = state.offer, state.trials, state.offer.parties
    hopeless = bool(trials.failed) and not trials.common
    if state.coming and len(state.usable) >= offer.threshold and not hopeless and state.calls < ANSWERS_MAX:
        return None
    if trials.refused:
        error = ComityError(ErrorCode.BAD_SHARE, "what a holder sent is no share", org=min(trials.refused))
        return Failed(error, tuple(sorted(trials.refused)))
    if trials.failed:
        error = ComityError(ErrorCode.BAD_SHARE, "no quorum's shares open the sum; whose is wrong cannot be told")
        return Failed(error)
    return timed_out("too few holders are left for a quorum", tuple(org for org in parties if org not in state.present))


def _on_shares(state: LeadState) -> Step[LeadState] | None:
    call = state.call
    if call is None or set(call.members) - set(state.shares):
        return None
    fuse = StartFuse(call.digest, tuple(sorted(state.shares.items())), len(state.seen.members))
    return replace(state, phase=Phase.FUSING), [fuse]


def _on_fusing(state: LeadState) -> Step[LeadState] | None:
    if state.decoded is None or state.call is None:
        return None
    trials = state.trials.with_success(state.call.members)
    state = replace(state, trials=trials, first=state.first or state.decoded)
    return (replace(state, phase=Phase.QUORUM), []) if len(trials.common) > 1 else _end(state)


step = _Lead(
    {
        **WATCHING,
        watcher.Phase.AGGREGATE: until(EncryptedTranscript.published, Phase.QUORUM),
        Phase.QUORUM: _on_quorum,
        Phase.SHARES: _on_shares,
        Phase.FUSING: _on_fusing,
    }
).step
