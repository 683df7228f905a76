"""Switching it on at the start of a process, as the settings say; what is off is not even imported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from comity.observability.metrics import Book, Counter
from comity.observability.settings import MetricsSettings, TraceSettings


@dataclass(frozen=True, slots=True)
class Telling:
    """What a process tells of: its name, its metrics, how its gauges are read, what counts readings that failed."""

    service: str
    book: Book
    read: Callable[[], Awaitable[None]]
    errors: Counter
    org: str = ""


async def begin(stack: AsyncExitStack, telling: Telling, metrics: MetricsSettings, traces: TraceSettings) -> int:
    """Begin to tell until `stack` is closed; returns the port of the metrics, 0 if there is none.

    Raises:
        ComityError: `UNAVAILABLE` if the port is taken.
    """
    if traces.wanted:
        from comity.observability import tracing

        end = tracing.start(telling.service, traces, telling.org)
        stack.push_async_callback(asyncio.to_thread, end)
    if not metrics.listen:
        return 0
    from comity.observability.exposition import MetricsServer

    server = MetricsServer(telling.book, telling.read, telling.errors, metrics.listen)
    await server.start()
    stack.push_async_callback(server.stop)
    return server.port
