"""Many Ed25519 signatures, checked together and in processes of their own, for whoever reads a long history.

Rules:
1. order is kept: what is refused is the first signature that does not hold, whatever was checked before it elsewhere;
2. memory is bounded: a batch holds at most `BATCH_COUNT` signatures or about `BATCH_BYTES`, and `BATCHES_MAX` batches
   for each process are under way at most; `add` waits for the oldest;
3. processes are started afresh, never forked, and get public bytes only; without them (one core, few signatures, one
   that ended) the same function checks here: nothing passes unchecked;
4. a process finds its next batch in its pipe when it is done with one: whoever reads the history keeps the interpreter
   for milliseconds at a time, and would be waited for otherwise.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from comity_crypto.signature_main import BATCH, LENGTH, held

T = TypeVar("T")

BATCH_COUNT = 256
BATCH_BYTES = 1 << 20
BATCHES_MAX = 4
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
        self._most = BATCHES_MAX * processes
        self._refuse = refuse
        self._batch: _Batch[T] = _Batch()
        self._waiting: deque[tuple[Future[int], list[T]]] = deque()
        self._workers = [_Worker() for _ in range(processes)]

    def add(self, public: bytes, signature: bytes, message: bytes, about: T) -> None:
        """Check one signature, now or later. Raises what `refuse` raises, perhaps about an earlier one."""
        batch, size_bytes = self._batch, len(signature) + len(message)
        batch.parts += (public, LENGTH.pack(size_bytes), signature, message)
        batch.about.append(about)
        batch.size_bytes += len(public) + LENGTH.size + size_bytes
        if not self._workers or len(batch.about) >= BATCH_COUNT or batch.size_bytes >= BATCH_BYTES:
            self._send()

    def settle(self) -> None:
        """Wait for all that was added. Raises what `refuse` raises."""
        self._send()
        while self._waiting:
            self._hear()

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        count, data = len(batch.about), b"".join(batch.parts)
        if not self._workers:
            self._judge(held(count, data), batch.about)
            return
        worker = min(self._workers, key=_Worker.waiting)
        self._waiting.append((worker.ask(count, data), batch.about))
        while len(self._waiting) > self._most:
            self._hear()

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
        for each in self._workers:
            each.kill()
        for each in self._workers:
            each.close()


class _Worker:
    """A process that checks, a thread that writes to it and one that reads its answers: both in the order of asking."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = ThreadPoolExecutor(1, "comity-signatures-out")
        self._reader = ThreadPoolExecutor(1, "comity-signatures-in")
        self._asked: deque[Future[int]] = deque()
        self._closed = False
        with contextlib.suppress(OSError):  # no process: everything is checked here
            self._process = _start()

    def waiting(self) -> int:
        """Return how many batches it has not answered."""
        while self._asked and self._asked[0].done():
            self._asked.popleft()
        return len(self._asked)

    def ask(self, count: int, data: bytes) -> Future[int]:
        """Have a batch checked; the answer is how many hold before the first that does not."""
        written = self._writer.submit(self._write, count, data)
        answer = self._reader.submit(self._read, written, count, data)
        self._asked.append(answer)
        return answer

    def kill(self) -> None:
        """End the process; what is asked from here on is not answered."""
        self._closed = True
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Let go of the process and the threads, which nobody asks any more."""
        for each in (self._writer, self._reader):
            each.shutdown(cancel_futures=True)
        if self._process is None:
            return
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it never read cannot be flushed
                    pipe.close()

    def _write(self, count: int, data: bytes) -> bool:
        """Tell whether the process got it all."""
        with contextlib.suppress(OSError, ValueError):  # it ended or never began
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(BATCH.pack(count, len(data)))
                self._process.stdin.write(data)
                self._process.stdin.flush()
                return True
        return False

    def _read(self, written: Future[bool], count: int, data: bytes) -> int:
        """Return its answer; without one, check here."""
        with contextlib.suppress(OSError, ValueError, CancelledError):
            if written.result() and self._process is not None and self._process.stdout is not None:
                answer = self._process.stdout.read(LENGTH.size)
                if len(answer) == LENGTH.size:
                    return min(int(LENGTH.unpack(answer)[0]), count)
        return 0 if self._closed else held(count, data)


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
