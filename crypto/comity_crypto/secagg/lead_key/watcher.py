"""A machine that looks on while others contribute, and checks the aggregate against the members' linear digests.

The lead under `lead-key`, and under `threshold` the lead and every holder of a share of the key, begin like this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from comity_crypto.secagg.bfv.digests import Digest, check_digest
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import Event, Limits
from comity_crypto.secagg.frame.machine import RoundMachine, State, Step, Turn, until
from comity_crypto.secagg.frame.messages import Commitment, CommitmentsSignature, RosterSignature
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest
from comity_crypto.secagg.lead_key.messages import LinearDigest, Offer, Ready
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript


class Phase(StrEnum):
    """What is waited for, by all who look on."""

    ROSTER = "roster"
    SIGNATURES = "signatures"
    COMMITMENTS = "commitments"
    SET = "set"
    AGGREGATE = "aggregate"
    CHECK = "check"


@dataclass(frozen=True, kw_only=True)
class WatcherState(State[EncryptedTranscript]):
    """What a machine knows that looks on."""

    values: Digest | None = None  # digest of the aggregate, as this machine has it computed


W = TypeVar("W", bound=WatcherState)


def beginning(offer: Offer, now: float, limits: Limits | None) -> dict[str, Any]:
    """Return the fields of a state that waits for the roster."""
    limits = limits or Limits()
    deadline = now + limits.ready_s + limits.step_s
    return {"phase": Phase.ROSTER, "seen": EncryptedTranscript(offer), "limits": limits, "deadline": deadline}


class WatcherMachine(RoundMachine[W]):
    """See the head of this module."""

    SLOW = (Phase.COMMITMENTS,)
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {
        Phase.ROSTER: Ready,
        Phase.SIGNATURES: RosterSignature,
        Phase.COMMITMENTS: Commitment,
        Phase.SET: CommitmentsSignature,
        Phase.CHECK: LinearDigest,
    }

    def take(self, state: W, event: Event, now: float) -> Step[W] | None:
        """Take the aggregate's digest, once."""
        if isinstance(event, DigestReady) and state.phase is Phase.CHECK and state.values is None:
            check_digest(state.seen.offer.parameter_set, event.values)
            return replace(state, values=event.values), []
        return super().take(state, event, now)


def check_aggregate(state: W) -> Step[W] | None:
    """Begin to check the aggregate when it is published."""
    notice = state.seen.notice
    if not state.seen.published() or notice is None:
        return None
    return replace(state, phase=Phase.CHECK), [StartDigest(notice.challenge, notice.aggregate)]


WATCHING: dict[StrEnum, Turn[Any]] = {
    Phase.ROSTER: until(EncryptedTranscript.ready, Phase.SIGNATURES),
    Phase.SIGNATURES: until(EncryptedTranscript.roster_signed, Phase.COMMITMENTS),
    Phase.COMMITMENTS: until(EncryptedTranscript.committed, Phase.SET),
    Phase.SET: until(EncryptedTranscript.set_signed, Phase.AGGREGATE),
}
