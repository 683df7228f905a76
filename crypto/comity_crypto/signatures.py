"""Many Ed25519 signatures, checked together and in processes of their own, for whoever reads a long history.

Rules:
1. order is kept: what is refused is the first signature that does not hold, whatever was checked before it elsewhere;
2. memory is bounded: a batch holds at most `BATCH_COUNT` signatures or about `BATCH_BYTES`, and `BATCHES_MAX` batches
   for each process are under way at most; `add` waits for the oldest;
3. processes are started afresh, never forked, and get public bytes only; without them (one core, few signatures, one
   that ended) the same function checks here: nothing passes unchecked;
4. a process finds its next batches in its pipe, which holds several of them: nobody has to wake up in between. Its
   answers, four bytes each, always fit into the other pipe, so that neither side ever waits for one that waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from comity_crypto.signature_main import BATCH, LENGTH, held

T = TypeVar("T")

BATCH_COUNT = 256
BATCH_BYTES = 1 << 20
BATCHES_MAX = 4
PROCESSES_MAX = 16
# What Linux lets anybody ask for. It holds about five batches of statements.
PIPE_BYTES = 1 << 20
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


@dataclass(slots=True)
class _Asked:
    """A batch that a process has; `good` is how many of it hold before the first that does not, once that is known."""

    count: int
    data: bytes
    good: int | None = None


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
        self._waiting: deque[tuple[_Worker, _Asked, list[T]]] = deque()
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
        self._waiting.append((worker, worker.ask(count, data), batch.about))
        while len(self._waiting) > self._most:
            self._hear()

    def _hear(self) -> None:
        worker, asked, about = self._waiting.popleft()
        self._judge(worker.answer(asked), about)

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
    """A process that checks, in the order of asking."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: deque[_Asked] = deque()
        with contextlib.suppress(OSError):  # no process: everything is checked here
            self._process = _start()

    def waiting(self) -> int:
        """Return how many batches it has not answered."""
        while self._asked and self._has_answered():
            self._take()
        return len(self._asked)

    def ask(self, count: int, data: bytes) -> _Asked:
        """Have a batch checked."""
        asked = _Asked(count, data)
        self._asked.append(asked)
        with contextlib.suppress(OSError):  # it ended: no answer will come
            if self._process is not None and self._process.stdin is not None:
                left = memoryview(BATCH.pack(count, len(data)) + data)
                while left:
                    left = left[self._process.stdin.write(left) :]
        return asked

    def answer(self, asked: _Asked) -> int:
        """Return how many of a batch hold before the first that does not; waits for it."""
        while asked.good is None:
            self._take()
        return asked.good

    def kill(self) -> None:
        """End the process; what is asked from here on is checked here."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Let go of the process, which nobody asks any more."""
        if self._process is None:
            return
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _has_answered(self) -> bool:
        if self._process is None or self._process.stdout is None:
            return False
        ready = select.poll()
        ready.register(self._process.stdout, select.POLLIN)
        return bool(ready.poll(0))

    def _take(self) -> None:
        """Take its next answer; without one, check here."""
        asked, answer = self._asked.popleft(), b""
        if self._process is not None and self._process.stdout is not None:
            answer = self._process.stdout.read(LENGTH.size)
        good = int(LENGTH.unpack(answer)[0]) if len(answer) == LENGTH.size else held(asked.count, asked.data)
        asked.good = min(good, asked.count)


def _start() -> subprocess.Popen[bytes]:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    # Nothing is imported from the folder that the program was started in, nor from its user's own packages.
    process = subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment,
        start_new_session=True,
    )
    if hasattr(fcntl, "F_SETPIPE_SZ") and process.stdin is not None:
        with contextlib.suppress(OSError):  # a smaller one holds it up now and then
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process
