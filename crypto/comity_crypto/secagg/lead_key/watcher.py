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
from comity_crypto.secagg.frame.events import Event
from comity_crypto.secagg.frame.machine import RoundMachine, Stage, State, Step, Turn, until
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest
from comity_crypto.secagg.lead_key.messages import LinearDigest
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript


class Phase(StrEnum):
    """What all who look on wait for when the set is signed."""

    AGGREGATE = "aggregate"
    CHECK = "check"


@dataclass(frozen=True, kw_only=True)
class WatcherState(State[EncryptedTranscript]):
    """What a machine knows that looks on."""

    values: Digest | None = None  # digest of the aggregate, as this machine has it computed


W = TypeVar("W", bound=WatcherState)


class WatcherMachine(RoundMachine[W]):
    """See the head of this module."""

    SUMMED = (Phase.AGGREGATE,)
    AWAITED: ClassVar[Mapping[StrEnum, type[Body]]] = {Phase.CHECK: LinearDigest}

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
    Stage.ROSTER: until(EncryptedTranscript.ready, Stage.SIGNATURES),
    Stage.SIGNATURES: until(EncryptedTranscript.roster_signed, Stage.COMMITMENTS),
    Stage.COMMITMENTS: until(EncryptedTranscript.committed, Stage.SET),
    Stage.SET: until(EncryptedTranscript.set_signed, Phase.AGGREGATE),
}
