"""Telling nodes how their negotiations stand, once a second at most; less often where there are many to tell.

Answers and signatures come in a rush, and every state makes the one before it old news: only ends are told at once, in
the transaction that makes them; anything else is told as it stands a moment later. What is untold stands in the
database, so that nothing is lost with a process.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.wire.errors import ComityError
from comity_coordinator.db import Database

# News to fifty nodes cost more than what they tell of; an agreement that policies make by themselves is there sooner.
TELL_AFTER_S, TELL_AFTER_MAX_S = 1.0, 5.0
TOLD_PER_S = 10
AT_ONCE_MAX = 64

_log = structlog.get_logger("comity.negotiation")


class Newsroom(Protocol):
    """What has news: the negotiation service."""

    def on_news(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, after a commit that left something to tell."""

    def news_for(self, conn: Connection, limit: int) -> int:
        """Return how many organisations would be told now, of at most `limit` negotiations."""

    def tell_news(self, conn: Connection, limit: int) -> int:
        """Send the states of at most `limit` negotiations that are untold; return of how many."""


class Teller:
    """One per coordinator process; several at once are harmless."""

    def __init__(self, db: Database, room: Newsroom, look_every_s: float | None = None) -> None:
        """`look_every_s` has the database looked at without a wake-up, for what a replica that died left untold."""
        self._look_every_s = look_every_s
        self._db = db
        self._room = room
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Tell until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._room.on_news(self._wake_from_any_thread)
        try:
            while True:
                self._wake.clear()
                await self._tell()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every_s):
                        await self._wake.wait()
                await asyncio.sleep(await self._pause_s())
        finally:
            self._loop = None

    async def _pause_s(self) -> float:
        try:
            messages = await self._db.run(lambda conn: self._room.news_for(conn, AT_ONCE_MAX))
        except (ComityError, SQLAlchemyError) as error:
            _log.error("news.failed", error=type(error).__name__)
            return TELL_AFTER_MAX_S
        return min(TELL_AFTER_MAX_S, max(TELL_AFTER_S, messages / TOLD_PER_S))

    async def _tell(self) -> None:
        """Tell everything that is untold."""
        try:
            while await self._db.run(lambda conn: self._room.tell_news(conn, AT_ONCE_MAX)) == AT_ONCE_MAX:
                pass  # bounded by what is untold
        except (ComityError, SQLAlchemyError) as error:
            _log.error("news.failed", error=type(error).__name__)

    def _wake_from_any_thread(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)
