"""Spans: the steps of a trace. Without a collector they cost a context variable.

Rules
1. A trace begins with something that a person asked for (`root`); anything else makes a span only inside a trace.
2. Attributes are ids, of the four kinds of `Scope`, and nothing else; how a step failed is its code in the catalogue.
3. Names come from the code, never from a message: a kind that nobody handles makes no span.
4. `starting.begin` puts the recorder in; a process that has none passes on the trace that came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from comity.observability import scope
from comity.observability.scope import Scope


class Recorder(Protocol):
    """Makes spans (`tracing.Recorder`)."""

    def foreign(self, parent: str) -> bool:
        """Whether a trace that another process began is gone on with here."""

    @property
    def tracer(self) -> Any:
        """OpenTelemetry's tracer, for libraries that make spans themselves."""

    def at_hand(self) -> str:
        """Return the traceparent of the span that a library has begun in this task; empty if there is none."""

    def span(self, name: str, parent: str, ids: Scope, *, remote: bool) -> AbstractContextManager[str]:
        """Record a span for the time of a `with` block, which gets its traceparent."""


_recorder: Recorder | None = None


def record_with(recorder: Recorder | None) -> None:
    """Record spans with `recorder` from now on; None stops that."""
    global _recorder  # noqa: PLW0603 - one recorder a process, as there is one log
    _recorder = recorder


def recording() -> bool:
    """Whether this process records traces."""
    return _recorder is not None


def _ids(ids: dict[str, str]) -> Scope:
    now = scope.current()
    return replace(now, **ids) if ids else now


@contextmanager
def span(name: str, *, root: bool = False, trace: str = "", **ids: str) -> Iterator[None]:
    """Do the `with` block as the step `name` of the trace at hand, or of `trace`, which this process kept earlier.

    Args:
        root: a trace begins here if there is none (rule 1).
        ids: `org`, `proposal`, `agreement`, `run`; for the log lines too.
    """
    now = _ids(ids)
    parent = trace or now.trace
    recorder = _recorder
    if recorder is None or not (parent or root):
        with scope.entered(replace(now, trace=parent) if parent != now.trace else now):
            yield
        return
    with recorder.span(name, parent, now, remote=False) as made, scope.entered(replace(now, trace=made)):
        yield


@contextmanager
def received(name: str, trace: str, **ids: str) -> Iterator[None]:
    """Do the `with` block as the step `name` of the trace that a message carried; whose it is, nobody vouches for."""
    parent = scope.accepted(trace) if trace else ""
    now = replace(scope.current(), trace=parent, **ids)
    recorder = _recorder
    if not parent or recorder is None:
        with scope.entered(now):
            yield
        return
    mine = parent if recorder.foreign(parent) else ""
    with recorder.span(name, mine, now, remote=True) as made, scope.entered(replace(now, trace=made)):
        yield


def tracer() -> Any:
    """Return OpenTelemetry's tracer while traces are recorded, else None."""
    return None if _recorder is None else _recorder.tracer


@contextmanager
def resumed(**ids: str) -> Iterator[None]:
    """Do the `with` block within the span that a library has begun, as Temporal's does around an activity."""
    found = "" if _recorder is None else _recorder.at_hand()
    with scope.entered(replace(_ids(ids), trace=found)):
        yield
