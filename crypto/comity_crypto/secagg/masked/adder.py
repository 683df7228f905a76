"""The coordinator's part of a masked sum: it closes the roster, adds vectors, lists who dropped out. It has no secret.

Rules of `frame.adder`. Besides: a wrong upload is none. The sum is closed when all uploads are there; or when the time
is up, or parties gave up, and enough uploads are there: then without the others. What it adds is uniform noise to it
(`words` 2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from comity_crypto.secagg.frame.adder import AdderMachine, AdderState, Phase, add, started
from comity_crypto.secagg.frame.events import Limits
from comity_crypto.secagg.frame.machine import Step
from comity_crypto.secagg.frame.messages import Abort
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.masked.transcript import MaskedTranscript

MaskedAdderState: TypeAlias = AdderState[MaskedTranscript]


def start(offer: MaskedOffer, *, now: float, limits: Limits | None = None) -> Step[MaskedAdderState]:
    """Begin a session with the lead's signed offer."""
    return started(MaskedTranscript(offer), now, limits)


class _MaskedAdder(AdderMachine[MaskedAdderState]):
    ROLE = "the adder"

    def late(self, state: MaskedAdderState, now: float) -> Step[MaskedAdderState]:
        """Go on without those whose uploads are missing, where that is allowed."""
        if state.phase is Phase.UPLOADS and _enough(state):
            added, outputs = add(state)
            return replace(added, deadline=now + self.wait_s(added)), outputs
        return super().late(state, now)


def _enough(state: MaskedAdderState) -> bool:
    return len(state.good) >= max(state.seen.needed, state.seen.offer.minimum)


def _on_uploads(state: MaskedAdderState) -> Step[MaskedAdderState] | None:
    good = state.good
    coming = [org for org in state.seen.members if org not in good and state.seen.get(Abort, org) is None]
    return add(state) if not coming and _enough(state) else None


_MACHINE = _MaskedAdder(_on_uploads)
step = _MACHINE.step
awaited = _MACHINE.awaited
