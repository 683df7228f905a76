"""Traces by OpenTelemetry, to this organisation's own collector. Imported only where there is one.

Rules
1. Each process exports to its own collector; nothing here connects to anybody else's.
2. Whether to record a trace that others began is ours to say: not without their sampled flag, and never more steps in
   a minute than the settings allow, however many they ask for.
3. Exports go by a bounded queue and a thread of their own; a collector that is away costs spans, not work.
4. No exception and no event is recorded: their texts may hold anything. A step that failed has a catalogue code.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from comity.observability import spans
from comity.observability.scope import Scope
from comity.observability.settings import TraceSettings
from comity.wire.errors import ComityError

QUEUE_SPANS = 4_096
BATCH_SPANS = 512
EXPORT_EVERY_MS = 1_000
EXPORT_TIMEOUT_MS = 5_000
ATTRIBUTES_MAX = 16
VALUE_CHARS_MAX = 128
_ATTRIBUTES = {"org": "comity.org", "proposal": "comity.proposal", "agreement": "comity.agreement", "run": "comity.run"}


class Bounded(Sampler):
    """Records our own traces by their share, others' while they asked for it and the minute has room (rule 2)."""

    def __init__(self, share: float, foreign_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = TraceIdRatioBased(share)
        self._per_minute = foreign_per_minute
        self._room = float(foreign_per_minute)
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Say whether a span is recorded."""
        parent = trace.get_current_span(parent_context).get_span_context()
        if not parent.is_valid:
            return self._own.should_sample(None, trace_id, name, kind, attributes)
        record = parent.trace_flags.sampled and (not parent.is_remote or self._take())
        # What the sampler returns is all that the span gets, the attributes that it was begun with included.
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes) if record else SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        """Name the sampler."""
        return f"Bounded({self._own.get_description()},{self._per_minute}/min)"

    def _take(self) -> bool:
        with self._lock:
            now = self._clock()
            earned = (now - self._at) / 60 * self._per_minute
            self._room, self._at = min(float(self._per_minute), self._room + earned), now
            if self._room < 1:
                return False
            self._room -= 1
            return True


class Recorder:
    """Implements `spans.Recorder`."""

    def __init__(self, provider: TracerProvider, *, accept_foreign: bool) -> None:
        self.provider = provider
        self.tracer = provider.get_tracer("comity")
        self._accept_foreign = accept_foreign

    def foreign(self, parent: str) -> bool:
        """Whether a trace that another process began is gone on with here."""
        return self._accept_foreign

    def at_hand(self) -> str:
        """Return the traceparent of the span that a library has begun in this task; empty if there is none."""
        found = trace.get_current_span().get_span_context()
        return _traceparent(found) if found.is_valid else ""

    @contextmanager
    def span(self, name: str, parent: str, ids: Scope, *, remote: bool) -> Iterator[str]:
        """Record a span for the time of a `with` block, which gets its traceparent."""
        above = _context(parent, remote=remote)
        kind = SpanKind.CONSUMER if remote else SpanKind.INTERNAL
        given = {_ATTRIBUTES[key]: value for key in _ATTRIBUTES if (value := getattr(ids, key))}
        made = self.tracer.start_span(name, above, kind, given, record_exception=False, set_status_on_exception=False)
        token = context.attach(trace.set_span_in_context(made))
        try:
            yield _traceparent(made.get_span_context())
        except ComityError as error:
            made.set_status(Status(StatusCode.ERROR, str(error.code)))
            raise
        except Exception:
            made.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            context.detach(token)
            made.end()


def start(service: str, settings: TraceSettings, org: str = "") -> Callable[[], None]:
    """Record and export from now on; returns what ends it, which waits for the last export within a bound."""
    # Without an argument the exporter reads the environment: the address, its certificate, its headers.
    named = f"{settings.endpoint.rstrip('/')}/v1/traces" if settings.endpoint else None
    exporter = OTLPSpanExporter(endpoint=named, timeout=EXPORT_TIMEOUT_MS / 1_000)
    return start_with(exporter, service, settings, org)


def start_with(exporter: SpanExporter, service: str, settings: TraceSettings, org: str = "") -> Callable[[], None]:
    """As `start`, to any exporter."""
    resource = Resource.create({"service.name": service, **({"comity.org": org} if org else {})})
    limits = SpanLimits(max_span_attributes=ATTRIBUTES_MAX, max_span_attribute_length=VALUE_CHARS_MAX)
    provider = TracerProvider(
        Bounded(settings.sample, settings.foreign_per_minute), resource, shutdown_on_exit=False, span_limits=limits
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=EXPORT_EVERY_MS,
            export_timeout_millis=EXPORT_TIMEOUT_MS,
        )
    )
    spans.record_with(Recorder(provider, accept_foreign=settings.accept_foreign))

    def end() -> None:
        spans.record_with(None)
        provider.shutdown()

    return end


def _context(parent: str, *, remote: bool) -> Context:
    if not parent:
        return Context()
    _, trace_id, span_id, flags = parent.split("-")
    of_parent = SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(int(flags, 16) & 1))
    return trace.set_span_in_context(NonRecordingSpan(of_parent), Context())


def _traceparent(made: SpanContext) -> str:
    return f"00-{made.trace_id:032x}-{made.span_id:016x}-{int(made.trace_flags) & 1:02x}"
