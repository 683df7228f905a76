"""This party's part in the secure sum of one order: through as many sessions as it takes, always the same integers.

Rules:
1. An offer is taken up only if it fits the order, the agreement and the minimum, and follows the attempts before it.
2. A session is on record before anything is said in it. One that was begun by a process that died is given up with
   `Abort`: the key to its boxes is gone.
3. The slots are on disk, and release and charge in one transaction, before the first byte leaves. From then on this
   order is answered with these integers to this roster, or not at all; a restarted node reads them and trains no more.
4. Without this party's last word nobody opens the sum, and it is said only when the order's end is on disk: whoever
   dies before is asked again, and no sum is opened that lacks a receipt.
5. The slots' file goes when the lead has confirmed, or the run is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MIN
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import (
    Event,
    Failed,
    Limits,
    Output,
    RecordRelease,
    Release,
    Send,
    StartUpload,
    ValuesReady,
    WorkFailed,
    abort_of,
)
from comity_crypto.secagg.lead_key import contributor
from comity_crypto.secagg.lead_key.contributor import ContributorState
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest, StartEncrypt
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.spoken import AnyOffer
from comity_node.training import blobs, grants, store
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.integer_form import parameters_of
from comity_node.training.profiles.sum_exchange import Exchange, Said
from comity_node.training.profiles.sum_holding import refused
from comity_node.training.profiles.sum_store import PartRow
from comity_node.training.profiles.weighing import Pairs, pairs_of, weighed
from comity_policies.documents import Agreement, OrderHeader
from comity_policies.orders import WeightCommitment

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Values:
    """What this party adds: slots of shape (chunks, N), and what the journal keeps beside them. Never shown."""

    slots: NDArray[Any]
    digest: str
    shape: str
    facts: dict[str, Any]

    def __repr__(self) -> str:
        return "Values(held)"


def key_context(offer: Offer) -> bytes:
    """Return the context that a round's public key is sealed under."""
    return f"comity/secagg/key/v1/{offer.run}/{offer.round}/{offer.attempt}/{offer.key_id}".encode()


def minimum_of(agreement: Agreement) -> int:
    """Return the fewest parties whose sum may be opened."""
    return max(CONTRIBUTORS_MIN, int(agreement.terms.get("min_participants", 0)))


