"""What the node gets from the two Flower processes, checked: replies of a worker, events of a ServerApp.

The forms of the frames stand at the head of `workers.py`. Every function here takes a frame from a hostile process;
what does not have the agreed form is refused with `REPLY_SHAPE`, and the frame's descriptor is closed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import Frame

QUESTIONS_MAX = 1_000_000
_METRICS_MAX = 1_000
_METRIC_VALUES_MAX = 10_000
_GROUP_CHARS_MAX = 200
_APP_CODES = frozenset(
    {
        ErrorCode.APP_INVALID,
        ErrorCode.APP_FAILED,
        ErrorCode.APP_SILENT,
        ErrorCode.REPLY_SHAPE,
        ErrorCode.PARTICIPANTS_TOO_FEW,
    }
)
_TYPE = re.compile(r"(train|evaluate|query)(\.[A-Za-z_][A-Za-z0-9_]{0,63})?")

Metrics = dict[str, int | float | list[int | float] | None]


@dataclass(slots=True)
class Reply:
    """A worker's answer: the frame's header and a sealed blob that the holder closes."""

    header: dict[str, Any]
    fd: int
    size: int

    @contextlib.contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """The blob as a read-only view; nothing may refer to it after the `with` block."""
        with memory.mapped(self.fd, self.size) as view:
            yield view

    def close(self) -> None:
        """Close the blob's descriptor; harmless the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(slots=True)
class Ask:
    """One question of the ServerApp: one content for one or more nodes. The holder closes `fd`."""

    seq: int
    dst: tuple[int, ...]
    type: str
    group: str
    ttl_s: float
    timeout_s: float | None
    fd: int
    size: int

    def close(self) -> None:
        """Close the blob's descriptor; harmless the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True, slots=True)
class Progress:
    """Aggregated metrics of one stage of one round, as soon as the app's strategy has them."""

    phase: int
    round: int
    stage: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """All aggregated metrics of one round; None where the stage did not take place."""

    phase: int
    round: int
    train: Metrics | None
    evaluate: Metrics | None
    server: Metrics | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The ServerApp's end. `fd` (None: the app gave no arrays) holds the final arrays; the holder closes it.

    `source` says where they come from: `strategy` = what `Strategy.start` returned, `outgoing` = the last arrays sent.
    """

    source: str
    questions: int
    rounds: tuple[RoundMetrics, ...]
    timings: dict[str, float]
    fd: int | None
    size: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The ServerApp ended without a result; the reason's text is in the owner's log."""

    error: ComityError


# Why a strategy cannot work on sums (secure-aggregation.md section 6).
REFUSALS = {
    "single": "the strategy compares single updates, and under encryption nobody sees one; use one that averages",
    "opaque": "the strategy merges what cannot be averaged; use one that averages arrays",
    "noise": "clipping and noise on a mean do not bound one party's influence; ask for the term `privacy` instead",
    "sample": "under encryption every party takes part in every round; fraction_train and fraction_evaluate are 1 or 0",
}

Event = Ask | Progress | Finished | Failed


def event_of(frame: Frame, next_seq: int, node_ids: Collection[int]) -> Event:
    """Check one frame of a ServerApp whose next question has number `next_seq`. Raises `REPLY_SHAPE`."""
    try:
        op = frame.header.get("op")
        if op == "ask":
            return _ask(frame, next_seq, node_ids)
        if op == "progress":
            return _progress(frame.header)
        if op == "finished":
            return _finished(frame)
        if op == "failed":
            return Failed(_refused(frame.header.get("reason")) or reported(frame.header.get("code")))
        raise ComityError(ErrorCode.REPLY_SHAPE, "the ServerApp sent an unknown frame")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise ComityError(ErrorCode.REPLY_SHAPE, "the ServerApp sent a frame in a form that is not agreed") from error
    finally:
        frame.close()


def _ask(frame: Frame, next_seq: int, node_ids: Collection[int]) -> Ask:
    header = frame.header
    if header["seq"] != next_seq or next_seq >= QUESTIONS_MAX:
        raise ValueError("seq")
    dst = header["dst"]
    if not dst or dst != sorted(set(dst)) or any(type(node) is not int or node not in node_ids for node in dst):
        raise ValueError("dst")
    if not _TYPE.fullmatch(header["type"]) or len(header["group"]) > _GROUP_CHARS_MAX or frame.fd is None:
        raise ValueError("type, group or blob")
    timeout_s = header["timeout_s"]
    size_bytes = frame.size_bytes
    return Ask(
        seq=next_seq,
        dst=tuple(dst),
        type=str(header["type"]),
        group=str(header["group"]),
        ttl_s=float(header["ttl_s"]),
        timeout_s=None if timeout_s is None else float(timeout_s),
        fd=frame.take(),
        size=size_bytes,
    )


def _progress(header: dict[str, Any]) -> Progress:
    metrics = _metrics(header["metrics"])
    if header["stage"] not in {"train", "evaluate", "server"} or metrics is None:
        raise ValueError("stage")
    return Progress(_count(header["phase"]), _count(header["round"]), header["stage"], metrics)


def _finished(frame: Frame) -> Finished:
    header = frame.header
    rounds = tuple(
        RoundMetrics(
            _count(row["phase"]),
            _count(row["round"]),
            _metrics(row["train"]),
            _metrics(row["evaluate"]),
            _metrics(row["server"]),
        )
        for row in header["rounds"][:QUESTIONS_MAX]
    )
    timings = {str(key)[:40]: float(value) for key, value in list(header["timings"].items())[:20]}
    if header["source"] not in {"strategy", "outgoing", "none"} or (header["source"] == "none") != (frame.fd is None):
        raise ValueError("source")
    size_bytes = frame.size_bytes
    fd = frame.take() if frame.fd is not None else None
    return Finished(header["source"], _count(header["questions"]), rounds, timings, fd, size_bytes)


def _metrics(value: Any) -> Metrics | None:
    """Check aggregated metrics: numbers, lists of numbers, or null for what JSON lacks (not a number, infinite)."""
    if value is None:
        return None
    metrics: Metrics = {}
    if not isinstance(value, dict) or len(value) > _METRICS_MAX:
        raise ValueError("metrics")
    for key, item in value.items():
        items = item if isinstance(item, list) else [item]
        if len(items) > _METRIC_VALUES_MAX or not all(
            one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in items
        ):
            raise ValueError("metric")
        metrics[str(key)[:200]] = item
    return metrics


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= QUESTIONS_MAX:
        raise ValueError("count")
    return value


def _refused(reason: Any) -> ComityError | None:
    """Return the refusal of a strategy in our own words; a process gives the key alone, never text."""
    sentence = REFUSALS.get(reason) if isinstance(reason, str) else None
    return None if sentence is None else ComityError(ErrorCode.STRATEGY_REFUSED, sentence)


def reported(code: Any) -> ComityError:
    """Return the error that a process reports of itself; it may name only the codes that are its to give."""
    known = code if code in _APP_CODES else ErrorCode.APP_FAILED
    return ComityError(ErrorCode(known), "the reason is in the owner's log")
