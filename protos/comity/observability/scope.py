"""What this thread or task is busy with: the ids that a log line names, and the trace it belongs to.

Rules
1. One immutable value in one context variable: tasks inherit it, threads are given it by `bound`.
2. A trace context (W3C Trace Context, `traceparent`) is passed on whether or not this process records traces, so that
   one that records none does not cut the trace of those that do.
3. It is a hint from strangers, signed by nobody: what does not have the exact form is as if it were not there.
4. Nothing but ids of organisation, proposal, agreement and run is ever put in here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# version 00: trace id, id of the parent span, flags; in lower case, and neither id all zero.
TRACEPARENT_CHARS = 55
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_IDS = ("org", "proposal", "agreement", "run")


@dataclass(frozen=True, slots=True)
class Scope:
    """Ids are empty where there is none; `trace` is a traceparent."""

    trace: str = ""
    org: str = ""
    proposal: str = ""
    agreement: str = ""
    run: str = ""


NOTHING = Scope()
_scope: ContextVar[Scope] = ContextVar("comity_scope", default=NOTHING)


def current() -> Scope:
    """Return what this task is busy with."""
    return _scope.get()


def trace() -> str:
    """Return the traceparent that a message sent now carries; empty if there is no trace."""
    return _scope.get().trace


def accepted(text: str) -> str:
    """Return `text` if it is a traceparent, else nothing (rule 3)."""
    return text if len(text) == TRACEPARENT_CHARS and _FORM.fullmatch(text) else ""


class entered:  # noqa: N801 - reads as a word of a `with` statement
    """Be busy with `scope` for the time of a `with` block. A class, because each message passes here."""

    __slots__ = ("_scope", "_token")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._token = _scope.set(self._scope)

    def __exit__(self, *_: object) -> None:
        _scope.reset(self._token)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Be busy with these ids besides: `org`, `proposal`, `agreement`, `run`."""
    with entered(replace(_scope.get(), **ids)):
        yield


def bound(fn: Callable[P, R]) -> Callable[P, R]:
    """Return `fn` as it runs in another thread for this task; `fn` itself if the task is busy with nothing."""
    scope = _scope.get()
    if scope is NOTHING:
        return fn

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with entered(scope):
            return fn(*args, **kwargs)

    return call


def into_log(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add to a log line what it is about (a structlog processor); what the line says itself stands."""
    scope = _scope.get()
    if scope is NOTHING:
        return event
    for name in _IDS:
        if value := getattr(scope, name):
            event.setdefault(name, value)
    if scope.trace:
        event.setdefault("trace", scope.trace[3:35])
    return event
