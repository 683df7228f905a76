"""The end of a run's story: told once this organisation's receipts are proved to be in the ledger (training.md 2).

A round never waits for the ledger, a run's end does: for `PROVED_WITHIN_S`. What is not proved by then is said openly,
and its proofs are asked for again whenever the stream opens.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial

import structlog

from comity.wire.errors import ComityError
from comity_node.context import NodeContext
from comity_node.training import store
from comity_node.training.events import LAST_EVENT, RunEvents

PROVED_WITHIN_S = 10.0
LOOK_AGAIN_S = 0.1
log = structlog.get_logger("comity.node.training")


class Closing:
    """Tells the last event of runs; survives a restart in between."""

    def __init__(self, node: NodeContext, events: RunEvents) -> None:
        self._node = node
        self._events = events
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take up runs that were closed by a process that died before it said so."""
        for run, state in await self._node.journal.run(lambda conn: store.closed_untold(conn, LAST_EVENT)):
            self.begin(run, state)

    async def stop(self) -> None:
        """End; the next start takes them up again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def begin(self, run: str, state: str) -> None:
        """Tell that `run` is closed, as soon as its receipts are proved or the wait for them is over."""
        task = asyncio.create_task(self._tell(run, state))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, run: str, state: str) -> None:
        proved, digests = 0, list[str]()
        try:
            async with asyncio.timeout(PROVED_WITHIN_S):
                while True:
                    # Read each time: a receipt is signed anew when its proof is made.
                    statements = await self._node.journal.run(lambda conn: store.receipts_of(conn, run))
                    digests = [hashlib.sha256(data).hexdigest() for data in statements]
                    look = partial(self._node.ledger.included, digests=digests)
                    proved = await self._node.journal.run(look)
                    if proved >= len(digests):
                        break
                    await asyncio.sleep(LOOK_AGAIN_S)
        except (TimeoutError, ComityError) as error:
            log.warning("run.unproved", run=run, receipts=len(digests), proved=proved, error=str(error))
        self._events.tell(run, LAST_EVENT, state=state, receipts=len(digests), proved=proved)
