"""Where the sessions of secure sums at this node meet: worker processes, messages in and out, repetition.

Rules:
1. A machine hears the messages of its session; a message that overtakes its offer is kept for it, within bounds.
2. A `Ready` for another offer at the same place goes to the machines of that place, so that a lead shows which says two
   things.
3. What was said is said again, byte for byte, when a party comes back and every `RESEND_S` while a session lives;
   machines ignore what they know.
4. One pool of worker processes serves the node; it starts with the first run that needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.events import (
    AggregatePublished,
    Audience,
    Event,
    Limits,
    Received,
    RosterProposed,
    StartUpload,
    WorkFailed,
)
from comity_crypto.secagg.frame.messages import Announcement, Notice, Roster
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.spoken import AnyOffer
from comity_crypto.secagg.threshold.messages import ThresholdOffer
from comity_crypto.statements import Statement
from comity_node.context import NodeContext
from comity_node.training.profiles import sum_wire
from comity_node.training.profiles.sum_wire import Addressed, Parcel, Word

RESEND_S = 5.0
UPLOAD_PAUSE_S = 1.0
READY_S = 60.0
STEP_S = 120.0
EARLY_SESSIONS_MAX = 64
EARLY_EVENTS_MAX = 512
WORKERS_MAX = 2

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class _Ear:
    offer: AnyOffer
    tell: Callable[[Event], None]


class Exchange:
    """See the head of this module."""

    def __init__(self, node: NodeContext, workers: BfvWorkers | None = None) -> None:
        """`workers` is a pool of somebody else's; without it the node makes its own."""
        self.node = node
        self._workers = workers
        self._lent = workers is not None
        self._warming: asyncio.Task[None] | None = None
        self._ears: dict[str, list[_Ear]] = {}
        self._early: OrderedDict[str, list[Event]] = OrderedDict()
        self.said: set[Said] = set()
        self.away: set[str] = set()
        # By run, who was not in its last sum; known to this process only.
        self.lost: OrderedDict[str, frozenset[str]] = OrderedDict()

    @property
    def me(self) -> str:
        """This organisation."""
        return self.node.settings.org

    @property
    def workers(self) -> BfvWorkers:
        """The pool; started, and its self-test under way, from the first use on."""
        if self._workers is None:
            self._workers = BfvWorkers(max(1, min(WORKERS_MAX, (os.cpu_count() or 1) - 1)))
            self._warming = asyncio.create_task(self._warm(self._workers))
        return self._workers

    async def ready(self) -> None:
        """Wait until the workers are warm, so that the first round pays for no import."""
        if self.workers is not None and self._warming is not None:
            await asyncio.shield(self._warming)

    async def close(self) -> None:
        """End the worker processes."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        if self._workers is not None and not self._lent:
            await asyncio.to_thread(self._workers.close)
            self._workers = None

    def listen(self, offer: AnyOffer, tell: Callable[[Event], None]) -> Callable[[], None]:
        """Let a machine hear its session, first what overtook it; returns what ends that."""
        ear = _Ear(offer, tell)
        self._ears.setdefault(offer.digest, []).append(ear)
        for event in self._early.get(offer.digest, ()):
            tell(event)

        def end() -> None:
            left = [each for each in self._ears.get(offer.digest, []) if each is not ear]
            if left:
                self._ears[offer.digest] = left
            else:
                self._ears.pop(offer.digest, None)

        return end

    def hear(self, issuer: str, message: Body, *, but: Callable[[Event], None] | None = None) -> None:
        """Pass a verified message of a party on to whom it concerns here, `but` its own speaker."""
        session = str(getattr(message, "session", ""))
        event = Received(issuer, message)
        if isinstance(message, Announcement) and session not in self._ears:
            for ears in list(self._ears.values()):
                for ear in ears:
                    if ear.offer.place == message.place:
                        ear.tell(event)
        self._tell(session, event, but)

    def word(self, word: Word) -> None:
        """Pass the coordinator's word on."""
        if word.error is not None:
            if word.session in self._ears:
                self._tell(word.session, WorkFailed(word.error), None)
        elif isinstance(word.message, Roster):
            self._tell(word.session, RosterProposed(word.message), None)
        elif isinstance(word.message, Notice):
            self._tell(word.session, AggregatePublished(word.message), None)

    def _tell(self, session: str, event: Event, but: Callable[[Event], None] | None) -> None:
        """Tell every machine of a session, and keep the event for one of this node that is not there yet."""
        for ear in self._ears.get(session, ()):
            if ear.tell != but:
                ear.tell(event)
        early = self._early.setdefault(session, [])
        if event not in early and not isinstance(event, WorkFailed) and len(early) < EARLY_EVENTS_MAX:
            early.append(event)
        self._early.move_to_end(session)
        while len(self._early) > EARLY_SESSIONS_MAX:
            self._early.popitem(last=False)

    async def upload(self, path: Path, upload: StartUpload) -> Event:
        """Send a file until the coordinator says what became of it; this job never ends by itself."""
        ref = Addressed(upload.digest, upload.size_bytes)
        while True:  # bounded by the session, whose end cancels this
            with contextlib.suppress(ComityError):
                await self.node.payloads.put(path, ref, (COORDINATOR,))
            await asyncio.sleep(UPLOAD_PAUSE_S)

    async def repeat(self, org: str | None = None) -> None:
        """Say everything of the living sessions again, to one organisation or to all."""
        for said in list(self.said):
            await said.repeat(org)

    async def _warm(self, workers: BfvWorkers) -> None:
        try:
            await workers.warm(AGG_Q16)
        except ComityError as error:
            log.error("sum.workers", error=str(error))  # the sum that needs them fails by its own


