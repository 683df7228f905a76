"""The lead's side of one question under `threshold`; rules as in `sum_lead`, and besides:

1. Every attempt takes the next key of the run's batches whose holders include the parties. Without one, a ceremony is
   called among them first; a batch that comes to its end is followed by the next one, ahead of time, and the first one
   is made while the app starts.
2. The lead holds one share as every holder does: it opens what a quorum shares, and nothing else.
3. A quorum that opens no sum is another machine's matter (`comity_crypto.secagg.threshold.lead`); who is suspected is
   named to whoever watches the run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.blobs import check_blob
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Event, Output, Received, Send, SumDecoded, abort_of
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX
from comity_crypto.secagg.lead_key.messages import LinearDigest
from comity_crypto.secagg.threshold import lead as threshold_lead
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_crypto.secagg.threshold.events import QuorumFailed, ShareRefused, StartFuse, Suspected
from comity_crypto.secagg.threshold.lead import LeadState
from comity_crypto.secagg.threshold.messages import KeyPlan, ThresholdOffer
from comity_crypto.secagg.threshold.workers import KeyWorkers
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.enforcement import step_of
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.base import Delivery
from comity_node.training.profiles.integer_form import parameters_of
from comity_node.training.profiles.sum_exchange import Said
from comity_node.training.profiles.sum_form import Plan
from comity_node.training.profiles.sum_holding import Decode, refused
from comity_node.training.profiles.sum_lead import Opened, SumCollector
from comity_node.training.profiles.sum_wire import Addressed
from comity_node.training.profiles.threshold_exchange import ThresholdExchange
from comity_node.training.profiles.threshold_part import quorum_of, share_context
from comity_policies.documents import Agreement

# A ceremony costs a round or two; one batch serves four rounds of training and evaluation.
KEYS_PER_BATCH = 8
# Fewer left than these, and the next batch is made while rounds go on.
KEYS_LEFT_MIN = 3
# One to train, one to evaluate.
ORDERS_A_ROUND = 2
# A share is its header and chunks; sealing adds less than this.
_SEALING_BYTES = 64 << 10

log = structlog.get_logger("comity.node.training")


def call_ceremony(
    exchange: ThresholdExchange, agreement: Agreement, run: str, lead: str, parties: tuple[str, ...], keys: int
) -> asyncio.Task[KeyBatch]:
    """Call a ceremony of a run that this node leads, for up to `keys` keys; its number tells it from the others."""
    parameters = parameters_of(agreement)
    plan = KeyPlan(
        agreement=agreement.digest,
        run=run,
        number=int.from_bytes(os.urandom(2)),
        lead=lead,
        holders=parties,
        threshold=quorum_of(agreement),
        parameters=parameters.name,
        parameters_digest=parameters.digest,
        keys=min(KEYS_PER_BATCH, max(ORDERS_A_ROUND, keys)),
    )
    return exchange.ceremonies.begin(plan)


class ThresholdCollector(SumCollector):
    """Collects the answers to one question as one sum that a quorum opens."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._dropped = asyncio.Event()
        self._left: set[str] = set()

    async def drop(self, org: str) -> list[Delivery]:
        """Begin anew without a party, from a new ceremony if one was under way with it."""
        deliveries = await super().drop(org)
        self._dropped.set()
        return deliveries

    async def keeps(self, org: str) -> bool:
        """After its last word a party's part is in the sum; as a holder it is merely not there."""
        state = self._driver.state if self._driver is not None else None
        if not isinstance(state, LeadState) or state.seen.get(LinearDigest, org) is None:
            return False
        assert self._driver is not None, "it has a state"
        self._left.add(org)
        left = abort_of(state.offer.digest, ComityError(ErrorCode.UNAVAILABLE))
        self._driver.tell(Received(org, left.message))  # what it would say itself
        return True

    def _minimum(self) -> int:
        return max(super()._minimum(), quorum_of(self.question.agreement))

    async def _attempt(self, fixed: Plan, without: frozenset[str]) -> Opened:
        order, node, exchange = self.question.order, self._node, self.exchange
        assert isinstance(exchange, ThresholdExchange), "the profile's own"
        parties, minimum = self.left(without | (self._left & exchange.away))
        number = await node.journal.run(lambda conn: sum_store.next_attempt(conn, order.run, order.seq))
        if number > ATTEMPT_MAX:
            raise ComityError(ErrorCode.RUN_FAILED, "the secure sum did not succeed", attempts=number)
        batch, key_id = await self._key(exchange, parties)
        parameters = batch.plan.parameter_set
        offer = ThresholdOffer(
            agreement=order.agreement,
            run=order.run,
            step=order.step,
            round=order.seq,
            attempt=number,
            lead=order.lead,
            parties=parties,
            minimum=minimum,
            parameters=parameters.name,
            parameters_digest=parameters.digest,
            key_id=key_id,
            order_digest=self.question.order_digest,
            chunks=fixed.chunks,
            ceremony=batch.plan.digest,
            transcript=batch.transcript,
            holders=batch.plan.holders,
            threshold=batch.plan.threshold,
        )
        state, outputs = threshold_lead.start(offer, now=time.monotonic(), limits=self._limits)
        said = Said(exchange, offer)
        work = _Fusing(exchange, offer, said, partial(self.opened, fixed=fixed), self._sink.suspect)
        driver = Driver(state, threshold_lead.step, work.perform, refused)
        work.driver = driver
        try:
            return await self.work(offer, driver, outputs, said, work, (None, b""))
        finally:
            await exchange.keeping.erase(key_id)

    async def _key(self, exchange: ThresholdExchange, parties: tuple[str, ...]) -> tuple[KeyBatch, str]:
        """Return a key that serves these parties. Raises what ended the ceremony that would have made it."""
        order = self.question.order
        for _ in range(2):
            found = [
                (batch, key_id)
                for batch, key_id in await exchange.keeping.fresh(order.run)
                if set(parties) <= set(batch.plan.holders) and len(parties) >= batch.plan.threshold
                if exchange.reserve(key_id)
            ]
            for _, spare in found[1:]:
                exchange.release(spare)
            if found:
                self._more(exchange, parties, len(found) - 1)
                return found[0]
            await self._made(self._call(exchange, parties), parties)
        raise ComityError(ErrorCode.UNAVAILABLE, "no ceremony made a key for this round")

    async def _made(self, ceremony: asyncio.Task[KeyBatch], parties: tuple[str, ...]) -> None:
        """Wait for a ceremony, but not for a party that was dropped. Raises what ended it, `UNAVAILABLE`."""
        self._dropped.clear()
        dropped = asyncio.create_task(self._dropped.wait())
        try:
            if not self._gone.intersection(parties):
                await asyncio.wait({ceremony, dropped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            dropped.cancel()
        if not ceremony.done():
            raise ComityError(ErrorCode.UNAVAILABLE, "a party dropped out of a ceremony")
        ceremony.result()

    def _more(self, exchange: ThresholdExchange, parties: tuple[str, ...], left: int) -> None:
        """Make more keys while rounds go on, if the run may need more than are left."""
        run = self.question.order.run
        if left < KEYS_LEFT_MIN and left < self._coming() and not exchange.ceremonies.under_way(run):
            self._call(exchange, parties)

    def _call(self, exchange: ThresholdExchange, parties: tuple[str, ...]) -> asyncio.Task[KeyBatch]:
        """Call a ceremony among the parties, for what may still be asked in this run."""
        question = self.question
        order = question.order
        return call_ceremony(exchange, question.agreement, order.run, order.lead, parties, self._coming() + 1)

    def _coming(self) -> int:
        """Return how many orders will follow this one, if every round asks as often as those before."""
        order = self.question.order
        rounds = step_of(self.question.agreement, order).most_rounds
        each = -(-(order.seq + 1) // max(1, order.round))
        return each * (rounds - order.round) + each - 1


class _Fusing:
    """Performs the outputs of the lead's machine. `opened` is the reply that stands for all, once it is there."""

    driver: Driver[LeadState]

    def __init__(
        self,
        exchange: ThresholdExchange,
        offer: ThresholdOffer,
        said: Said,
        decode: Decode,
        suspect: Callable[[Sequence[str]], None],
    ) -> None:
        self._suspect = suspect
        self._exchange = exchange
        self._offer = offer
        self._said = said
        self._decode = decode
        self._work = KeyWorkers(exchange.workers, offer.parameter_set)
        self._aggregate = -1
        self.opened: Blob | None = None

    async def perform(self, output: Output) -> None:
        """Do one output."""
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartFuse):
            self.driver.work(self._fuse(output))
        elif isinstance(output, Suspected):
            log.warning("sum.suspects", run=self._offer.run, round=self._offer.round, orgs=list(output.orgs))
            self._suspect(output.orgs)

    def close(self) -> None:
        """Let go of the aggregate."""
        if self._aggregate >= 0:
            os.close(self._aggregate)
            self._aggregate = -1

    def discard(self) -> None:
        """Close what nobody will take."""
        if self.opened is not None:
            self.opened.close()

    async def _fuse(self, job: StartFuse) -> Event:
        offer = self._offer
        aggregate = await self._total()
        shares: list[Blob] = []
        try:
            for org, digest in job.shares:
                try:
                    shares.append(await self._share(org, job.call, digest))
                except ComityError as error:
                    return ShareRefused(org, job.call, error)
            try:
                slots = await self._work.fuse(offer.chunks, aggregate, [share.fd for share in shares])
            except ComityError as error:
                if "holder" not in error.facts:
                    raise
                return ShareRefused(job.shares[int(error.facts["holder"])][0], job.call, error)
        finally:
            for share in shares:
                share.close()
        try:
            opened = await self._decode(slots, job.contributors)
        except ComityError as error:
            if error.code is not ErrorCode.SUM_MISMATCH:
                raise
            return QuorumFailed(job.call)
        if self.opened is None:
            self.opened = opened
        else:
            opened.close()
        return SumDecoded()

    async def _total(self) -> int:
        """Return the aggregate's file: what this node checked as a holder, or fetched once. Raises `PAYLOAD_DIGEST`."""
        notice = self.driver.state.seen.notice
        assert notice is not None, "shares are of what was published"
        if self._aggregate >= 0:
            return self._aggregate
        checked = self._exchange.checked.get(notice.aggregate)
        fd = memory_file("aggregate") if checked is None else os.dup(checked)
        try:
            if checked is None:
                await self._exchange.download(Addressed(notice.aggregate, self._offer.upload_bytes), fd)
                if (await asyncio.to_thread(file_digest, fd))[0] != notice.aggregate:
                    raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the aggregate is not the one that was announced")
            check_blob(fd, self._offer.parameter_set, BlobKind.AGGREGATE, self._offer.chunks)
        except BaseException:  # also a cancelled caller leaves no descriptor
            os.close(fd)
            raise
        self._aggregate = fd
        return fd

    async def _share(self, org: str, call: str, digest: str) -> Blob:
        """Return a holder's share for a call. Raises why it is none."""
        exchange, offer = self._exchange, self._offer
        if org == exchange.me:
            own = exchange.own_share(call)
            if own is None:
                raise ComityError(ErrorCode.PAYLOAD_MISSING, "this node's own share is gone")
            return own
        ref = exchange.address(org, call)
        if ref is None or ref.size > self._size + _SEALING_BYTES:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "a share came without its address, or is too large")
        node = exchange.node
        blob, _ = await blobs.open_stream(
            node.keys,
            exchange.me,
            ref,
            share_context(offer, org, call),
            node.payloads.get(ref),
            size_max=self._size,
        )
        try:
            check_blob(blob.fd, offer.parameter_set, BlobKind.SHARE, offer.chunks)
            if await blobs.sha256_of(blob) != digest:
                raise ComityError(ErrorCode.PAYLOAD_DIGEST, "a share is not the one that was named")
        except BaseException:  # also a cancelled caller leaves no blob
            blob.close()
            raise
        return blob

    @property
    def _size(self) -> int:
        return self._offer.upload_bytes  # a share is half of this
