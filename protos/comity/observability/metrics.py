"""Counters, gauges and histograms of one process, without a library on the way: adding costs a lock and a dictionary.

Rules
1. Each process declares all its metrics in one module, on one `Book`; a name that is not there does not exist.
2. No id is a label. A label's values are few, and known in advance; what exceeds `SERIES_MAX` is counted as `other`.
3. Prometheus' library renders them (`exposition.py`), when somebody asks; gauges are read then, not kept.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SERIES_MAX = 128
OTHER = "other"
# Seconds, from a policy's quick answer to a database that is in trouble.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Labels = tuple[str, ...]


@dataclass(slots=True)
class Counter:
    """What only grows. `name` is without the suffix `_total`, which Prometheus gives it."""

    name: str
    help: str
    labels: Labels
    values: dict[Labels, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *labels: str, by: float = 1) -> None:
        """Count `by` more, under the values of the labels, in order. Thread-safe."""
        with self._lock:
            key = _bounded(self.values, labels)
            self.values[key] = self.values.get(key, 0) + by


@dataclass(slots=True)
class Gauge:
    """What goes up and down, as it was read last."""

    name: str
    help: str
    labels: Labels
    values: dict[Labels, float] = field(default_factory=dict)

    def set(self, value: float, *labels: str) -> None:
        """Note how much it is now."""
        self.values[_bounded(self.values, labels)] = value

    def replace(self, values: Mapping[str, float]) -> None:
        """Note all values of a gauge with one label; those of before are gone. Beyond the bound they are summed."""
        fresh: dict[Labels, float] = {}
        for label, value in values.items():
            key = _bounded(fresh, (label,))
            fresh[key] = fresh.get(key, 0) + value
        self.values = fresh


@dataclass(slots=True)
class Histogram:
    """How often something took how long. `values` holds a count for each bucket, one for what exceeds all, the sum."""

    name: str
    help: str
    labels: Labels
    bounds: Sequence[float]
    values: dict[Labels, list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, value: float, *labels: str) -> None:
        """Count one more that took `value`. Thread-safe."""
        with self._lock:
            key = _bounded(self.values, labels)
            row = self.values.get(key)
            if row is None:
                row = self.values[key] = [0.0] * (len(self.bounds) + 2)
            row[bisect_left(self.bounds, value)] += 1
            row[-1] += value


Metric = Counter | Gauge | Histogram


class Book:
    """The metrics of one process; their names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Declare what only grows."""
        found = Counter(f"{self._prefix}_{name}", text, labels)
        self._add(found)
        return found

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Declare what goes up and down."""
        found = Gauge(f"{self._prefix}_{name}", text, labels)
        self._add(found)
        return found

    def histogram(self, name: str, text: str, *labels: str, bounds: Sequence[float] = SECONDS) -> Histogram:
        """Declare what is measured each time."""
        found = Histogram(f"{self._prefix}_{name}", text, labels, tuple(bounds))
        self._add(found)
        return found

    def __iter__(self) -> Iterator[Metric]:
        """Yield all metrics, in the order in which they were declared."""
        return iter(self._metrics.values())

    def exposed(self) -> frozenset[str]:
        """Return every name that Prometheus sees."""
        names: set[str] = set()
        for each in self:
            match each:
                case Counter():
                    names.add(f"{each.name}_total")
                case Gauge():
                    names.add(each.name)
                case Histogram():
                    names |= {f"{each.name}_{suffix}" for suffix in ("bucket", "count", "sum")}
        return frozenset(names)

    def _add(self, metric: Metric) -> None:
        assert metric.name not in self._metrics, f"{metric.name} is declared twice"
        self._metrics[metric.name] = metric


def _bounded(values: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if labels in values or len(values) < SERIES_MAX else (OTHER,) * len(labels)
