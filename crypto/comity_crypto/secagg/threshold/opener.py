"""An opener of a sum under `threshold` beside the lead: opens what a quorum shares, by itself, and compares.

1. Follows the session as the lead does, and the lead's calls; it calls nobody. Shares may come before their call.
2. Fuses the first call whose shares are complete, under the notice that it saw published itself; a call that does not
   open is left for the next one. It does not wait for the lead's word, and no word of the lead ends it once shares are
   complete: who is agreed to open has the sum as soon as the lead could.
3. Keeps the sum, tells the other openers what it saw (`compared`), and compares with the lead's `Opened`: another sum
   is `SUMS_DIFFER`. Where the lead opened by another call, that one is fused too.
4. Its end is its own: it gives up in silence, and nobody waits for it. A lead that says nothing does not take the sum
   from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Audience, Event, Failed, Finished, Limits, Output, Received, Send
from comity_crypto.secagg.frame.machine import Step, finished, opening, until
from comity_crypto.secagg.frame.messages import Abort
from comity_crypto.secagg.lead_key import watcher
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript
from comity_crypto.secagg.lead_key.watcher import WATCHING, WatcherMachine, WatcherState
from comity_crypto.secagg.threshold.compared import check_share, differ, with_share
from comity_crypto.secagg.threshold.events import KeepSum, QuorumFailed, ShareRefused, StartFuse, SumOpened
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
    """What an opener waits for after those of `watcher`."""

    SHARES = "shares"
    FUSING = "fusing"
    WORD = "word"


@dataclass(frozen=True)
class OpenerTranscript(HolderTranscript):
    """What the holders see; once shares are complete nobody's giving up matters."""

    complete: bool = False

    def aborts(self) -> list[tuple[str, Abort]]:
        """Return who gave up while that still ends the session."""
        return [] if self.complete else super().aborts()


@dataclass(frozen=True, kw_only=True)
class OpenerState(WatcherState):
    """Everything the machine knows: names and digests, no key and no value."""

    offer: ThresholdOffer
    seen: OpenerTranscript
    calls: Mapping[int, QuorumCall] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by call, then by holder
    fusing: QuorumCall | None = None
    failed: frozenset[str] = frozenset()  # calls whose shares do not open
    refused: Mapping[str, str] = field(default_factory=dict)  # by call, whose share is none
    sums: Mapping[str, SumOpened] = field(default_factory=dict)  # by call
    word: Opened | None = None

    @property
    def torn(self) -> bool:
        """Whether two calls opened different sums here."""
        return len({each.slots for each in self.sums.values()}) > 1


def start(me: str, offer: ThresholdOffer, *, now: float, limits: Limits | None = None) -> Step[OpenerState]:
    """Begin a session whose sum this organisation opens beside its lead.

    Raises:
        ComityError: `FORBIDDEN` if the offer does not name this organisation as an opener, or names it as the lead.
    """
    if me not in offer.openers or me == offer.lead:
        raise ComityError(ErrorCode.FORBIDDEN, "the offer does not name this organisation as an opener beside the lead")
    return OpenerState(**opening(OpenerTranscript(offer), now, limits, me), offer=offer), []


class _Opener(WatcherMachine[OpenerState]):
    ROLE = "the opener"
    TELLS = False

    def take(self, state: OpenerState, event: Event, now: float) -> Step[OpenerState] | None:
        if isinstance(event, Received):
            match event.message:
                case QuorumCall() as call:
                    _check_call(state, event.issuer, call)
                    patience = now + self.wait_s(state) if call.number not in state.calls else state.deadline
                    later = max(state.deadline, patience) if state.phase is Phase.SHARES else state.deadline
                    return replace(state, calls={**state.calls, call.number: call}, deadline=later), []
                case ShareReady() as share:
                    return _with_share(state, event.issuer, share), []
                case Opened() as word:
                    return _with_word(state, event.issuer, word), []
                case Checked() | SumSeen():
                    return state, []  # not this machine's
        if isinstance(event, SumOpened | QuorumFailed | ShareRefused):
            return _fused(state, event)
        return super().take(state, event, now)

    def late(self, state: OpenerState, now: float) -> Step[OpenerState]:
        """Who has the sum is done, whether the lead speaks or not."""
        if state.sums:
            return finished(state, Finished(state.seen.members))
        return super().late(state, now)

    def awaited(self, state: OpenerState) -> tuple[str, ...]:
        if state.phase is not Phase.SHARES:
            return super().awaited(state)
        called = {org for call in state.calls.values() for org in call.members if org not in _shares(state, call)}
        return tuple(sorted(called)) if state.calls else (state.offer.lead,)

    def work_failed(self, state: OpenerState, error: ComityError) -> Step[OpenerState]:
        """A sum that is kept stays; another call was only to be compared."""
        if state.sums:
            return finished(state, Finished(state.seen.members))
        return super().work_failed(state, error)

    def wait_s(self, state: OpenerState) -> float:
        """For shares and for the lead's word: as long as a holder waits for calls."""
        return 3 * state.limits.step_s if isinstance(state.phase, Phase) else super().wait_s(state)


