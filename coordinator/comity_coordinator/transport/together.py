"""One transaction for what several streams ask at the same moment.

A transaction costs a commit to disk, whatever is in it: with fifty nodes that talk at once, commits would be most of
what the coordinator does.

Rules
1. Nothing waits on a timer: what is asked while a transaction is under way goes into the next one.
2. A failure takes nothing else along: what was asked together with it is done again, each in its own transaction.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from sqlalchemy import Connection

from comity_coordinator.db import Database

A = TypeVar("A")
R = TypeVar("R")

TOGETHER_MAX = 64


class Together(Generic[A, R]):
    """Does `do(conn, asked)` for everyone who asks; `do` may run again for the same, as transactions do."""

    def __init__(self, database: Database, do: Callable[[Connection, A], R]) -> None:
        self._database = database
        self._do = do
        self._waiting: deque[tuple[A, asyncio.Future[R]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, asked: A) -> R:
        """Return what `do` made of `asked`, committed. Raises what `do` raises."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER_MAX))]
            if len(group) == 1 or not await self._at_once(group):
                for asked, future in group:
                    await self._alone(asked, future)

    async def _at_once(self, group: Sequence[tuple[A, asyncio.Future[R]]]) -> bool:
        """Do all of a group in one transaction; False if any of it failed, and nothing happened."""
        try:
            results = await self._database.run(lambda conn: [self._do(conn, asked) for asked, _ in group])
        except Exception:  # noqa: BLE001 - whose failure it is shows when each is done alone
            return False
        for (_, future), result in zip(group, results, strict=True):
            if not future.done():
                future.set_result(result)
        return True

    async def _alone(self, asked: A, future: asyncio.Future[R]) -> None:
        try:
            result = await self._database.run(partial(self._do_one, asked=asked))
        except Exception as error:  # noqa: BLE001 - goes to whoever asked
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)

    def _do_one(self, conn: Connection, asked: A) -> R:
        return self._do(conn, asked)
