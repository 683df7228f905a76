"""`GET /metrics` for Prometheus, on an address of its own. Imported only where `metrics.listen` is set.

Rules
1. Nothing but that one path is answered, and only by GET; nobody is asked who they are, so the address is loopback
   unless the settings say otherwise.
2. Gauges are read at most once in `READ_EVERY_S`, whoever asks how often; a reading that fails keeps the older values
   and shows in `scrape_errors`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from comity.observability.metrics import Book, Counter, Gauge, Histogram, Metric
from comity.observability.settings import address_of
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import QuietServer

READ_EVERY_S = 2.0
READ_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 8
SHUTDOWN_GRACE_S = 1
STOP_TIMEOUT_S = 3.0

Read = Callable[[], Awaitable[None]]
log = structlog.get_logger("comity.metrics")


class _Shown(Collector):
    def __init__(self, book: Book) -> None:
        self._book = book

    def collect(self) -> Iterable[Family]:
        return [_family(each) for each in self._book]


def rendered(book: Book) -> bytes:
    """Return all metrics of `book` in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Shown(book))
    return bytes(generate_latest(registry))


class MetricsServer:
    """Serves one book. `read` sets its gauges; `errors` counts readings that failed."""

    def __init__(self, book: Book, read: Read, errors: Counter, listen: str) -> None:
        """Raises `UNAVAILABLE` if the address is taken or not ours."""
        self._book, self._read, self._errors = book, read, errors
        self._read_at = -READ_EVERY_S
        self._lock = asyncio.Lock()
        self._socket = _bind(listen)
        self.port = int(self._socket.getsockname()[1])
        app = Starlette(routes=[Route("/metrics", self._answer, methods=["GET"])])
        self._server = QuietServer(app, connections_max=CONNECTIONS_MAX, shutdown_grace_s=SHUTDOWN_GRACE_S)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        log.info("metrics.listening", port=self.port)

    async def stop(self) -> None:
        """End, within a bound."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_TIMEOUT_S)
            self._task.cancel()
        self._socket.close()

    async def _answer(self, _request: Request) -> Response:
        async with self._lock:
            if time.monotonic() - self._read_at >= READ_EVERY_S:
                await self._refresh()
        return Response(rendered(self._book), media_type=CONTENT_TYPE_LATEST)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self._read()
        except Exception as error:  # noqa: BLE001 - what cannot be read now must not hide the counters
            self._errors.add()
            log.warning("metrics.not_read", error=type(error).__name__)
        self._read_at = time.monotonic()


def _family(metric: Metric) -> Family:
    match metric:
        case Counter():
            counted = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in [*metric.values.items()] or _zero(metric):
                counted.add_metric(labels, value)
            return counted
        case Gauge():
            shown = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in [*metric.values.items()]:
                shown.add_metric(labels, value)
            return shown
        case Histogram():
            return _histogram(metric)


def _zero(metric: Counter) -> list[tuple[tuple[str, ...], float]]:
    """A counter without labels begins at 0, so that its first increase is seen as one."""
    return [] if metric.labels else [((), 0.0)]


def _histogram(metric: Histogram) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, row in [*metric.values.items()]:
        family.add_metric(labels, buckets=[*_buckets(metric, row)], sum_value=row[-1])
    return family


def _buckets(metric: Histogram, row: list[float]) -> Iterator[tuple[str, float]]:
    total = 0.0
    for bound, count in zip([*map(str, metric.bounds), "+Inf"], row[:-1], strict=True):
        total += count
        yield bound, total


def _bind(listen: str) -> socket.socket:
    host, port = address_of(listen)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise ComityError(ErrorCode.UNAVAILABLE, "metrics.listen: the address is taken, or not ours") from error
    listener.setblocking(False)
    return listener
