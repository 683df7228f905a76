"""This party's part in the sum of one order under `threshold`; rules as in `sum_part`, and besides:

1. The round's key comes from a ceremony of which this node has a share; it is taken for the session, once, before
   anything is said, and erased at the session's end, whatever that is.
2. Two machines work on one session: the contributor, and the holder that checks the aggregate and shares it.
3. A share leaves sealed to those who open the sum by the agreement, whose names the offer has to repeat; what other
   parties get to see of it is its hash.
4. Where this organisation opens sums beside the lead, that goes on by itself (`threshold_opening`), whatever becomes of
   this part.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import EraseKey, Event, Failed, Output, Send
from comity_crypto.secagg.lead_key import contributor
from comity_crypto.secagg.lead_key.events import DigestReady, StartDigest
from comity_crypto.secagg.spoken import AnyOffer
from comity_crypto.secagg.threshold import keyholder
from comity_crypto.secagg.threshold.compared import SALT_BYTES
from comity_crypto.secagg.threshold.events import ShareMade, StartShare
from comity_crypto.secagg.threshold.keyholder import KeyHolderState
from comity_crypto.secagg.threshold.messages import ShareReady, ThresholdOffer, default_threshold
from comity_crypto.secagg.threshold.workers import KeyWorkers, QuorumOf
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.enforcement import step_of
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.integer_form import parameters_of
from comity_node.training.profiles.sum_exchange import Said
from comity_node.training.profiles.sum_holding import refused
from comity_node.training.profiles.sum_part import Part, Work
from comity_node.training.profiles.sum_wire import Addressed
from comity_node.training.profiles.threshold_exchange import ThresholdExchange
from comity_node.training.profiles.threshold_fusing import OwnShare, share_context
from comity_node.training.profiles.threshold_keeping import HeldKey
from comity_policies.documents import Agreement, Step

PAUSE_S = 0.2

log = structlog.get_logger("comity.node.training")


def quorum_of(agreement: Agreement) -> int:
    """Return how many organisations open a sum of this agreement; the same number however many drop out of a run.

    What the term `release_quorum` names, but more than half of the parties at the least; where no party names one,
    everybody of three, two thirds of more.
    """
    parties = len(agreement.parties)
    if "release_quorum" not in agreement.terms:
        return default_threshold(parties)
    return max(parties // 2 + 1, int(agreement.terms["release_quorum"]))


def openers_of(step: Step, parties: Collection[str]) -> tuple[str, ...]:
    """Return who opens a sum of these parties: the lead, and whom the agreement names beside it, if it is there."""
    return tuple(org for org in step.openers if org == step.lead or org in parties)


class ThresholdPart(Part):
    """See the head of this module."""

    def _shape(self) -> str:
        """Return the names of this party's numbers. Raises `PAYLOAD_MISSING` before there are any."""
        if self._values is None:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "this part has no numbers yet")
        return self._values.shape

    def _minimum(self) -> int:
        return max(super()._minimum(), quorum_of(self._agreement))

    def _judge_numbers(self, offer: AnyOffer) -> None:
        if not isinstance(offer, ThresholdOffer) or offer.parameters != parameters_of(self._agreement).name:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is of another profile or has other parameters")
        offer.check_openers(step_of(self._agreement, self.order).openers)

    async def _session_of(
        self, offer: AnyOffer, said: Said, sealed: SealedRef | None, public_key: bytes | None
    ) -> None:
        assert isinstance(offer, ThresholdOffer), "judged"
        assert isinstance(self.exchange, ThresholdExchange), "the profile's own"
        node, exchange = self.node, self.exchange
        await exchange.ceremonies.settled(offer.ceremony)
        await node.journal.run(lambda conn: sum_store.begin_session(conn, offer.run, offer.digest, offer.key_id))
        if self._given_up is not None:
            raise self._given_up
        held = await exchange.keeping.take(offer)
        try:
            contributor.check_public_key(offer, held.public)
            await self._both(offer, held, said, exchange)
        finally:
            await asyncio.shield(exchange.keeping.erase(offer.key_id))

    async def _both(self, offer: ThresholdOffer, held: HeldKey, said: Said, exchange: ThresholdExchange) -> None:
        box_key = BoxKey()
        state, outputs = contributor.start(
            exchange.me,
            offer,
            order_digest=self._digest,
            chunks=self._chunks,
            box_key=box_key,
            entropy=os.urandom,
            now=time.monotonic(),
            limits=self._limits,
            previous=None if self.row is None else self.row.released,
        )
        work = Work(self, offer, held.public, self.node.settings.payloads_folder / f".upload-{offer.digest[:32]}", said)
        driver = work.driver = Driver(state, contributor.step, work.perform, refused)
        watch, first = keyholder.start(exchange.me, offer, now=time.monotonic(), limits=self._limits)
        holding = _Sharing(exchange, offer, held, said)
        other = Driver(watch, keyholder.step, holding.perform, refused)
        holding.driver = other
        if exchange.me in offer.openers and exchange.me != offer.lead:
            exchange.openings.begin(
                offer, self._agreement, self.order, self._digest, box_key, self._limits, self._shape
            )
        silence = exchange.listen(offer, other.tell)
        try:
            _, ended = await asyncio.gather(self._drive(offer, driver, outputs), other.run(first))
            if isinstance(ended, Failed):
                log.warning("sum.failed", run=offer.run, round=self.order.round, error=str(ended.error))
        finally:
            silence()
            work.close()
            holding.close()


