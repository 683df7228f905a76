"""The lead's side of one question under `threshold`; rules as in `sum_lead`, and besides:

1. Every attempt takes the next key of the run's batches whose holders include the parties. Without one, a ceremony is
   called among them first; a batch that comes to its end is followed by the next one, ahead of time, and the first one
   is made while the app starts.
2. The lead holds one share as every holder does: it opens what a quorum shares, and nothing else. Whom the agreement
   names beside it opens by itself (`threshold_opening`); the lead waits for none of them.
3. A quorum that opens no sum is another machine's matter (`comity_crypto.secagg.threshold.lead`); who is suspected is
   named to whoever watches the run.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import Any

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Received, abort_of
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX
from comity_crypto.secagg.lead_key.messages import LinearDigest
from comity_crypto.secagg.threshold import lead as threshold_lead
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_crypto.secagg.threshold.lead import LeadState
from comity_crypto.secagg.threshold.messages import KeyPlan, ThresholdOffer
from comity_node.training.enforcement import step_of
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.integer_form import parameters_of
from comity_node.training.profiles.sum_exchange import Said
from comity_node.training.profiles.sum_form import Plan
from comity_node.training.profiles.sum_holding import Opened, refused
from comity_node.training.profiles.sum_lead import SumCollector
from comity_node.training.profiles.threshold_exchange import ThresholdExchange
from comity_node.training.profiles.threshold_fusing import Fuser, LeadFusing
from comity_node.training.profiles.threshold_part import openers_of, quorum_of
from comity_policies.documents import Agreement

# A ceremony costs a round or two; one batch serves four rounds of training and evaluation.
KEYS_PER_BATCH = 8
# Fewer left than these, and the next batch is made while rounds go on.
KEYS_LEFT_MIN = 3
# One to train, one to evaluate.
ORDERS_A_ROUND = 2

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

    def drop(self, org: str) -> bool:
        """Begin anew without a party, from a new ceremony if one was under way with it."""
        dropped = super().drop(org)
        self._dropped.set()
        return dropped

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
        box_key = BoxKey()
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
            openers=openers_of(step_of(self.question.agreement, order), parties),
            box_key=box_key.public,
        )
        state, outputs = threshold_lead.start(offer, now=time.monotonic(), limits=self._limits)
        said = Said(exchange, offer)
        fuser = Fuser(exchange, offer, box_key, partial(self.opened, fixed=fixed))
        work = LeadFusing(fuser, offer, said, self._sink.suspect)
        exchange.openings.compare(offer, order, self.question.order_digest)
        driver = Driver(state, threshold_lead.step, work.perform, refused)
        work.driver = driver
        try:
            opened = await self.work(offer, driver, outputs, said, work, (None, b""))
            first = driver.state.first
            assert first is not None, "it ends well only with a sum"
            await exchange.openings.saw(offer.digest, exchange.me, first.call, first.sum)
            return opened
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
