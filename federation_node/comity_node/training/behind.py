"""Journal writes that nobody on the round's path waits for, many in one transaction.

What is given to `add` is on disk some milliseconds later, in order; `then` runs after that. What must be on disk before
the next step is written with `Journal.run` instead, or followed by `flush`. A journal that takes no writes is tried
again until it does; beyond `PENDING_MAX` waiting writes `add` refuses, and with it the work that it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import Journal

PENDING_MAX = 10_000
BATCH_MAX = 256
RETRY_S = 1.0
FLUSH_TIMEOUT_S = 30.0
# A write waits this long for others to share its transaction and its fsync.
LINGER_S = 0.02

Write = Callable[[Connection], None]
log = structlog.get_logger("comity.node.training")


class WriteBehind:
    """A line of small writes. `start` before use, `stop` writes what waits."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[Write, Callable[[], None] | None]] = []
        self._some = asyncio.Event()
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin writing."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Write what waits, within a bound, and end."""
        with contextlib.suppress(TimeoutError):
            await self.flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, write: Write, then: Callable[[], None] | None = None) -> None:
        """Write soon; `then` runs on the loop once it is on disk. Raises `BUSY` when too much waits."""
        if len(self._waiting) >= PENDING_MAX:
            raise ComityError(ErrorCode.BUSY, "too much waits for the journal")
        self._waiting.append((write, then))
        self._idle.clear()
        self._some.set()

    async def flush(self) -> None:
        """Wait until everything added before is on disk. Raises `TimeoutError`."""
        self._hurry.set()
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._idle.wait()
        finally:
            self._hurry.clear()

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await self._hurry.wait()
            batch = self._waiting[:BATCH_MAX]
            try:
                await self._journal.run(lambda conn, batch=batch: _all(conn, batch))  # type: ignore[misc]
            except ComityError as error:
                log.error("journal.behind", error=str(error), waiting=len(self._waiting))
                await asyncio.sleep(RETRY_S)
                continue
            del self._waiting[: len(batch)]
            for _, then in batch:
                if then is not None:
                    then()
            if not self._waiting:
                self._some.clear()
                self._idle.set()


def _all(conn: Connection, batch: list[tuple[Write, Callable[[], None] | None]]) -> None:
    for write, _ in batch:
        write(conn)
