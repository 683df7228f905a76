"""A bounded pool of worker processes for everything that touches TenSEAL or a whole model.

1. Processes are started afresh (never forked), at most `size`, each with a limit on memory and one job at a time.
2. Long jobs are split by chunks over the pool. A job that is late, cancelled or crashed ends its process; the next job
   starts another.
3. Bulk data crosses as memory files and open files. A stranger's blob is checked for size and header before a job.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.blobs import check_blob, write_header
from comity_crypto.secagg.bfv.channel import SLOT_BYTES, receive_frame, send_frame
from comity_crypto.secagg.bfv.digests import Digest, sum_digests
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.bfv.params import Parameters
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX
from comity_crypto.secagg.frame.events import BlobReady

MEMORY_BYTES = 1 << 30
# One job of 4096 chunks takes under a minute of CPU; the rest is patience with a busy machine.
JOB_TIMEOUT_S = 300.0
# Below this many chunks a second process costs more than it saves.
_CHUNKS_PER_PART_MIN = 8
# Arrays of one chunk come and go by the thousand: kept in the process, they are not given back and cleared again.
_ALLOCATION = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")


def memory_file(name: str) -> int:
    """Return a file descriptor of an empty file that has no name on disk (Linux: memory; elsewhere: unlinked)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC)
    fd, path = tempfile.mkstemp()
    os.unlink(path)  # noqa: PTH108 - by descriptor from here on
    return fd


class SecretKey:
    """A round's secret key in a memory file, which only the decrypting job is handed."""

    def __init__(self) -> None:
        self.fd = memory_file("secret")
        self._open = True

    def __repr__(self) -> str:
        return "SecretKey(held)" if self._open else "SecretKey(erased)"

    def erase(self) -> None:
        """Overwrite and close; may be called again."""
        if self._open:
            self._open = False
            os.pwrite(self.fd, bytes(os.fstat(self.fd).st_size), 0)
            os.close(self.fd)


@dataclass(frozen=True)
class RoundKey:
    """A fresh key pair: the packed public key, its SHA-256, and the secret."""

    public: bytes = field(repr=False)
    key_id: str
    secret: SecretKey


