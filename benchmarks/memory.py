"""How much memory the processes of a cast take together, as the kernel divides it among them.

PSS (proportional set size): a page that k processes map counts 1/k for each, so that memory files that two processes
share count once. The workflow engine's server is left out: it is another project's program with a budget of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

SAMPLE_EVERY_S = 0.05
_PROC = Path("/proc")
_ENGINE = b"temporal"


def family(roots: Iterable[int]) -> list[int]:
    """Return the processes `roots` and all their descendants that run now, without the workflow engine's server."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = list[int](), list(roots)
    while waiting:
        pid = waiting.pop()
        if not _is_engine(pid):
            found.append(pid)
            waiting += children.get(pid, ())
    return found


def pss_bytes(pid: int) -> int:
    """Return the PSS of a process; 0 if it is gone."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_bytes()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


class PeakMemory:
    """Samples the summed PSS of a cast in a thread, between `with` and its end. `roots` are its started processes."""

    def __init__(self, roots: Iterable[int]) -> None:
        self._roots = list(roots)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.peak_bytes = 0
        self.samples = 0
        self.at_peak: dict[str, int] = {}

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            each = {pid: pss_bytes(pid) for pid in family(self._roots)}
            total = sum(each.values())
            self.samples += 1
            if total > self.peak_bytes:
                self.peak_bytes = total
                self.at_peak = {f"{pid} {words(pid)}": size for pid, size in each.items() if size}
            self._stop.wait(max(0.0, SAMPLE_EVERY_S - (time.monotonic() - begun)))


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _is_engine(pid: int) -> bool:
    try:
        program = (_PROC / str(pid) / "cmdline").read_bytes().partition(b"\x00")[0]
    except OSError:
        return True
    return _ENGINE in program.rpartition(b"/")[2]


def words(pid: int) -> str:
    """Return a process's command line in short."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\x00")
    except OSError:
        return "?"
    return b" ".join(word.rpartition(b"/")[2] for word in words if not word.startswith(b"-"))[:80].decode(
        "utf-8", "replace"
    )
