"""Secure sums at the coordinator: it closes rosters, adds ciphertexts, holds no key (secure-aggregation.md section 4).

Rules:
1. A session begins with an offer that the run's lead signed, for parties of that run. Everything else is judged by the
   machine of `comity_crypto.secagg.lead_key.aggregator`; what it refuses is dropped.
2. Its own words (roster, aggregate, failure) are unsigned: parties sign what they saw of them.
3. Nothing is kept on disk but uploads and aggregates in the spool. Parties repeat what they said until they are
   answered, so that a coordinator that was started anew picks the session up; a repeated message is answered by what
   was said before.
4. Worker processes start with the first run that needs them: a coordinator without such runs pays nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import structlog
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.inbound import CharterOf, body_of, text
from comity_coordinator.training import store
from comity_coordinator.training.adding import Session
from comity_coordinator.training.masked_adding import MaskedSession
from comity_coordinator.training.model import ENDINGS, Run
from comity_coordinator.transport.model import Message
from comity_coordinator.transport.payloads import Spool
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.spoken import AnyOffer, parse_spoken
from comity_crypto.statements import Statement, verify_statement
from comity_policies.charter import Charter

KIND = "secagg"
STATEMENT_BYTES_MAX = 256 << 10
WAITING_MAX = 4_096
# Sessions that are still answered for, ended ones included; the oldest gives way.
SESSIONS_MAX = 256
# A run asks one or two questions at a time, each with one attempt under way.
SESSIONS_PER_RUN_MAX = 8
WORKERS_MAX = 2

log = structlog.get_logger()


class Tell(Protocol):
    """`transport.hub.Hub.tell`."""

    def __call__(self, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> bool:
        """Send a word that nothing keeps."""


class Sums:
    """All sessions of this coordinator. `observe` is the hub's; `run` is one task, `close` ends it all."""

    def __init__(self, database: Database, charter_of: CharterOf, spool: Spool, tell: Tell) -> None:
        self._database = database
        self._charter_of = charter_of
        self._spool = spool
        self._tell = tell
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(WAITING_MAX)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers: BfvWorkers | None = None
        self._warming: asyncio.Task[None] | None = None

    def observe(self, message: Message) -> None:
        """Take a relayed message of a secure sum; beyond the bound it is dropped, and comes again."""
        try:
            self._inbox.put_nowait(message)
        except asyncio.QueueFull:
            log.warning("sums.busy", sender=message.sender)

    def expect(self) -> None:
        """Start the workers, from any thread: a run begins that needs them in a moment."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._pool)

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            message = await self._inbox.get()
            try:
                await self._take(message)
            except ComityError as error:
                log.warning("sums.refused", sender=message.sender, run=message.run, error=str(error))
            except Exception as error:  # one party's message must not end the sums of the others
                log.error("sums.failed", sender=message.sender, error=type(error).__name__, exc_info=error)

    async def close(self) -> None:
        """End sessions and worker processes."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        if self._workers is not None:
            self._workers.close()

    def awaited(self, run: str) -> Mapping[str, tuple[str, ...]]:
        """Return, by session, whom a run's sums wait for, for status pages."""
        found = {name: session.awaited() for name, session in self._sessions.items() if session.offer.run == run}
        return {name: orgs for name, orgs in found.items() if orgs}

    async def _take(self, message: Message) -> None:
        said = Statement.from_bytes(message.body, max_bytes=STATEMENT_BYTES_MAX)
        body = body_of(said, "run", "round_key", "message", optional=("public_key",))
        parcel = body["message"]
        if not isinstance(parcel, dict) or set(parcel) != {"kind", "body"} or body["run"] != message.run:
            raise ComityError(ErrorCode.MALFORMED, "not a message of a secure sum")
        content = parse_spoken(text(parcel["kind"], 64, "a kind"), parcel["body"])
        if isinstance(content, Offer | MaskedOffer):
            await self._offered(message, said, content)
            return
        session = self._sessions.get(str(getattr(content, "session", "")))
        # A party that was offered something else in this place shows a lead that says two things: its session hears it.
        heard = [session] if session is not None else self._of_place(content)
        for each in heard:
            if message.sender in each.offer.parties or message.sender == each.offer.lead:
                _verify(said, message.sender, each.charter)
                each.hear(message.sender, content)

    async def _offered(self, message: Message, said: Statement, offer: AnyOffer) -> None:
        found = self._sessions.get(offer.digest)
        if found is not None:
            found.repeat(message.sender)
            return
        run, charter = await self._database.run(partial(self._look, offer=offer))
        if message.sender != run.lead or offer.lead != run.lead or not set(offer.parties) <= set(run.parties):
            raise ComityError(ErrorCode.FORBIDDEN, "only a run's lead offers a round key, to its parties")
        if offer.agreement != run.agreement or offer.step not in run.steps:
            raise ComityError(ErrorCode.ORDER_MISMATCH, "the offer is for another run")
        if run.closed or run.state in ENDINGS:
            raise ComityError(ErrorCode.RUN_CANCELLED, "the run has ended", run=run.run)
        _verify(said, message.sender, charter)
        await self._make_room(offer)
        kind = MaskedSession if isinstance(offer, MaskedOffer) else Session
        session = kind(offer, charter, self._spool, self._pool, self._tell)
        self._sessions[offer.digest] = session
        session.start()

    async def _make_room(self, offer: AnyOffer) -> None:
        """End older attempts at the same sum, and the oldest sessions beyond the bounds."""
        same = [each for each in self._sessions.values() if each.offer.run == offer.run]
        older = [each for each in same if each.offer.round == offer.round and each.offer.attempt < offer.attempt]
        extra = [each for each in same if each not in older][: -(SESSIONS_PER_RUN_MAX - 1) or None]
        many = list(self._sessions.values())[: max(0, len(self._sessions) - SESSIONS_MAX + 1)]
        for each in {each.offer.digest: each for each in [*older, *extra, *many]}.values():
            del self._sessions[each.offer.digest]
            await each.close()

    def _of_place(self, content: Body) -> list[Session]:
        place = getattr(content, "place", None)
        return [each for each in self._sessions.values() if place and each.offer.place == place]

    def _pool(self) -> BfvWorkers:
        if self._workers is None:
            self._workers = BfvWorkers(max(1, min(WORKERS_MAX, (os.cpu_count() or 1) - 1)))
            self._warming = asyncio.create_task(_warmed(self._workers))
        return self._workers

    def _look(self, conn: Connection, *, offer: AnyOffer) -> tuple[Run, Charter]:
        run, charter = store.get(conn, offer.run), self._charter_of(conn)
        if run is None:
            raise ComityError(ErrorCode.NOT_FOUND, "there is no such run")
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "no charter is in force yet")
        return run, charter


async def _warmed(workers: BfvWorkers) -> None:
    try:
        await workers.warm(AGG_Q16)
    except ComityError as error:
        log.error("sums.workers", error=str(error))  # the sum that needs them fails by its own


def _verify(said: Statement, sender: str, charter: Charter) -> None:
    if said.issuer != sender:
        raise ComityError(ErrorCode.FORBIDDEN, "the statement is not of the organisation that sent it")
    verify_statement(said, charter.member(sender).keys.statement, kind=KIND, consortium=charter.consortium)
