"""An engine of plain asyncio timers: for tests, and for a coordinator without Temporal.

Timers die with the process; `start` arms them again from the database, where every deadline stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_coordinator.db import Database
from comity_coordinator.workflows.engine import Supervised

# Deadlines are whole seconds: ring just after, so that the ring is never a second early.
LATE_S = 0.05
RETRY_S = 1.0
# The event loop's clock must not be asked to wait for weeks: wake once a day and wait again.
WAIT_S_MAX = 86_400.0

_log = structlog.get_logger("comity.timers")


class TimerEngine:
    """Implements `WorkflowEngine`; `start` gives it the services that it rings."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._loop: asyncio.AbstractEventLoop | None = None
        self._services: dict[str, Supervised] = {}
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._rings: set[asyncio.Task[None]] = set()

    async def start(self, negotiation: Supervised, training: Supervised) -> None:
        """Arm a timer for everything that is open."""
        self._loop = asyncio.get_running_loop()
        self._services = {"negotiation": negotiation, "run": training}
        await self.look_again()

    async def look_again(self) -> None:
        """Arm a timer for everything that is open: other replicas' timers died with them."""
        for family, service in self._services.items():
            for subject, deadline in await self._db.run(service.open_deadlines):
                self._arm(family, subject, deadline)

    async def close(self) -> None:
        """Drop all timers and wait for rings under way."""
        self._loop = None
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await asyncio.gather(*self._rings, return_exceptions=True)

    def negotiation_opened(self, negotiation_id: str, deadline: str) -> None:
        """Arm the answers' deadline."""
        self._soon(partial(self._arm, "negotiation", negotiation_id, deadline))

    def negotiation_ended(self, negotiation_id: str) -> None:
        """Disarm."""
        self._soon(partial(self._disarm, "negotiation", negotiation_id))

    def run_created(self, run_id: str) -> None:
        """Look up the run's deadline and arm it."""
        self._soon(partial(self._ring, "run", run_id))

    def run_changed(self, run_id: str) -> None:
        """Look up the run's deadline and arm it."""
        self._soon(partial(self._ring, "run", run_id))

    def _soon(self, act: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(act)

    def _arm(self, family: str, subject: str, deadline: str) -> None:
        wait_s = (instants.parse(deadline) - instants.now()).total_seconds() + LATE_S
        self._after(family, subject, max(0.0, min(wait_s, WAIT_S_MAX)))

    def _after(self, family: str, subject: str, wait_s: float) -> None:
        self._disarm(family, subject)
        if self._loop is not None:
            self._timers[family, subject] = self._loop.call_later(wait_s, self._ring, family, subject)

    def _disarm(self, family: str, subject: str) -> None:
        timer = self._timers.pop((family, subject), None)
        if timer is not None:
            timer.cancel()

    def _ring(self, family: str, subject: str) -> None:
        if self._loop is not None:
            task = self._loop.create_task(self._judge(family, subject))
            self._rings.add(task)
            task.add_done_callback(self._rings.discard)

    async def _judge(self, family: str, subject: str) -> None:
        service = self._services[family]
        try:
            deadline = await self._db.run(lambda conn: service.on_deadline(conn, subject))
        except ComityError as error:
            _log.warning("deadline not judged", family=family, subject=subject, code=str(error.code))
            self._after(family, subject, RETRY_S)
            return
        if deadline is None:
            self._disarm(family, subject)
        else:
            self._arm(family, subject, deadline)
