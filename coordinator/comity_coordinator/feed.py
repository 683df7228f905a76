"""What changed, for watchers of the REST API (server-sent events): identifiers and states, nothing else.

Rules: publishing never waits; a watcher that is too slow loses its oldest events and is told so; at most `WATCHERS_MAX`
watchers. The feed is memory of this process: whoever needs the truth reads the states.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

from comity.wire.errors import ComityError, ErrorCode

WATCHERS_MAX = 64
EVENTS_KEPT = 256


class Feed:
    """A broadcast from database threads to watchers in the event loop."""

    def __init__(self) -> None:
        self._watchers: dict[asyncio.Queue[dict[str, Any]], asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()
        self._also: Callable[[dict[str, Any]], None] | None = None

    @property
    def full(self) -> bool:
        """True if another watcher would be refused."""
        return len(self._watchers) >= WATCHERS_MAX

    def also(self, publish: Callable[[dict[str, Any]], None]) -> None:
        """Call `publish(event)` too, in the thread that publishes: for watchers of other replicas."""
        self._also = publish

    def publish(self, event: dict[str, Any]) -> None:
        """Give `event` to every watcher; callable from any thread."""
        self.show(event)
        if self._also is not None:
            self._also(event)

    def show(self, event: dict[str, Any]) -> None:
        """Give an event, perhaps another replica's, to the watchers of this process."""
        with self._lock:
            watchers = list(self._watchers.items())
        for queue, loop in watchers:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_put, queue, event)

    async def watch(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield events from now on. Raises `BUSY` when there are too many watchers."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(EVENTS_KEPT)
        with self._lock:
            if self.full:
                raise ComityError(ErrorCode.BUSY, "too many watchers", limit=WATCHERS_MAX)
            self._watchers[queue] = asyncio.get_running_loop()
        try:
            while True:
                yield await queue.get()
        finally:
            with self._lock:
                self._watchers.pop(queue, None)


def _put(queue: asyncio.Queue[dict[str, Any]], event: dict[str, Any]) -> None:
    if queue.full():
        queue.get_nowait()
        event = {**event, "missed": True}
    queue.put_nowait(event)
