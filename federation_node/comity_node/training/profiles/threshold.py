"""Profile `threshold`: a quorum of the parties opens sums for the lead; nobody opens a single update.

Rules: those of `lead_key`, with a key that the parties make together (secure-aggregation.md sections 1 and 4). Besides:
1. A ceremony is taken part in if it is of a run under an agreement that is final here, called by a party of it, among
   its parties, with this version's parameters and a quorum not below the agreed one (`threshold_part.quorum_of`).
2. Keys belong to their run and are erased with it; what an earlier process took is erased when the node starts.
3. Whom the agreement names beside the lead opens sums by itself (`threshold_openings`); nobody else is sealed to.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.threshold.messages import KeyPlan, Opened, ShareReady, SumSeen
from comity_node.context import NodeContext
from comity_node.training.enforcement import step_of
from comity_node.training.ports import FINAL, Agreements, SumDesk
from comity_node.training.profiles import sum_wire
from comity_node.training.profiles.base import Asked, Kept
from comity_node.training.profiles.integer_form import parameters_of
from comity_node.training.profiles.lead_key import LeadKeyProfile
from comity_node.training.profiles.plain import RESULT
from comity_node.training.profiles.sum_lead import SumCollector
from comity_node.training.profiles.sum_part import Part
from comity_node.training.profiles.threshold_collector import ORDERS_A_ROUND, ThresholdCollector, call_ceremony
from comity_node.training.profiles.threshold_exchange import ThresholdExchange
from comity_node.training.profiles.threshold_part import ThresholdPart, quorum_of
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, TrainStep

log = structlog.get_logger("comity.node.training")


class ThresholdProfile(LeadKeyProfile):
    """See the head of this module."""

    name = "threshold"
    _part: type[Part] = ThresholdPart
    _collector: type[SumCollector] = ThresholdCollector

    def __init__(self, node: NodeContext, agreements: Agreements, workers: BfvWorkers | None = None) -> None:
        super().__init__(node, agreements, workers)
        self._keys = ThresholdExchange(node, workers)
        self._exchange = self._keys

    async def start(self) -> None:
        """Erase the keys that an earlier process left in use."""
        erased = await self._keys.keeping.sweep()
        if erased:
            log.warning("sum.swept", keys=erased)

    def report_to(self, desk: SumDesk) -> None:
        """Give what is opened here to `desk`."""
        self._keys.openings.desk = desk

    async def begin(self, asked: Asked) -> Kept | None:
        """Join the session of an order; its content is kept where this organisation opens the sum beside the lead."""
        me, order = self._keys.me, asked.order
        if me != order.lead and me in step_of(asked.agreement, order).openers:
            self._keys.keep_content(order.run, asked.order_digest, asked.asked)
        return await super().begin(asked)

    async def confirmed(self, order_digest: str, outcome: str = RESULT) -> None:
        """The lead keeps the sum: what was kept to make sense of it goes."""
        await super().confirmed(order_digest, outcome)
        self._keys.drop_contents(order_digest=order_digest)

    async def expect(self, agreement: Agreement, run: str) -> None:
        """Make the first keys while the app starts, so that its first question does not wait for them."""
        if not await self._keys.keeping.fresh(run) and not self._keys.ceremonies.under_way(run):
            me = self._keys.me
            rounds = sum(
                step.rounds for step in agreement.proposal.steps if isinstance(step, TrainStep) and step.lead == me
            )
            call_ceremony(self._keys, agreement, run, me, tuple(agreement.parties), ORDERS_A_ROUND * rounds)

    async def on_message(self, message: Message) -> None:
        """Take a party's message. Raises what its signature or form deserves."""
        parcel = sum_wire.read(self._node, message)
        if isinstance(parcel.message, KeyPlan):
            await self._on_plan(parcel.issuer, parcel.run, parcel.message)
            return
        if isinstance(parcel.message, ShareReady) and parcel.public_key is not None:
            self._keys.note_address(parcel.issuer, parcel.message.call, parcel.public_key)
        said = parcel.message
        if not isinstance(said, SumSeen):  # openers tell it to openers; no machine waits for it
            await super().on_message(message)
        if isinstance(said, SumSeen | Opened):
            await self._keys.openings.saw(said.session, parcel.issuer, said.call, said.sum)

    async def forget(self, run: str) -> None:
        """A run is over: end its parts, erase its keys."""
        await self._keys.openings.forget(run)
        await super().forget(run)
        self._keys.drop_contents(run=run)
        await self._keys.keeping.forget(run)

    async def _on_plan(self, issuer: str, run: str, plan: KeyPlan) -> None:
        """Take part in a ceremony. Raises `ROSTER_MISMATCH`, `FORBIDDEN`, `AGREEMENT_UNKNOWN`, `BUSY`."""

        def look(conn: Connection) -> tuple[Agreement, str]:
            stored = self._agreements.find(conn, plan.agreement)
            return stored.agreement, stored.state

        agreement, state = await self._node.journal.run(look)
        if state != FINAL or issuer != plan.lead or run != plan.run or plan.lead not in agreement.parties:
            raise ComityError(ErrorCode.FORBIDDEN, "a ceremony is called by a party of the run that it is for")
        if not set(plan.holders) <= set(agreement.parties) or plan.threshold < quorum_of(agreement):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the ceremony names strangers, or too small a quorum")
        if plan.parameters != parameters_of(agreement).name or self._exchange.me not in plan.holders:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the ceremony has other parameters, or is of others")
        self._keys.ceremonies.begin(plan)