class _Sharing:
    """Performs the outputs of the key holder's machine."""

    driver: Driver[KeyHolderState]

    def __init__(self, exchange: ThresholdExchange, offer: ThresholdOffer, held: HeldKey, said: Said) -> None:
        self._exchange = exchange
        self._offer = offer
        self._held = held
        self._said = said
        self._work = KeyWorkers(exchange.workers, offer.parameter_set)
        self._fd = memory_file("aggregate")
        self._sealed: dict[str, SealedRef] = {}

    async def perform(self, output: Output) -> None:
        """Do one output."""
        if isinstance(output, Send):
            message = output.message
            sealed = self._sealed.get(message.call) if isinstance(message, ShareReady) else None
            await self._said.say(output.to, message, but=self.driver.tell, sealed=sealed)
        elif isinstance(output, StartDigest):
            self.driver.work(self._check(output))
        elif isinstance(output, StartShare):
            self.driver.work(self._share(output))
        elif isinstance(output, EraseKey):
            await self._exchange.keeping.erase(self._offer.key_id)

    def close(self) -> None:
        """Let go of the aggregate."""
        for digest in [digest for digest, fd in self._exchange.checked.items() if fd == self._fd]:
            del self._exchange.checked[digest]
        os.close(self._fd)

    async def _check(self, job: StartDigest) -> Event:
        offer, exchange = self._offer, self._exchange
        await exchange.download(Addressed(job.digest, offer.upload_bytes), self._fd)
        values = await exchange.workers.check_and_digest(
            offer.parameter_set, offer.chunks, job.challenge, job.digest, self._fd
        )
        exchange.checked[job.digest] = self._fd
        return DigestReady(values)

    async def _share(self, job: StartShare) -> Event:
        offer, exchange = self._offer, self._exchange
        points = tuple(offer.point(org) for org in job.members)
        of = QuorumOf(offer.point(exchange.me), points, offer.threshold, len(offer.holders))
        held, target = memory_file("held"), memory_file("share")
        try:
            os.pwrite(held, self._held.share, 0)
            made = await self._work.share(offer.chunks, of, held, self._fd, target)
        finally:
            os.close(held)
        blob, salt, keys = Blob(target, made.size_bytes), os.urandom(SALT_BYTES), dict(job.receivers)
        own = keys.pop(exchange.me, None) is not None
        try:
            if keys:
                self._sealed[job.call] = await self._upload(job.call, blob, salt, keys)
            if own:
                exchange.keep_share(job.call, OwnShare(blob.duplicate(), salt))
        finally:
            blob.close()
        return ShareMade(job.call, made.digest)

    async def _upload(self, call: str, blob: Blob, salt: bytes, keys: dict[str, bytes]) -> SealedRef:
        """Seal a share to who opens, by the keys of this attempt, and put it into the spool."""
        offer, node = self._offer, self._exchange.node
        context = share_context(offer, self._exchange.me, call)
        sealed = await blobs.seal(
            blob, node.settings.payloads_folder, keys, context, salt=salt, header=node.ledger.carried, fsync=False
        )
        path = node.settings.payloads_folder / str(sealed.file)  # small ones are held inline
        try:
            while True:  # bounded by the session's deadlines, whose end cancels this job
                try:
                    await node.payloads.put(
                        path if sealed.inline is None else sealed.inline, sealed.ref, tuple(sorted(keys))
                    )
                except ComityError as error:
                    log.warning("sum.share", run=offer.run, error=str(error))
                    await asyncio.sleep(PAUSE_S)
                    continue
                return sealed.ref
        finally:
            path.unlink(missing_ok=True)
