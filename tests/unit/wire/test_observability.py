"""Scopes, spans, counters and their listener: what a log line and a trace say, and that strangers decide none of it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from comity.observability import scope, spans, starting, tracing
from comity.observability.metrics import OTHER, SERIES_MAX, Book
from comity.observability.settings import MetricsSettings, TraceSettings
from comity.wire import logs
from comity.wire.errors import ComityError, ErrorCode

FOREIGN = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
UNSAMPLED = FOREIGN[:-2] + "00"
HOSTILE = (
    "",
    FOREIGN[:-1],
    FOREIGN + "0",
    FOREIGN.upper(),
    FOREIGN.replace("ab", "zz"),
    "00-" + "0" * 32 + "-" + "cd" * 8 + "-01",
    "00-" + "ab" * 16 + "-" + "0" * 16 + "-01",
    "ff" + FOREIGN[2:],
    FOREIGN[:-3] + "\n01",
    "٠" * 55,
    "x" * 1_000_000,
)


class Recording:
    """A recorder in memory."""

    def __init__(self, settings: TraceSettings | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self._end = tracing.start_with(self.exporter, "test", settings or TraceSettings(), "org-a")

    def end(self) -> list[tuple[str, str, str, dict[str, object]]]:
        """Return (name, trace, parent, attributes) of every span."""
        self._end()
        return [
            (
                each.name,
                f"{each.context.trace_id:032x}",
                f"{each.parent.span_id:016x}" if each.parent else "",
                dict(each.attributes or {}),
            )
            for each in self.exporter.get_finished_spans()
        ]


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    spans.record_with(None)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_trace_context_is_as_if_it_were_not_there(text: str) -> None:
    assert scope.accepted(text) == ""
    assert scope.accepted(FOREIGN) == FOREIGN
    recording = Recording()
    with spans.received("take offer", text):
        assert scope.trace() == ""
    assert recording.end() == []


def test_a_process_that_records_nothing_passes_the_trace_on() -> None:
    with spans.received("take offer", FOREIGN, run="r"), spans.span("decide proposal"):
        assert scope.trace() == FOREIGN
    assert scope.trace() == ""
    with spans.span("propose", root=True):
        assert scope.trace() == ""  # it begins none either


def test_spans_form_a_tree_over_threads_and_tasks() -> None:
    recording = Recording()

    async def story() -> None:
        with spans.span("propose", root=True, proposal="p-1", org="org-a"):
            sent = scope.trace()
            seen: list[str] = []
            work = scope.bound(lambda: seen.append(scope.trace()))
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            assert seen == [sent]
        with spans.received("take offer", sent, run="r-1"):
            await asyncio.create_task(inner())

    async def inner() -> None:
        with spans.span("decide proposal"):
            pass

    asyncio.run(story())
    with spans.span("nobody asked"):
        pass
    found = {name: (trace, parent, attributes) for name, trace, parent, attributes in recording.end()}
    assert set(found) == {"propose", "take offer", "decide proposal"}
    assert len({trace for trace, _, _ in found.values()}) == 1
    assert found["propose"][1] == ""
    assert found["take offer"][1]
    assert found["propose"][2] == {"comity.proposal": "p-1", "comity.org": "org-a"}
    assert found["decide proposal"][2] == {"comity.run": "r-1"}


def test_a_failure_shows_its_code_and_nothing_that_it_says() -> None:
    recording = Recording()
    with pytest.raises(ComityError), spans.span("propose", root=True):
        raise ComityError(ErrorCode.FORBIDDEN, "patient 17 is too young")
    with pytest.raises(ValueError, match="patient"), spans.span("propose", root=True):
        raise ValueError("patient 18")
    recording.end()
    said = [each.to_json() for each in recording.exporter.get_finished_spans()]
    assert [each.status.description for each in recording.exporter.get_finished_spans()] == ["FORBIDDEN", None]
    assert "patient" not in "".join(said)


@pytest.mark.parametrize(
    ("settings", "sent", "recorded"),
    [
        (TraceSettings(foreign_per_minute=3), FOREIGN, 3),
        (TraceSettings(foreign_per_minute=0), FOREIGN, 0),
        (TraceSettings(), UNSAMPLED, 0),
        (TraceSettings(sample=0.0), FOREIGN, 10),
    ],
)
def test_strangers_do_not_decide_how_much_is_recorded(settings: TraceSettings, sent: str, recorded: int) -> None:
    recording = Recording(settings)
    for _ in range(10):
        with spans.received("take offer", sent):
            assert scope.trace()[3:35] == FOREIGN[3:35]  # passed on all the same
    found = recording.end()
    assert len(found) == recorded
    assert {trace for _, trace, _, _ in found} <= {FOREIGN[3:35]}


def test_foreign_traces_can_be_refused() -> None:
    recording = Recording(TraceSettings(accept_foreign=False))
    with spans.received("take offer", FOREIGN):
        assert FOREIGN[3:35] not in scope.trace()
    ((_, trace, parent, _),) = recording.end()
    assert trace != FOREIGN[3:35]
    assert parent == ""


def test_the_minute_refills() -> None:
    now = [0.0]
    sampler = tracing.Bounded(1.0, 60, lambda: now[0])
    parent = tracing._context(FOREIGN, remote=True)
    taken = [sampler.should_sample(parent, 1, "x").decision.is_sampled() for _ in range(61)]
    assert taken == [True] * 60 + [False]
    now[0] = 1.0
    assert sampler.should_sample(parent, 1, "x").decision.is_sampled()


def test_a_log_line_names_what_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    log = structlog.wrap_logger(structlog.PrintLogger(out), processors=logs.PROCESSORS)
    with scope.about(org="org-a", run="r-1"), spans.received("take order", FOREIGN, agreement="a-1"):
        log.info("order.refused", run="r-2")
    log.info("plain")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert {key: first[key] for key in ("org", "run", "agreement", "trace")} == {
        "org": "org-a",
        "run": "r-2",
        "agreement": "a-1",
        "trace": "ab" * 16,
    }
    assert set(second) == {"event", "level", "at"}


@pytest.mark.parametrize(
    ("asked", "tty", "is_json"),
    [(None, False, True), (None, True, False), ("json", True, True), ("text", False, False)],
)
def test_the_form_of_the_log(
    asked: logs.Format | None, tty: bool, is_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = structlog.get_config()
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: tty, raising=False)
    monkeypatch.setattr("sys.stderr", out)
    try:
        logs.configure(asked)
        with scope.about(run="r-1"):
            structlog.get_logger().warning("something", code="BUSY")
    finally:
        structlog.configure(**before)
    line = out.getvalue().strip()
    assert line.startswith("{") is is_json
    assert "something" in line
    assert "r-1" in line


def test_labels_are_bounded() -> None:
    counter = Book("comity_test").counter("things", "Things.", "kind")
    for number in range(SERIES_MAX * 3):
        counter.add(f"k{number}")
    assert len(counter.values) == SERIES_MAX + 1
    assert counter.values[OTHER,] == SERIES_MAX * 2
    gauge = Book("comity_test").gauge("things", "Things.", "org")
    gauge.replace({f"org-{number}": 1 for number in range(SERIES_MAX + 10)})
    assert gauge.values[OTHER,] == 10
    gauge.replace({"org-1": 2})
    assert gauge.values == {("org-1",): 2}


def test_counting_from_many_threads_loses_nothing() -> None:
    counter = Book("comity_test").counter("things", "Things.")
    threads = [threading.Thread(target=lambda: [counter.add() for _ in range(2_000)]) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert counter.values == {(): 8_000}


async def test_the_listener_serves_metrics_and_nothing_else() -> None:
    book = Book("comity_test")
    counter, errors = book.counter("things", "Things.", "kind"), book.counter("scrape_errors", "Errors.")
    gauge, times = book.gauge("level", "Level."), book.histogram("seconds", "Time.", bounds=(0.1, 1.0))
    counter.add('odd"\n')
    for value in (0.05, 0.1, 5.0):
        times.observe(value)
    reads = []

    async def read() -> None:
        reads.append(1)
        gauge.set(7)
        raise RuntimeError("the database is away")

    async with AsyncExitStack() as stack:
        telling = starting.Telling("test", book, read, errors)
        port = await starting.begin(stack, telling, MetricsSettings(listen="127.0.0.1:0"), TraceSettings())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            text = (await client.get("/metrics")).text
            await client.get("/metrics")
            assert (await client.get("/v1/status")).status_code == 404
            assert (await client.post("/metrics")).status_code == 405
    assert len(reads) == 1
    lines = set(text.splitlines())
    assert {
        'comity_test_things_total{kind="odd\\"\\n"} 1.0',
        "comity_test_level 7.0",
        'comity_test_seconds_bucket{le="0.1"} 2.0',
        'comity_test_seconds_bucket{le="1.0"} 2.0',
        'comity_test_seconds_bucket{le="+Inf"} 3.0',
        "comity_test_seconds_count 3.0",
        "comity_test_seconds_sum 5.15",
        "comity_test_scrape_errors_total 1.0",
    } <= lines


async def test_off_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    book = Book("comity_test")

    async def read() -> None:
        raise AssertionError("nobody asked")

    async with AsyncExitStack() as stack:
        telling = starting.Telling("test", book, read, book.counter("scrape_errors", "Errors."))
        assert await starting.begin(stack, telling, MetricsSettings(), TraceSettings()) == 0
        assert not spans.recording()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert TraceSettings().wanted
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not TraceSettings().wanted


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "192.0.2.1:9464", "[::]:9464", "localhost:9464", "127.0.0.1", "x"])
def test_metrics_stay_on_this_computer(listen: str) -> None:
    with pytest.raises(ValidationError):
        MetricsSettings(listen=listen)


def test_metrics_elsewhere_on_purpose() -> None:
    assert MetricsSettings(listen="0.0.0.0:9464", exposed=True).listen
    assert MetricsSettings(listen="[::1]:0").listen
    with pytest.raises(ValidationError):
        TraceSettings(endpoint="ftp://collector")