class Said:
    """What one machine of this node has said in its session, so that it can say it again. `end` when it is over."""

    def __init__(self, exchange: Exchange, offer: AnyOffer) -> None:
        self._exchange = exchange
        self._offer = offer
        self._statements: list[tuple[Statement, tuple[str, ...]]] = []
        self._keeper = asyncio.create_task(self._keep())
        exchange.said.add(self)

    async def say(
        self,
        to: Audience,
        message: Body,
        *,
        but: Callable[[Event], None] | None = None,
        sealed: SealedRef | None = None,
    ) -> None:
        """Sign and send a message; machines of this node hear it at once, `but` the speaker. `sealed` goes with it."""
        offer, me = self._offer, self._exchange.me
        audience = {offer.lead}
        if to is Audience.OPENERS and isinstance(offer, ThresholdOffer):
            audience = {*offer.openers}
        elif to is Audience.ALL:
            audience = {*offer.parties, offer.lead}
        if me in audience:
            self._exchange.hear(me, message, but=but)
        await self._send(message, audience, sealed)

    async def say_offer(self, public_key: SealedRef | None = None) -> None:
        """Sign and send the offer itself, with its key's address if it has one; the own part takes it another way."""
        await self._send(self._offer, set(self._offer.parties), public_key)

    async def repeat(self, org: str | None = None) -> None:
        """Say it all again, to one organisation or to all."""
        for statement, receivers in list(self._statements):
            await self._relay(statement, tuple(each for each in receivers if org in (None, each)))

    def end(self) -> None:
        """Say no more."""
        self._exchange.said.discard(self)
        self._keeper.cancel()

    async def _send(self, message: Body, audience: set[str], public_key: SealedRef | None) -> None:
        receivers = tuple(sorted(audience - {self._exchange.me}))
        if receivers:
            statement = sum_wire.write(self._exchange.node, self._offer, message, public_key)
            self._statements.append((statement, receivers))
            await self._relay(statement, receivers)

    async def _keep(self) -> None:
        while True:  # bounded by the session, whose end cancels this
            await asyncio.sleep(RESEND_S)
            await self.repeat()

    async def _relay(self, statement: Statement, receivers: tuple[str, ...]) -> None:
        if not receivers:
            return
        try:
            await self._exchange.node.link.relay(sum_wire.KIND, statement, receivers, run=self._offer.run)
        except ComityError as error:
            log.warning("sum.waiting", run=self._offer.run, error=str(error))  # it is said again


def limits_for(reply_timeout_s: float) -> Limits:
    """Return how long the machines of an order wait; `reply_timeout_s` bounds the training."""
    return Limits(ready_s=READY_S, values_s=reply_timeout_s, step_s=STEP_S)


def offer_of(parcel: Parcel) -> AnyOffer:
    """Return a parcel's offer. Raises `ORDER_NOT_LEAD` if another than the lead that it names has signed it."""
    found = parcel.message
    if not isinstance(found, Offer | MaskedOffer) or found.lead != parcel.issuer or found.run != parcel.run:
        raise ComityError(ErrorCode.ORDER_NOT_LEAD, "the offer is not its lead's")
    return found
