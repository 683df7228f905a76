"""An OpenTelemetry collector of a test: takes OTLP over HTTP on loopback and keeps every span."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

BODY_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it was exported; `process` is service.name, `at` the organisation in whose node it was made."""

    trace: str
    id: str
    parent: str
    name: str
    process: str
    at: str
    attributes: dict[str, Any]
    events: int
    status: str


class Collector:
    """What came so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @property
    def spans(self) -> list[Span]:
        """Every span, in the order of arrival."""
        with self._lock:
            return list(self._spans)

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one export."""
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            found = [
                Span(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    name=span.name,
                    process=str(resource["service.name"]),
                    at=str(resource.get("comity.org", "")),
                    attributes=_attributes(span.attributes),
                    events=len(span.events),
                    status=span.status.message,
                )
                for scope in group.scope_spans
                for span in scope.spans
            ]
            with self._lock:
                self._spans.extend(found)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector for the time of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(min(int(self.headers["content-length"]), BODY_BYTES_MAX))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            collector.take(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
