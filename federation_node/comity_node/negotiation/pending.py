"""What could not be judged yet: offers whose app is not here yet, agreements that wait for a person or a charter.

Rules:
1. A failure that a retry heals (`comity.wire.catalog`) is no answer: the item is kept in the journal and judged again,
   at growing intervals, the last time at its `until`, when whatever comes of it is final.
2. An item is moved on in the journal before it is judged: a crash costs one attempt, never a tight loop.
3. Whoever settles an item drops it in the same transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.negotiation import store
from comity_node.negotiation.store import Pending

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from comity_node.context import NodeContext

PAUSE_S_MAX = 60
LOOK_S_MAX = 60.0
LOOK_S_MIN = 0.2
BROKEN_S = 5.0

# (item, whether it is the last time): settles the item, notes it again, or raises, which notes it again.
Judge = Callable[[Pending, bool], Awaitable[None]]
log = structlog.get_logger("comity.node.negotiation")


class PendingItems:
    """The node's list of what is to be judged again, and the task that does."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._judges: dict[str, Judge] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None

    def judge(self, judges: Mapping[str, Judge]) -> None:
        """Have items of each kind judged by `judges`."""
        self._judges.update(judges)

    async def start(self) -> None:
        """Go on with what an earlier process left."""
        self._loop = asyncio.get_running_loop()
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End; items stay in the journal."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def put(self, conn: Connection, item: Pending, why: str, *, asleep: bool = False) -> None:
        """Note an item; `asleep` until its end, because something else will wake it."""
        store.put_pending(conn, item, item.until if asleep else self._next(item), why)
        self._node.journal.after_commit(conn, self.wake)

    def wake(self) -> None:
        """Look again, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def try_again(self, subject: str) -> None:
        """Judge one item now, if it is still there."""
        item = await self._node.journal.run(lambda conn: store.find_pending(conn, subject))
        if item is not None:
            await self._try(item)

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause_s = await self._tick()
            except ComityError as error:
                log.warning("pending.waiting", error=str(error))
                pause_s = BROKEN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    async def _tick(self) -> float:
        """Judge what is due; returns the seconds until something else is."""
        now = instants.to_text(self._node.clock())
        due = await self._node.journal.run(lambda conn: store.due_pending(conn, now))
        await asyncio.gather(*(self._try(item) for item in due))
        first = await self._node.journal.run(store.next_pending)
        if first is None:
            return LOOK_S_MAX
        left_s = (instants.parse(first) - self._node.clock()).total_seconds()
        return min(max(left_s, LOOK_S_MIN), LOOK_S_MAX)

    async def _try(self, item: Pending) -> None:
        last = instants.to_text(self._node.clock()) >= item.until
        again = replace(item, tries=item.tries + 1)
        pause = self._next(again)
        await self._node.journal.run(lambda conn: store.put_off_pending(conn, again, pause))
        try:
            await self._judges[item.kind](again, last)
        except ComityError as error:
            log.warning("pending.failed", kind=item.kind, subject=item.subject, last=last, error=str(error))
            if error.code is ErrorCode.JOURNAL_UNWRITABLE or not last:
                return
            await self._node.journal.run(lambda conn: store.drop_pending(conn, subject=item.subject))
        except Exception as error:  # one item's defect must not keep the others; it is tried again
            log.error("pending.broken", kind=item.kind, subject=item.subject, exc_info=error)

    def _next(self, item: Pending) -> str:
        """Return when to judge it next: after 1, 2, 4 … 60 s, and at its end. Past its end: after the longest pause."""
        pause = timedelta(seconds=min(2 ** min(item.tries, 10), PAUSE_S_MAX))
        now = self._node.clock()
        at = instants.to_text(now + pause)
        return min(at, item.until) if instants.to_text(now) < item.until else at
