"""The aggregator: the coordinator's part of a sum of encrypted uploads, under `lead-key` and `threshold`.

Rules of `frame.adder`. Besides: no upload may be missing, and nothing is added before all are there.
"""

from __future__ import annotations

from typing import TypeAlias

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.adder import AdderMachine, AdderState, Phase, add, started
from comity_crypto.secagg.frame.events import Event, Limits, UploadStored
from comity_crypto.secagg.frame.machine import Step
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.lead_key.transcript import EncryptedTranscript

AggregatorState: TypeAlias = AdderState[EncryptedTranscript]


def start(offer: Offer, *, now: float, limits: Limits | None = None) -> Step[AggregatorState]:
    """Begin a session with the lead's signed offer (the coordinator gets it beside the order, without the key)."""
    return started(EncryptedTranscript(offer), now, limits)


class _Aggregator(AdderMachine[AggregatorState]):
    ROLE = "the aggregator"

    def take(self, state: AggregatorState, event: Event, now: float) -> Step[AggregatorState] | None:
        """Refuse a wrong upload where it can be told: its sender sends another one."""
        taken = super().take(state, event, now)
        if taken is not None and isinstance(event, UploadStored):
            _check(taken[0])
        return taken


def _check(state: AggregatorState) -> None:
    """Raise `PAYLOAD_DIGEST` if an upload is not what its organisation committed to."""
    if state.phase is Phase.UPLOADS and state.wrong:
        raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the upload is not what was committed to", org=state.wrong[0])


def _on_uploads(state: AggregatorState) -> Step[AggregatorState] | None:
    _check(state)
    return add(state) if state.good == state.seen.members else None


_MACHINE = _Aggregator(_on_uploads)
step = _MACHINE.step
awaited = _MACHINE.awaited
