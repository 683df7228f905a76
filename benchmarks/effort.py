"""How much processor time the processes of a cast take, apart from the workflow engine's server.

On a machine that others use too, wall time says little; processor time is what the work itself costs.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import memory

SAMPLE_EVERY_S = 0.2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Effort:
    """Samples user and system time of a cast in a thread, between `with` and its end."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._at_ms: list[float] = []
        self._samples: list[dict[str, float]] = []

    def __enter__(self) -> Effort:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin_ms: float, end_ms: float) -> dict[str, float]:
        """Return processor seconds by process between two instants (Unix milliseconds), to a sample's precision."""
        first, last = (max(0, bisect_right(self._at_ms, at) - 1) for at in (begin_ms, end_ms))
        before, after = self._samples[first], self._samples[last]
        scale = (end_ms - begin_ms) / max(1.0, self._at_ms[last] - self._at_ms[first])
        return {name: (value - before.get(name, 0.0)) * scale for name, value in after.items()}

    def _work(self) -> None:
        while not self._stop.is_set():
            each = {f"{pid} {memory.words(pid)}": _seconds(pid) for pid in memory.family(self._roots)}
            self._at_ms.append(time.time() * 1_000)
            self._samples.append(each)
            self._stop.wait(SAMPLE_EVERY_S)


def spent(root: int) -> float:
    """Return the processor seconds of a process and its descendants so far."""
    return sum(_seconds(pid) for pid in memory.family([root]))


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