class Part:
    """See the head of this module. `close` at the end, `offered` by the profile, `give` by the execution."""

    def __init__(
        self,
        exchange: Exchange,
        agreement: Agreement,
        order: OrderHeader,
        order_digest: str,
        chunks: int,
        limits: Limits,
        row: PartRow | None,
        *,
        ended: bool = False,
    ) -> None:
        """`row` is what an earlier process released, `ended` whether it wrote down the order's end too."""
        self.order = order
        self.row = row
        self.exchange = exchange
        self.node = exchange.node
        self._agreement = agreement
        self._digest = order_digest
        self._chunks = chunks
        self._limits = limits
        self._values: Values | None = None
        self._saving: asyncio.Task[str] | None = None
        self._offer: AnyOffer | None = None
        self._given_up: ComityError | None = None
        self._session: asyncio.Task[None] | None = None
        self._driver: Driver[Any] | None = None
        self._said: Said | None = None
        self._summed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.weight: WeightCommitment | None = None
        self._stored = asyncio.Event()
        if ended:
            self._stored.set()

    def offered(self, offer: AnyOffer, sealed: SealedRef | None, public_key: bytes | None = None) -> None:
        """Take up an offer of the order's lead.

        Raises:
            ComityError: `ROSTER_MISMATCH` naming what does not fit, `ORDER_REPLAYED` for an attempt gone by.
        """
        if self._offer is not None and offer.digest == self._offer.digest:
            return
        self._judge(offer)
        if self._offer is not None and offer.attempt <= self._offer.attempt:
            raise ComityError(ErrorCode.ORDER_REPLAYED, "another key was offered for this or a later attempt")
        self._offer = offer
        self._session = asyncio.create_task(self._take_part(self._session, offer, sealed, public_key))

    def give(self, values: Values) -> None:
        """Give what this party adds; the egress policy has let it out."""
        if self._values is None:
            self._values = values
            self._saving = asyncio.create_task(self._save(values.slots))
            self._saving.add_done_callback(lambda task: task.cancelled() or task.exception())
        if self._driver is not None:
            self._driver.tell(ValuesReady(self._values.digest))

    async def summed(self, timeout_s: float) -> str:
        """Wait until a sum lacks our last word only; returns the digest of the upload. Raises `TIMEOUT`.

        The word is said after `stored`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._summed)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the secure sum did not come to its end") from error

    def stored(self) -> None:
        """The order's end is on disk."""
        self._stored.set()

    async def tell_end(self, upload_digest: str, members: tuple[str, ...], pairs: Pairs) -> None:
        """Let the order end, committed to its weight among `members`, and wait until that is on disk."""
        if not self._summed.done():
            self.weight = weighed(self.node, self._agreement, self.order, self._digest, self.slots, members, pairs)
            self._summed.set_result(upload_digest)
        await self._stored.wait()

    def give_up(self, error: ComityError) -> None:
        """Nothing will be added: tell the session, if there is one, and any that is offered later."""
        self._given_up = ComityError(error.code)
        if self._driver is not None:
            self._driver.tell(WorkFailed(ComityError(error.code)))

    async def close(self) -> None:
        """End sessions; the journal keeps what was released."""
        if self._session is not None:
            self._session.cancel()
            await asyncio.gather(self._session, return_exceptions=True)
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
        if self._said is not None:
            self._said.end()
        if not self._summed.done():
            self._summed.cancel()

    # -- sessions

    def _judge(self, offer: AnyOffer) -> None:
        order, agreement = self.order, self._agreement
        here = (order.agreement, order.run, order.step, order.seq, order.lead, self._digest)
        if (offer.agreement, offer.run, offer.step, offer.round, offer.lead, offer.order_digest) != here:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is for another order")
        if not set(offer.parties) <= set(agreement.parties) or offer.minimum < self._minimum():
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer names strangers, or too few parties")
        self._judge_numbers(offer)

    def _minimum(self) -> int:
        """Return the fewest parties of a sum that this party adds to."""
        return minimum_of(self._agreement)

    def _judge_numbers(self, offer: AnyOffer) -> None:
        if not isinstance(offer, Offer) or offer.parameters != parameters_of(self._agreement).name:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer has other parameters")

    async def _take_part(
        self, before: asyncio.Task[None] | None, offer: AnyOffer, sealed: SealedRef | None, public_key: bytes | None
    ) -> None:
        if before is not None:
            before.cancel()
            await asyncio.gather(before, return_exceptions=True)
        if self._said is not None:
            self._said.end()
        self._said = said = Said(self.exchange, offer)
        try:
            await self._session_of(offer, said, sealed, public_key)
        except ComityError as error:
            log.warning("sum.ended", run=offer.run, round=self.order.round, error=str(error))
            abort = abort_of(offer.digest, error)
            await said.say(abort.to, abort.message)

    async def _session_of(
        self, offer: AnyOffer, said: Said, sealed: SealedRef | None, public_key: bytes | None
    ) -> None:
        node = self.node
        assert isinstance(offer, Offer), "judged"
        begun = node.journal.run(lambda conn: sum_store.begin_session(conn, offer.run, offer.digest, offer.key_id))
        key, _ = await asyncio.gather(self._public_key(offer, sealed, public_key), begun)
        if self._given_up is not None:
            raise self._given_up
        previous = None if self.row is None else self.row.released
        state, outputs = contributor.start(
            self.exchange.me,
            offer,
            order_digest=self._digest,
            chunks=self._chunks,
            box_key=BoxKey(),
            entropy=os.urandom,
            now=time.monotonic(),
            limits=self._limits,
            previous=previous,
        )
        path = node.settings.payloads_folder / f".upload-{offer.digest[:32]}"
        work = Work(self, offer, key, path, said)
        driver = work.driver = Driver(state, contributor.step, work.perform, refused)
        try:
            await self._drive(offer, driver, outputs)
        finally:
            work.close()

    async def _drive(self, offer: AnyOffer, driver: Driver[Any], outputs: list[Output]) -> None:
        """Run this party's machine to the session's end."""
        self._driver = driver
        silence = self.exchange.listen(offer, driver.tell)
        try:
            if self._values is not None:
                driver.tell(ValuesReady(self._values.digest))
            ended = await driver.run(outputs)
            if isinstance(ended, Failed):
                log.warning("sum.failed", run=offer.run, round=self.order.round, error=str(ended.error))
        finally:
            silence()
            self._driver = None

    async def _public_key(self, offer: Offer, sealed: SealedRef | None, public_key: bytes | None) -> bytes:
        """Return the offer's key, fetched unless it is our own. Raises `PAYLOAD_*`, `SEAL_BROKEN`."""
        node, size = self.node, offer.parameter_set.key_bytes
        if public_key is None:
            if sealed is None:
                raise ComityError(ErrorCode.PAYLOAD_MISSING, "the offer has no key")
            chunks = node.payloads.get(sealed)
            blob, _ = await blobs.open_stream(
                node.keys, self.exchange.me, sealed, key_context(offer), chunks, size_max=size, heard=node.ledger.hear
            )
            public_key = blobs.to_bytes(blob)
            blob.close()
        contributor.check_public_key(offer, public_key)
        return public_key

    # -- what is kept

    async def _save(self, slots: NDArray[Any]) -> str:
        """Put the slots on disk; returns the file's name."""
        name = f"sum-{self.order.run}-{self.order.seq}"
        plain = memoryview(np.ascontiguousarray(slots)).cast("B")
        blob = blobs.Blob(*await asyncio.to_thread(memory.write_parts, [plain]))
        try:
            await blobs.to_file(blob, self.node.settings.payloads_folder / name)
        finally:
            blob.close()
        return name

    @property
    def slots(self) -> NDArray[Any]:
        """What is to be encrypted."""
        assert self._values is not None, "the machine encrypts what it was given"
        return self._values.slots

    async def restore(self) -> None:
        """Read what an earlier process released. Raises `PAYLOAD_MISSING`."""
        row = self.row
        assert row is not None, "only what was released is restored"
        if row.file is None:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "this part has served its purpose")
        try:
            path = self.node.settings.payloads_folder / row.file
            slots = await asyncio.to_thread(self._read, path, row.chunks)
        except (OSError, ValueError) as error:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "a part of this node's journal is gone") from error
        self._values = Values(slots, row.released.values_digest, row.shape, json.loads(row.facts))

    def _read(self, path: Path, size: int) -> NDArray[Any]:
        """Return what `_save` wrote. Raises `OSError`, `ValueError`."""
        return np.fromfile(path, np.uint64).reshape(size, -1)

    async def record(self, release: Release) -> None:
        """Journal the release, with its charge, once. Raises `GRANT_EXHAUSTED`, `JOURNAL_UNWRITABLE`, `SPOOL_FULL`."""
        if self.row is not None:
            return
        values, order = self._values, self.order
        assert values is not None, "the machine releases what it was given"
        assert self._saving is not None, "given values are being saved"
        row = PartRow(
            run=order.run,
            seq=order.seq,
            order_digest=self._digest,
            file=await asyncio.shield(self._saving),
            chunks=self._chunks,
            order=json.dumps(order.to_json()),
            shape=values.shape,
            facts=json.dumps(values.facts),
            release=json.dumps(release.to_json()),
        )
        cost = {grants.EGRESS_BYTES: int(values.facts["size_bytes"])}

        def write(conn: Connection) -> None:
            grants.check(self._agreement, store.spent(conn, order.agreement), cost)
            store.spend(conn, order.agreement, cost)
            sum_store.put_part(conn, row)

        await self.node.journal.run(write)
        self.row = row


