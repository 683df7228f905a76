"""One masked sum at the coordinator: the adder's machine with the spool. It adds vectors of noise; no worker processes.

An upload that does not come in time after all have signed the set of commitments (`UPLOAD_S`, and what its size takes)
is not waited for: the sum is that of the others, if they are enough.
"""

from __future__ import annotations

import asyncio
import time

from comity_coordinator.training.adding import Session
from comity_crypto.secagg.frame.blobs import file_digest
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import BlobReady, Limits
from comity_crypto.secagg.masked import adder as masked_adder
from comity_crypto.secagg.masked.blobs import add_blobs
from comity_crypto.secagg.masked.messages import MaskedOffer

UPLOAD_S = 60.0


class MaskedSession(Session):
    """A session of the profile `masked`."""

    def start(self) -> None:
        """Begin."""
        assert isinstance(self.offer, MaskedOffer), "another profile's session begins another way"
        state, outputs = masked_adder.start(self.offer, now=time.monotonic(), limits=Limits(upload_s=UPLOAD_S))
        self._driver = Driver(state, masked_adder.step, self._perform, self._refused)
        self._task = asyncio.create_task(self._run(outputs))

    def awaited(self) -> tuple[str, ...]:
        """Return whom the session waits for now."""
        return masked_adder.awaited(self._driver.state)

    async def _added(self, uploads: list[int], total: int) -> BlobReady:
        assert isinstance(self.offer, MaskedOffer), "as in `start`"
        await asyncio.to_thread(add_blobs, uploads, self.offer.words, total)
        return BlobReady(*await asyncio.to_thread(file_digest, total))
