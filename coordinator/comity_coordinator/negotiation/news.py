"""Telling nodes how their negotiations stand, a few times a second at most.

Answers and signatures come in a rush, and every state makes the one before it old news: only ends are told at once, in
the transaction that makes them; anything else is told as it stands a moment later. What is untold stands in the
database, so that nothing is lost with a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.wire.errors import ComityError
from comity_coordinator.db import Database

TELL_EVERY_S = 0.25
AT_ONCE_MAX = 64

_log = structlog.get_logger("comity.negotiation")


class Newsroom(Protocol):
    """What has news: the negotiation service."""

    def on_news(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, after a commit that left something to tell."""

    def tell_news(self, conn: Connection, limit: int) -> int:
        """Send what is untold; return how many negotiations that were."""


class Teller:
    """One per coordinator process; several at once are harmless."""

    def __init__(self, db: Database, room: Newsroom) -> None:
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
                try:
                    told = await self._db.run(lambda conn: self._room.tell_news(conn, AT_ONCE_MAX))
                except (ComityError, SQLAlchemyError) as error:
                    _log.error("news.failed", error=type(error).__name__)
                    told = 0
                await asyncio.sleep(TELL_EVERY_S)
                if told < AT_ONCE_MAX:
                    await self._wake.wait()
        finally:
            self._loop = None

    def _wake_from_any_thread(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)