class Work:
    """Performs the outputs of one session."""

    driver: Driver[ContributorState]

    def __init__(self, part: Part, offer: Offer, public_key: bytes, path: Path, said: Said) -> None:
        self._part = part
        self._offer = offer
        self._key = public_key
        self._path = path
        self._said = said
        self._fd = -1
        self._pairs: Pairs = {}

    async def perform(self, output: Output) -> None:
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartEncrypt):
            self.driver.work(self._encrypt(output))
        elif isinstance(output, RecordRelease):
            await self._part.record(output.release)
        elif isinstance(output, StartUpload):
            self.driver.work(self._part.exchange.upload(self._path, output))
        elif isinstance(output, StartDigest):
            self.driver.work(self._linear_digest(output))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._path.unlink(missing_ok=True)

    async def _encrypt(self, job: StartEncrypt) -> Event:
        self._path.unlink(missing_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        slots = self._part.slots
        self._pairs = pairs_of(self._part.exchange.me, self.driver.state.seen.members, [e.seed for e in job.pairs])
        parameters, workers = self._offer.parameter_set, self._part.exchange.workers
        return await workers.encrypt(parameters, self._key, slots, job.pairs, self._fd)

    async def _linear_digest(self, job: StartDigest) -> Event:
        offer, workers = self._offer, self._part.exchange.workers
        values = await workers.digest(offer.parameter_set, BlobKind.UPLOAD, offer.chunks, job.challenge, self._fd)
        await self._part.tell_end(job.digest, self.driver.state.seen.members, self._pairs)
        return DigestReady(values)
