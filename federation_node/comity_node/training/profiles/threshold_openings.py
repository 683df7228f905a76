"""Sums that this node opens beside their lead, and what the openers of a sum say of it to each other.

Rules:
1. An opening goes on by itself: it ends by its own deadlines, and no round, here or elsewhere, waits for it. A run that
   is closed waits only for shares that are being fused.
2. The sum is kept, and the receipt that says so is signed, before the other openers are told (`seen_sums`).
3. Words about a sum are compared whenever they come, for as many sessions as are remembered; who differs is an incident
   by name, told once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Event, Failed, Limits, Output, Send
from comity_crypto.secagg.threshold import opener
from comity_crypto.secagg.threshold.compared import Compared, differ
from comity_crypto.secagg.threshold.events import KeepSum, StartFuse, SumOpened
from comity_crypto.secagg.threshold.messages import ThresholdOffer
from comity_crypto.secagg.threshold.opener import OpenerState
from comity_node.training.blobs import Blob
from comity_node.training.ports import SeenSum, SumDesk
from comity_node.training.profiles import integer_form
from comity_node.training.profiles.sum_exchange import RESEND_S, Said
from comity_node.training.profiles.sum_form import Shape
from comity_node.training.profiles.sum_holding import refused
from comity_node.training.profiles.threshold_fusing import Fuser, aggregate_of
from comity_policies.documents import Agreement, OrderHeader

if TYPE_CHECKING:
    from comity_node.training.profiles.threshold_exchange import ThresholdExchange

OPENINGS_MAX = 16
SESSIONS_COMPARED_MAX = 256
# How long a run that is closed waits for shares that are being fused here.
FUSING_S = 30.0

log = structlog.get_logger("comity.node.training")


@dataclass(slots=True)
class _Session:
    offer: ThresholdOffer
    order: OrderHeader
    order_digest: str
    compared: Compared
    told: bool = False


class Openings:
    """See the head of this module. `desk` keeps what is opened and tells people; the profile's service sets it."""

    def __init__(self, exchange: ThresholdExchange) -> None:
        self._exchange = exchange
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._tasks: dict[asyncio.Task[None], _Opening] = {}
        self.desk: SumDesk | None = None

    def begin(
        self,
        offer: ThresholdOffer,
        agreement: Agreement,
        order: OrderHeader,
        order_digest: str,
        box_key: BoxKey,
        limits: Limits,
        shape: Callable[[], str],
    ) -> None:
        """Open the sum of a session beside its lead, if this node can: the session goes on without it."""
        self.compare(offer, order, order_digest)
        try:
            if len(self._tasks) >= OPENINGS_MAX:
                raise ComityError(ErrorCode.BUSY, "too many sums are being opened here")
            content = self._exchange.content(order_digest)
        except ComityError as error:
            log.warning("sum.unopened", run=order.run, round=order.round, error=str(error))
            return
        work = _Opening(self, self._exchange, offer, agreement, order, content, box_key, limits, shape)
        task = asyncio.create_task(work.run())
        self._tasks[task] = work
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def compare(self, offer: ThresholdOffer, order: OrderHeader, order_digest: str) -> None:
        """Compare what the openers of a session will say, if there are several."""
        if len(offer.openers) > 1 and offer.digest not in self._sessions:
            self._sessions[offer.digest] = _Session(offer, order, order_digest, Compared(offer.openers))
        while len(self._sessions) > SESSIONS_COMPARED_MAX:
            self._sessions.popitem(last=False)

    async def saw(self, session: str, org: str, call: str, said: str) -> None:
        """Take an opener's word about a sum, our own among them, which is signed. Raises `FORBIDDEN`, `CONFLICT`."""
        found = self._sessions.get(session)
        if found is None:
            return
        found.compared = found.compared.with_word(org, call, said)
        if org == self._exchange.me and self.desk is not None:
            await self.desk.sign(found.order, found.order_digest, said)
        orgs = found.compared.differing
        if orgs and not found.told:
            found.told = True
            log.error("sum.differs", run=found.order.run, round=found.order.round, orgs=list(orgs))
            if self.desk is not None:
                self.desk.incident(found.order, differ(orgs))

    async def keep(self, offer: ThresholdOffer, members: tuple[str, ...], said: KeepSum, content: Blob) -> None:
        """Keep a sum that is open here, and sign that it is."""
        found = self._sessions.get(offer.digest)
        if found is not None and self.desk is not None:
            seen = SeenSum(found.order, found.order_digest, offer.digest, offer.openers, members, said.sum)
            await self.desk.keep(seen, content)

    async def forget(self, run: str) -> None:
        """A run is over: wait for what is being fused, end the rest."""
        mine = {task: work for task, work in self._tasks.items() if work.run_id == run}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FUSING_S):
                await asyncio.gather(*(work.idle.wait() for work in mine.values()))
        await self._end(list(mine))

    async def close(self) -> None:
        """End all."""
        await self._end(list(self._tasks))

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Opening:
    """One session's machine at work."""

    def __init__(
        self,
        openings: Openings,
        exchange: ThresholdExchange,
        offer: ThresholdOffer,
        agreement: Agreement,
        order: OrderHeader,
        content: Blob,
        box_key: BoxKey,
        limits: Limits,
        shape: Callable[[], str],
    ) -> None:
        self._openings = openings
        self._exchange = exchange
        self._offer = offer
        self._agreement = agreement
        self._order = order
        self._content = content
        self._shape = shape
        self._fuser = Fuser(exchange, offer, box_key, self._decode)
        # Set while no shares are being fused, and no sum is being kept.
        self.idle = asyncio.Event()
        self.idle.set()
        state, self._first = opener.start(exchange.me, offer, now=time.monotonic(), limits=limits)
        self._driver: Driver[OpenerState] = Driver(state, opener.step, self._perform, refused)
        self._said = Said(exchange, offer)

    @property
    def run_id(self) -> str:
        """The run that it belongs to."""
        return self._order.run

    async def run(self) -> None:
        """Run to the end; never raises."""
        silence = self._exchange.listen(self._offer, self._driver.tell)
        try:
            ended = await self._driver.run(self._first)
            if isinstance(ended, Failed):
                log.warning("sum.unopened", run=self._order.run, round=self._order.round, error=str(ended.error))
        except ComityError as error:
            log.warning("sum.unopened", run=self._order.run, round=self._order.round, error=str(error))
        finally:
            silence()
            self.idle.set()
            asyncio.get_running_loop().call_later(3 * RESEND_S, self._said.end)
            self._fuser.close()
            self._fuser.discard()
            self._content.close()

    async def _perform(self, output: Output) -> None:
        match output:
            case Send(to=to, message=message):
                await self._said.say(to, message, but=self._driver.tell)
            case StartFuse():
                self.idle.clear()
                self._driver.work(self._fuse(output))
            case KeepSum():
                await self._keep(output)
            case _:
                pass
        if self._driver.state.phase is not opener.Phase.FUSING:
            self.idle.set()

    async def _fuse(self, job: StartFuse) -> Event:
        opened = False
        try:
            event = await self._fuser.fuse(job, aggregate_of(self._driver.state))
            opened = isinstance(event, SumOpened)
            return event
        finally:
            if not opened:
                self.idle.set()

    async def _keep(self, said: KeepSum) -> None:
        assert self._fuser.opened is not None, "what is kept was opened"
        members = self._driver.state.seen.members
        await self._openings.keep(self._offer, members, said, self._fuser.opened)
        await self._openings.saw(self._offer.digest, self._exchange.me, said.call, said.sum)

    async def _decode(self, slots: NDArray[Any], contributors: int) -> Blob:
        """Return the round's model as the lead's Grid has it. Raises `SUM_MISMATCH`, `REPLY_SHAPE`."""
        shape = Shape.from_bytes(self._shape().encode())
        return await asyncio.to_thread(self._reply, slots, contributors, shape)

    def _reply(self, slots: NDArray[Any], contributors: int, shape: Shape) -> Blob:
        fixed = integer_form.plan_for(self._agreement, self._order, self._content)
        return integer_form.reply_of(
            fixed, self._order, self._content, slots, contributors, shape, encoder.decode, encoder.decode_integers
        )
