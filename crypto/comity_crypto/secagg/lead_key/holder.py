"""The holder of a round key: the lead, under `lead-key` (secure-aggregation.md sections 1 and 4).

1. A fresh key for every round and every attempt; it is erased when the session ends, well or badly.
2. Decrypts one aggregate, and only if every member signed roster and set, and the sum of the members' linear digests is
   the digest of the aggregate under the challenge that the aggregate's own hash fixed.
3. A missing party ends the session with its name; `next_offer` makes the restart, under a fresh key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import EraseKey, Event, Finished, Limits, SumDecoded
from comity_crypto.secagg.frame.machine import Step, finished, opening
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX
from comity_crypto.secagg.lead_key import watcher
from comity_crypto.secagg.lead_key.events import StartDecrypt
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript
from comity_crypto.secagg.lead_key.watcher import WATCHING, WatcherMachine, WatcherState, check_aggregate


class Phase(StrEnum):
    """What the holder does after those of `watcher`."""

    DECRYPTION = "decryption"


@dataclass(frozen=True, kw_only=True)
class HolderState(WatcherState):
    """Everything the machine knows; the secret key itself stays with the shell."""

    decoded: bool = False


def start(offer: Offer, *, now: float, limits: Limits | None = None) -> Step[HolderState]:
    """Begin a session with an offer of the own fresh key. The shell seals offer and public key into the order."""
    return HolderState(**opening(EncryptedTranscript(offer), now, limits)), []


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


class _Holder(WatcherMachine[HolderState]):
    ROLE = "the holder"
    HOLDS_KEY = True
    REPEATS = True

    def take(self, state: HolderState, event: Event, now: float) -> Step[HolderState] | None:
        if isinstance(event, SumDecoded) and state.phase is Phase.DECRYPTION:
            return replace(state, decoded=True), []
        return super().take(state, event, now)


def _on_check(state: HolderState) -> Step[HolderState] | None:
    if not state.seen.summed(state.values):
        return None
    return replace(state, phase=Phase.DECRYPTION), [StartDecrypt(len(state.seen.members))]


def _on_decryption(state: HolderState) -> Step[HolderState] | None:
    return finished(state, EraseKey(), Finished(state.seen.members)) if state.decoded else None


step = _Holder(
    {
        **WATCHING,
        watcher.Phase.AGGREGATE: check_aggregate,
        watcher.Phase.CHECK: _on_check,
        Phase.DECRYPTION: _on_decryption,
    }
).step