def _check_lead(state: OpenerState, issuer: str, message: QuorumCall | Opened) -> None:
    if issuer != state.offer.lead:
        raise ComityError(ErrorCode.FORBIDDEN, "only the lead calls a quorum, and says that the sum is open")
    if message.session != state.offer.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")


def _check_call(state: OpenerState, issuer: str, call: QuorumCall) -> None:
    """Raise `FORBIDDEN`, `ROSTER_MISMATCH`, `CONFLICT`; whether it is for our aggregate is seen when it is fused."""
    _check_lead(state, issuer, call)
    if len(call.members) != state.offer.threshold or not set(call.members) <= set(state.offer.parties):
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the call names no quorum of this session")
    if state.calls.get(call.number, call) != call:
        raise ComityError(ErrorCode.CONFLICT, "the lead called another quorum by this number")


def _with_share(state: OpenerState, issuer: str, message: ShareReady) -> OpenerState:
    """Take a holder's word, also for a call that is still under way. Raises as `compared`, and `TOO_LARGE`."""
    check_share(state.offer, issuer, message)
    before = state.shares.get(message.call, {})
    named = sum(issuer in shares for call, shares in state.shares.items() if call != message.call)
    if named >= ANSWERS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a holder names shares of more calls than there can be", org=issuer)
    return replace(state, shares={**state.shares, message.call: with_share(before, issuer, message)})


def _with_word(state: OpenerState, issuer: str, word: Opened) -> OpenerState:
    """Take the lead's word that it has the sum. Raises `FORBIDDEN`, `ROSTER_MISMATCH`, `CONFLICT`."""
    _check_lead(state, issuer, word)
    if state.word not in (None, word):
        raise ComityError(ErrorCode.CONFLICT, "the lead said something else of the sum before")
    return replace(state, word=word)


def _fused(state: OpenerState, event: SumOpened | QuorumFailed | ShareRefused) -> Step[OpenerState] | None:
    """Take what became of a call's shares; nothing for an event that is not about the call that is fused."""
    if state.fusing is None or event.call != state.fusing.digest:
        return None
    state = replace(state, fusing=None, phase=Phase.SHARES)
    if isinstance(event, QuorumFailed):
        return replace(state, failed=state.failed | {event.call}), []
    if isinstance(event, ShareRefused):
        return replace(state, refused={**state.refused, event.call: event.org}), []
    told: list[Output] = [Send(Audience.OPENERS, SumSeen(state.offer.digest, event.call, event.sum))]
    if not state.sums:
        told.insert(0, KeepSum(event.call, event.sum))
    return replace(state, sums={**state.sums, event.call: event}, phase=Phase.WORD), told


def _shares(state: OpenerState, call: QuorumCall) -> Mapping[str, str]:
    return state.shares.get(call.digest, {})


def _next_call(state: OpenerState) -> QuorumCall | None:
    """Return the call to fuse: once the sum is open only the one by which the lead opened it."""
    notice, wanted = state.seen.notice, state.word.call if state.word else ""
    done = {*state.sums, *state.failed, *state.refused}
    for _, call in sorted(state.calls.items(), key=lambda item: (item[1].digest != wanted, item[0])):
        if notice is None or call.notice != notice.digest or call.digest in done:
            continue
        if (not state.sums or call.digest == wanted) and set(call.members) <= set(_shares(state, call)):
            return call
    return None


def _on_shares(state: OpenerState) -> Step[OpenerState] | Failed | None:
    call, word = _next_call(state), state.word
    if call is not None:
        members = {org: share for org, share in _shares(state, call).items() if org in call.members}
        fuse = StartFuse(call.digest, tuple(sorted(members.items())), len(state.seen.members))
        seen = replace(state.seen, complete=True)
        return replace(state, phase=Phase.FUSING, fusing=call, seen=seen), [fuse]
    if word is not None and word.call in state.failed:
        return Failed(differ(tuple(sorted((state.offer.lead, state.me)))), (state.offer.lead,))
    if word is not None and word.call in state.refused:
        if state.sums:
            return finished(state, Finished(state.seen.members))
        org = state.refused[word.call]
        return Failed(ComityError(ErrorCode.BAD_SHARE, "what a holder sent here is no share", org=org), (org,))
    return None


def _on_word(state: OpenerState) -> Step[OpenerState] | Failed | None:
    word = state.word
    if state.torn:
        return Failed(differ((state.me,)))
    if word is None:
        return None
    own = state.sums.get(word.call)
    if own is None:
        return replace(state, phase=Phase.SHARES), []
    if own.sum != word.sum:
        return Failed(differ(tuple(sorted((state.offer.lead, state.me)))), (state.offer.lead,))
    return finished(state, Finished(state.seen.members))


step = _Opener(
    {
        **WATCHING,
        watcher.Phase.AGGREGATE: until(EncryptedTranscript.published, Phase.SHARES),
        Phase.SHARES: _on_shares,
        Phase.FUSING: lambda state: None,
        Phase.WORD: _on_word,
    }
).step
