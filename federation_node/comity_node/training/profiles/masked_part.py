"""This party's part in the masked sum of one order (profile `masked`); rules as in `sum_part`, and besides:

1. The one list of survivors that this party stands on is journalled before its signature leaves, and bounds every later
   attempt at the same order: shares of the other kind are never revealed (`masked_contributor` 3 and 4).
2. The session's secrets live in memory only: a node that died reveals nothing any more, and the others do without it.
3. A party that died after its upload learns from the lead's confirmation that its part is in the sum; then its order
   ends with the upload that left, receipt included.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import (
    BlobReady,
    Event,
    Output,
    RecordRelease,
    Release,
    Send,
    StartUpload,
)
from comity_crypto.secagg.masked import contributor as masked_contributor
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.blobs import write_blob
from comity_crypto.secagg.masked.contributor import MaskedContributorState
from comity_crypto.secagg.masked.events import RecordStand, Settled, Stand, StartMask, StartSettle
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.masked.words import Words
from comity_crypto.secagg.spoken import AnyOffer
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.plain import RESULT
from comity_node.training.profiles.sum_exchange import Said
from comity_node.training.profiles.sum_holding import refused
from comity_node.training.profiles.sum_part import Part
from comity_node.training.profiles.weighing import Pairs, pairs_of

# One member may be lost after the commitments; each one more would cost two that may be dishonest
# (`masked_transcript`).
SPARE = 1

log = structlog.get_logger("comity.node.training")


class MaskedPart(Part):
    """See the head of this module."""

    def _judge_numbers(self, offer: AnyOffer) -> None:
        if not isinstance(offer, MaskedOffer) or offer.words != self._chunks or offer.spare > SPARE:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is of another profile or size")

    async def _session_of(
        self, offer: AnyOffer, said: Said, sealed: SealedRef | None, public_key: bytes | None
    ) -> None:
        assert isinstance(offer, MaskedOffer), "judged"
        node, row = self.node, self.row
        await node.journal.run(lambda conn: sum_store.begin_session(conn, offer.run, offer.digest, offer.key_id))
        if self._given_up is not None:
            raise self._given_up
        state, outputs = masked_contributor.start(
            self.exchange.me,
            offer,
            order_digest=self._digest,
            words=self._chunks,
            entropy=os.urandom,
            now=time.monotonic(),
            limits=self._limits,
            release=None if row is None else row.released,
            stand=None if row is None else row.stand,
        )
        work = _MaskedWork(self, node.settings.payloads_folder / f".upload-{offer.digest[:32]}", said)
        driver = work.driver = Driver(state, masked_contributor.step, work.perform, refused)
        try:
            await self._drive(offer, driver, outputs)
        finally:
            work.close()

    def _read(self, path: Path, size: int) -> NDArray[Any]:
        return np.fromfile(path, np.uint32).reshape(size)

    async def released(self, release: Release, upload: str) -> None:
        """Journal the release, and which upload leaves now: its digest is what the receipt names in the end."""
        await self.record(release)
        row = self.row
        if row is not None and row.upload != upload:
            self.row = row.uploading(upload)
            text = self.row.release
            await self.node.journal.run(lambda conn: sum_store.set_release(conn, self._digest, text))

    def missed(self, outcome: str) -> bool:
        """Hear from the lead how the sum ended, if nothing else told it; True if the order's end follows from that.

        With `result` the part that left is in the sum: the order ends so, although this party said no last word.
        """
        upload = None if self.row is None else self.row.upload
        if self._summed.done() or upload is None:
            return False
        if outcome == RESULT:
            self._summed.set_result(upload)
        else:
            error = ComityError(ErrorCode.ROSTER_MISMATCH, "the sum was made without this part")
            self._summed.set_exception(error)
            self._summed.exception()  # nobody may wait for it any more
        return True

    async def stand(self, stand: Stand) -> None:
        """Journal the list that this party stands on. Raises `ORDER_REPLAYED` if it stood on another."""
        row = self.row
        assert row is not None, "a list follows a release"
        if row.stand is not None and row.stand.survivors != stand.survivors:
            raise ComityError(ErrorCode.ORDER_REPLAYED, "this order was summed for other survivors before")
        self.row = row.standing(stand)
        release = self.row.release
        await self.node.journal.run(lambda conn: sum_store.set_release(conn, self._digest, release))


class _MaskedWork:
    """Performs the outputs of one session."""

    driver: Driver[MaskedContributorState]

    def __init__(self, part: MaskedPart, path: Path, said: Said) -> None:
        self._part = part
        self._path = path
        self._said = said
        self._pairs: Pairs = {}

    async def perform(self, output: Output) -> None:
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartMask):
            self.driver.work(self._mask(output))
        elif isinstance(output, RecordRelease):
            upload = self.driver.state.upload
            assert upload is not None, "what is released was masked"
            await self._part.released(output.release, upload.digest)
        elif isinstance(output, RecordStand):
            await self._part.stand(output.stand)
        elif isinstance(output, StartUpload):
            self.driver.work(self._part.exchange.upload(self._path, output))
        elif isinstance(output, StartSettle):
            self.driver.work(self._settle(output))

    def close(self) -> None:
        """Drop the upload: it is of no use to another session."""
        self._path.unlink(missing_ok=True)

    async def _mask(self, job: StartMask) -> Event:
        # After the own mask and the round's come the pairs', in the order of the members' names.
        seeds = [mask.key for mask in job.masks[2:]]
        self._pairs = pairs_of(self._part.exchange.me, self.driver.state.seen.members, seeds)
        return BlobReady(*await asyncio.to_thread(_masked, self._part.slots, job, self._path))

    async def _settle(self, job: StartSettle) -> Event:
        await self._part.tell_end(job.upload_digest, self.driver.state.seen.survivors, self._pairs)
        return Settled()


def _masked(words: Words, job: StartMask, path: Path) -> tuple[str, int]:
    """Write the masked contribution, synced; returns digest and size."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_blob(fd, BlobKind.UPLOAD, masked_words.protect(words, job.tag_key, job.masks))
        os.fsync(fd)
        return file_digest(fd)
    finally:
        os.close(fd)