class _Worker:
    """One process. Not for two threads at once."""

    def __init__(self, memory_bytes: int) -> None:
        mine, theirs = socket.socketpair()
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        # One process is one core: the pool decides how many.
        environment |= _ALLOCATION
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        # Nothing is imported from the folder that the node was started in, nor from its user's own packages.
        module = ["-P", "-s", "-m", "comity_crypto.secagg.worker_main"]
        command = [sys.executable, *module, str(theirs.fileno()), str(memory_bytes)]
        self.settled = True  # no job is under way
        self._channel = mine
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # TenSEAL's warnings
            env=environment,
            start_new_session=True,
        )
        theirs.close()

    def call(self, request: dict[str, Any], fds: list[int], timeout_s: float) -> dict[str, Any]:
        """Run one job. Raises what the job raised, `WORKER_DIED`, `WORKER_TIMEOUT`."""
        self.settled = False
        self._channel.settimeout(timeout_s)
        try:
            send_frame(self._channel, request, fds)
            received = receive_frame(self._channel)
        except TimeoutError as error:
            raise ComityError(ErrorCode.WORKER_TIMEOUT, "an encryption worker was too slow") from error
        except OSError as error:
            raise ComityError(ErrorCode.WORKER_DIED, "an encryption worker ended") from error
        if received is None:
            raise ComityError(ErrorCode.WORKER_DIED, "an encryption worker ended")
        self.settled = True
        reply = received[0]
        if "error" in reply:
            raise ComityError.from_json(reply["error"])
        result: dict[str, Any] = reply["ok"]
        return result

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; a `call` in another thread then returns."""
        self.settled = False
        self._process.kill()

    def close(self) -> None:
        """End the process and let go of it."""
        self.kill()
        self._process.wait()
        self._channel.close()


class BfvWorkers:
    """The pool, as an async context manager: `async with BfvWorkers(size=2) as workers`."""

    def __init__(self, size: int = 1, *, memory_bytes: int = MEMORY_BYTES, timeout_s: float = JOB_TIMEOUT_S) -> None:
        if not 1 <= size <= 64:
            raise ComityError(ErrorCode.INTERNAL, "1 to 64 encryption workers", size=size)
        self._size = size
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(size)
        self._idle: list[_Worker] = []
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="secagg")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all idle processes; running jobs must have ended."""
        while self._idle:
            self._idle.pop().close()
        self._threads.shutdown(wait=True)

    async def warm(self, parameters: Parameters, public_key: bytes | None = None) -> None:
        """Start all processes, run the self-test there and, given one, load the next round's public key."""
        fds = [] if public_key is None else [_filled("public", public_key)]
        request = {"job": "warm", "key_id": _key_id(public_key or b"")}
        try:
            await asyncio.gather(*(self.run(parameters, request, fds) for _ in range(self._size)))
        finally:
            _close(fds)

    async def make_key(self, parameters: Parameters) -> RoundKey:
        """Make a fresh key pair."""
        secret, public_fd = SecretKey(), memory_file("public")
        try:
            await self.run(parameters, {"job": "key"}, [public_fd, secret.fd])
            public = os.pread(public_fd, parameters.key_bytes, 0)
        except BaseException:  # also a cancelled caller leaves no secret key
            secret.erase()
            raise
        finally:
            os.close(public_fd)
        return RoundKey(public, _key_id(public), secret)

    async def encrypt(
        self, parameters: Parameters, public_key: bytes, slots: NDArray[np.uint64], pairs: Sequence[PairSeed], fd: int
    ) -> BlobReady:
        """Mask and encrypt slots of shape (chunks, N) into the file `fd`; return its digest and size."""
        chunks = len(slots)
        fds = [_filled("public", public_key), _filled("slots", np.ascontiguousarray(slots).data), fd]
        write_header(fd, parameters, BlobKind.UPLOAD, chunks)
        request = {
            "job": "encrypt",
            "key_id": _key_id(public_key),
            "pairs": [[pair.adds, pair.seed.hex()] for pair in pairs],
        }
        try:
            await self.split(parameters, request, fds, chunks)
        finally:
            _close(fds[:2])
        return BlobReady(*await self.digest_of(fd))

    async def add(self, parameters: Parameters, chunks: int, uploads: Sequence[int], fd: int) -> BlobReady:
        """Add upload files into the file `fd`; return its digest and size. Raises `CIPHERTEXT_INVALID`."""
        if not 1 <= len(uploads) <= CONTRIBUTORS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many contributions", count=len(uploads))
        for upload in uploads:
            check_blob(upload, parameters, BlobKind.UPLOAD, chunks)
        write_header(fd, parameters, BlobKind.AGGREGATE, chunks)
        await self.split(parameters, {"job": "add"}, [*uploads, fd], chunks)
        return BlobReady(*await self.digest_of(fd))

    async def digest(self, parameters: Parameters, kind: BlobKind, chunks: int, challenge: bytes, fd: int) -> Digest:
        """Return the linear digest of the upload or aggregate in `fd`. Raises `CIPHERTEXT_INVALID`."""
        check_blob(fd, parameters, kind, chunks)
        replies = await self.split(parameters, {"job": "digest", "challenge": challenge.hex()}, [fd], chunks)
        return sum_digests(parameters, [tuple(reply["values"]) for reply in replies])

    async def check_and_digest(
        self, parameters: Parameters, chunks: int, challenge: bytes, digest: str, fd: int
    ) -> Digest:
        """Return the linear digest of a downloaded aggregate, if its SHA-256 is `digest`. Raises `PAYLOAD_DIGEST`."""
        check_blob(fd, parameters, BlobKind.AGGREGATE, chunks)
        if (await self.digest_of(fd))[0] != digest:
            raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the aggregate is not the one that was announced")
        return await self.digest(parameters, BlobKind.AGGREGATE, chunks, challenge, fd)

    async def decrypt(self, parameters: Parameters, chunks: int, secret: SecretKey, fd: int) -> NDArray[np.uint64]:
        """Return the slots of the aggregate in `fd`, shape (chunks, N), below t. Raises `CIPHERTEXT_INVALID`."""
        check_blob(fd, parameters, BlobKind.AGGREGATE, chunks)
        size_bytes = chunks * parameters.ring_degree * SLOT_BYTES
        out = memory_file("sums")
        try:
            os.ftruncate(out, size_bytes)
            await self.split(parameters, {"job": "decrypt"}, [secret.fd, fd, out], chunks)
            with os.fdopen(os.dup(out), "rb") as file:
                slots: NDArray[np.uint64] = np.fromfile(file, np.uint64)
        finally:
            os.close(out)
        return slots.reshape(chunks, parameters.ring_degree)

    def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.close()
        return _Worker(self._memory_bytes)

    async def digest_of(self, fd: int) -> tuple[str, int]:
        """Return SHA-256 and size of a file, computed beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, file_digest, fd)

    async def split(
        self, parameters: Parameters, request: dict[str, Any], fds: list[int], chunks: int
    ) -> list[dict[str, Any]]:
        """Run a job over all chunks, in parts by the size of the pool; returns the parts' replies."""
        parts = max(1, min(self._size, chunks // _CHUNKS_PER_PART_MIN))
        edges = [chunks * part // parts for part in range(parts + 1)]
        ranges = [{**request, "first": edges[part], "last": edges[part + 1]} for part in range(parts)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.run(parameters, part, fds)) for part in ranges]
        except* ComityError as failed:
            errors = failed
        else:
            return [task.result() for task in tasks]
        raise _first(errors)

    async def run(self, parameters: Parameters, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Run one job in one process."""
        request = {**request, "parameters": parameters.name, "digest": parameters.digest}
        loop = asyncio.get_running_loop()
        async with self._free:
            worker = self._take()
            running = loop.run_in_executor(self._threads, worker.call, request, fds, self._timeout_s)
            running.add_done_callback(lambda job: job.cancelled() or job.exception())  # seen, whoever was cancelled
            try:
                return await asyncio.shield(running)
            finally:
                if not running.done():  # cancelled in the middle of a job: only ending the process ends the job
                    worker.kill()
                    with contextlib.suppress(asyncio.CancelledError):  # again: the first one is on its way already
                        await asyncio.wait([running])
                if worker.settled:
                    self._idle.append(worker)
                else:
                    worker.close()


def _first(group: BaseExceptionGroup[ComityError]) -> ComityError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _key_id(public_key: bytes) -> str:
    return hashlib.sha256(public_key).hexdigest()


def _filled(name: str, data: bytes | memoryview) -> int:
    fd = memory_file(name)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
