"""The one that gives entries their order: a task that flushes at once when idle and every 50 ms under load.

What wakes nobody (`patient` entries) goes with what does, or by itself once it has waited for `PATIENT_S`.

Rules: everything happens inside `Ledger.integrate`'s transaction, which checks the lease; a failure is logged and tried
again later, for ever, because the statements wait safely; whoever stops gives the lease back.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from comity.wire.errors import ComityError
from comity_coordinator.db import Database
from comity_coordinator.ledger import store
from comity_coordinator.ledger.service import Ledger

FLUSH_EVERY_S = 0.05
# Without a wake-up: patient statements, and those of another replica whose sequencer has died.
LOOK_EVERY_S = 1.0
PATIENT_S = 3
RETRY_S = 1.0

_log = structlog.get_logger("comity.sequencer")


class Sequencer:
    """One per coordinator process; the lease lets one of them work."""

    def __init__(self, db: Database, ledger: Ledger, also: Callable[[], None] | None = None) -> None:
        """`also()` is called with each wake-up, from any thread: another replica may hold the lease."""
        self._also = also
        self._db = db
        self._ledger = ledger
        self._holder = f"sequencer-{secrets.token_hex(8)}"
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Integrate until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._ledger.on_append(self._wake_from_any_thread)
        waited_s = 0
        try:
            while True:
                pause_s, waited_s = await self._flush(waited_s), 0
                await asyncio.sleep(pause_s)
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    waited_s = 0 if pause_s == RETRY_S else PATIENT_S
        finally:
            self._loop = None
            await self._db.run(functools.partial(store.release_lease, holder=self._holder))

    async def _flush(self, waited_s: int) -> float:
        """Integrate all that waits, if the first of it has waited that long; return after how long to look again."""
        self._wake.clear()
        pause_s = 0.0
        batch = functools.partial(self._ledger.integrate, holder=self._holder)
        try:
            while await self._db.run(functools.partial(batch, waited_s=waited_s)):
                # Bounded by what is pending; others use the database's thread between two batches.
                pause_s = FLUSH_EVERY_S
        except (ComityError, SQLAlchemyError) as error:
            _log.error("batch not integrated", error=type(error).__name__, code=str(getattr(error, "code", "")))
            return RETRY_S
        return pause_s

    def wake(self) -> None:
        """Look soon; in the event loop."""
        self._wake.set()

    def _wake_from_any_thread(self) -> None:
        if self._also is not None:
            self._also()
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)
