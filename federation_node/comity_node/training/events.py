"""The story of a run as people of this organisation see it: a table, and a broadcast to whoever is watching.

Metrics are in it, so it never leaves the node except through the local API. Numbers rise by one within a run; a watcher
that comes late reads the table first and then the broadcast, without a gap.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from comity.wire import instants
from comity_node.journal import Journal
from comity_node.training import store
from comity_node.training.behind import WriteBehind

PAGE = 500
LAST_EVENT = "closed"


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event. `body` holds plain JSON values."""

    run: str
    no: int
    at: str
    kind: str
    body: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the form of the local API."""
        return {"run": self.run, "no": self.no, "at": self.at, "kind": self.kind, **self.body}


class RunEvents:
    """Tell and watch the events of runs; `closed` is the last event of a run."""

    def __init__(self, journal: Journal, behind: WriteBehind, clock: Callable[[], datetime]) -> None:
        self._journal = journal
        self._behind = behind
        self._clock = clock
        self._changed: dict[str, set[asyncio.Event]] = {}

    def tell(self, run: str, kind: str, **body: Any) -> None:
        """Append an event; watchers see it once it is on disk."""
        now = self._clock()
        # Whole seconds name an instant everywhere; how long a round took wants milliseconds since the Unix epoch.
        text = json.dumps({"at_ms": int(now.timestamp() * 1_000), **body}, separators=(",", ":"))
        at = instants.to_text(now)
        self._behind.add(lambda conn: _put(conn, run, at, kind, text), lambda: self._wake(run))

    async def page(self, run: str, after_no: int = 0) -> list[RunEvent]:
        """Return at most `PAGE` events behind number `after_no`."""
        rows = await self._journal.run(lambda conn: store.list_events(conn, run, after_no, PAGE))
        return [RunEvent(run, no, at, kind, json.loads(body)) for no, at, kind, body in rows]

    async def watch(self, run: str, after_no: int = 0) -> AsyncGenerator[RunEvent, None]:
        """Yield a run's events from `after_no` on, until it is closed or the caller leaves."""
        changed = asyncio.Event()
        watchers = self._changed.setdefault(run, set())
        watchers.add(changed)
        try:
            while True:
                changed.clear()
                page = await self.page(run, after_no)
                for event in page:
                    after_no = event.no
                    yield event
                    if event.kind == LAST_EVENT:
                        return
                if not page:
                    await changed.wait()
        finally:
            watchers.discard(changed)
            if not watchers:
                self._changed.pop(run, None)

    def _wake(self, run: str) -> None:
        for changed in self._changed.get(run, ()):
            changed.set()


def _put(conn: Connection, run: str, at: str, kind: str, body: str) -> None:
    store.put_event(conn, run, at, kind, body)
