"""The decision log: every decision of this node with what was asked, kept off the critical path.

Rules:
1. deciding only puts a row into a bounded queue; a thread of its own writes rows in batches, at most `DELAY_S` later
   (a killed process loses that much of the log, never of the journal; answers and receipts carry the digests anyway);
2. a decision that cannot be recorded is a denial: if the queue stays full, as the disk takes nothing, `put` says so;
3. the log stays at the organisation; the ledger has digests only.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import structlog

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.policy.store import Bounds, DecisionStore, Row
from comity_node.settings import DecisionLogLimits

T = TypeVar("T")

QUEUE_MAX = 2_000
BATCH_MAX = 256
DELAY_S = 0.5
RETRY_S = 1.0
IDLE_S = 60.0
WAIT_S = 0.25
CLOSE_TIMEOUT_S = 5.0
FORGET_EVERY_S = 3600.0
log = structlog.get_logger(__name__)


class DecisionLog:
    """The log of one node. Thread-safe."""

    def __init__(self, path: Path, limits: DecisionLogLimits, clock: Callable[[], datetime] = instants.now) -> None:
        """Open the file and start the writer. Raises `JOURNAL_UNWRITABLE`."""
        self._store = DecisionStore(path, Bounds(limits.rows_max, limits.size_bytes_max))
        self._age = timedelta(days=limits.days_max)
        self._clock = clock
        self._rows: queue.Queue[Callable[[], Row] | None] = queue.Queue(QUEUE_MAX)
        self._closing = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._write, name="decision-log", daemon=True)
        self._thread.start()

    def put(self, row: Callable[[], Row]) -> None:
        """Have the log's thread make and write a row. Raises `POLICY_UNAVAILABLE` if there is no room (rule 2)."""
        if self._closing.is_set():
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the decision log is closed")
        try:
            self._rows.put(row, timeout=WAIT_S)
        except queue.Full:
            raise ComityError(ErrorCode.POLICY_UNAVAILABLE, "the decision log takes no more") from None

    async def read(self, fn: Callable[[DecisionStore], T]) -> T:
        """Run a reading `fn` over everything that was put before. Raises what it raises."""

        def work() -> T:
            self.flush()
            return fn(self._store)

        return await asyncio.to_thread(work)

    def flush(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Wait until what was put is written; False if that takes too long."""
        self._wanted.set()
        rows = self._rows
        with rows.all_tasks_done:
            return rows.all_tasks_done.wait_for(lambda: rows.unfinished_tasks == 0, timeout_s)

    def close(self) -> None:
        """Write what waits, within a bound, and end the thread. Safe to call twice."""
        self._closing.set()
        self._wanted.set()
        with contextlib.suppress(queue.Full):
            self._rows.put_nowait(None)  # wakes the writer
        self._thread.join(CLOSE_TIMEOUT_S)
        self._store.close()

    def _write(self) -> None:
        """Write batches until closed and empty. Runs in the log's own thread."""
        forget_at = time.monotonic()
        while not (self._closing.is_set() and self._rows.empty()):
            taken = self._batch()
            batch = [row for make in taken if make is not None and (row := _made(make)) is not None]
            if batch and not self._keep(batch):
                return
            for _ in taken:
                self._rows.task_done()
            if time.monotonic() >= forget_at:
                forget_at = time.monotonic() + FORGET_EVERY_S
                self._tried(lambda: self._store.forget(instants.to_text(self._clock() - self._age)))

    def _batch(self) -> list[Callable[[], Row] | None]:
        """Wait for a row, then a moment for more; return at most `BATCH_MAX`."""
        batch: list[Callable[[], Row] | None] = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._rows.get(timeout=IDLE_S))
            self._wanted.wait(DELAY_S)
            while len(batch) < BATCH_MAX:
                batch.append(self._rows.get_nowait())
        if self._rows.empty() and not self._closing.is_set():
            self._wanted.clear()
        return batch

    def _keep(self, batch: list[Row]) -> bool:
        """Write a batch, however long the disk refuses; False if the log was closed meanwhile."""
        while not self._tried(lambda: self._store.add(batch)):
            if self._closing.wait(RETRY_S):
                log.error("decisions.lost", count=len(batch))
                return False
        return True

    def _tried(self, write: Callable[[], Any]) -> bool:
        try:
            write()
        except ComityError as error:
            log.error("decisions.unwritable", detail=error.detail)
            return False
        return True


def _made(make: Callable[[], Row]) -> Row | None:
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - one odd document must not end the log of all others
        log.error("decisions.unreadable", error=type(error).__name__)
        return None
