"""Many Ed25519 signatures, checked together and in processes of their own, for whoever reads a long history.

Rules:
1. order is kept: what is refused is the first signature that does not hold, whatever was checked before it elsewhere;
2. memory is bounded: a batch holds at most `BATCH_COUNT` signatures or about `BATCH_BYTES`, and two batches for each
   process are under way at most; `add` waits for the oldest;
3. processes are started afresh, never forked, and get public bytes only; without them (one core, few signatures, one
   that ended) the same function checks here: nothing passes unchecked.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from comity_crypto.signature_main import BATCH, LENGTH, held

T = TypeVar("T")

BATCH_COUNT = 512
BATCH_BYTES = 1 << 20
PROCESSES_MAX = 16
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
_MODULE = "comity_crypto.signature_main"


def processes_for(count: int, least: int) -> int:
    """Return how many processes to use for `count` signatures: 0 below `least` or on one core, else one for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, PROCESSES_MAX) if count >= least and cores > 1 else 0


@dataclass(slots=True)
class _Batch(Generic[T]):
    parts: list[bytes] = field(default_factory=list)
    about: list[T] = field(default_factory=list)
    size_bytes: int = 0


class Signatures(Generic[T]):
    """Signatures that wait for their checks. Use it as a context manager, by one thread.

    Args:
        processes: how many to check in; 0 checks at once, in `add`.
        refuse: called with what `add` was told of the first signature that does not hold; it must raise.
    """

    def __init__(self, processes: int, refuse: Callable[[T], None]) -> None:
        self._most = 2 * processes
        self._refuse = refuse
        self._batch: _Batch[T] = _Batch()
        self._waiting: deque[tuple[Future[int], list[T]]] = deque()
        self._workers = _Workers()
        self._threads = ThreadPoolExecutor(processes, "comity-signatures") if processes else None

    def add(self, public: bytes, signature: bytes, message: bytes, about: T) -> None:
        """Check one signature, now or later. Raises what `refuse` raises, perhaps about an earlier one."""
        batch, size_bytes = self._batch, len(signature) + len(message)
        batch.parts += (public, LENGTH.pack(size_bytes), signature, message)
        batch.about.append(about)
        batch.size_bytes += len(public) + LENGTH.size + size_bytes
        if self._threads is None or len(batch.about) >= BATCH_COUNT or batch.size_bytes >= BATCH_BYTES:
            self._send()
        while len(self._waiting) > self._most:
            self._hear()

    def settle(self) -> None:
        """Wait for all that was added. Raises what `refuse` raises."""
        self._send()
        while self._waiting:
            self._hear()

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        count, data = len(batch.about), b"".join(batch.parts)
        if self._threads is not None:
            self._waiting.append((self._threads.submit(self._workers.held, count, data), batch.about))
        else:
            self._judge(held(count, data), batch.about)

    def _hear(self) -> None:
        future, about = self._waiting.popleft()
        self._judge(future.result(), about)

    def _judge(self, good: int, about: list[T]) -> None:
        if good < len(about):
            # What comes later does not matter any more, also to a caller that settles after this.
            self._batch, self._waiting = _Batch(), deque()
            self._refuse(about[good])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._workers.close()


class _Workers:
    """A process for each thread that asks."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def held(self, count: int, data: bytes) -> int:
        """Return how many hold before the first that does not, asked of this thread's process or checked here."""
        with contextlib.suppress(OSError, ValueError):  # it ended or never began: checked here
            process = self._process()
            if process is not None and process.stdin is not None and process.stdout is not None:
                process.stdin.write(BATCH.pack(count, len(data)))
                process.stdin.write(data)
                process.stdin.flush()
                answer = process.stdout.read(LENGTH.size)
                if len(answer) == LENGTH.size:
                    return min(int(LENGTH.unpack(answer)[0]), count)
        return 0 if self._closed else held(count, data)

    def kill(self) -> None:
        """End all processes; what is asked from here on is not answered."""
        with self._lock:
            self._closed = True
            for process in self._started:
                process.kill()

    def close(self) -> None:
        """Let go of the processes, once nobody asks any more."""
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what it never read cannot be flushed
                        pipe.close()

    def _process(self) -> subprocess.Popen[bytes] | None:
        known: subprocess.Popen[bytes] | None = getattr(self._mine, "process", None)
        with self._lock:
            if known is None and not self._closed:
                known = self._mine.process = _start()
                self._started.append(known)
        return known


def _start() -> subprocess.Popen[bytes]:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    # Nothing is imported from the folder that the program was started in, nor from its user's own packages.
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
