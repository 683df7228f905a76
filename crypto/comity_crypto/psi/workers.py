"""The curve's arithmetic in processes of their own, one process a job, bounded in number, memory and time.

1. Keys go through a pipe, never by argv or environment; nothing is logged, nothing is written to disk.
2. A job of many items is split over at most `size` processes. What a process answers is taken to the byte, not more.
3. A process that ends without its whole answer is `WORKER_DIED`, or the named refusal that its exit code stands for;
   one that is late or cancelled is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import ITEMS_MAX
from comity_crypto.psi.messages import POINT_BYTES
from comity_crypto.psi.worker_main import COUNT, ITEM_BYTES, KEY_BYTES, NO_LIBRARY, NO_POINT

MEMORY_BYTES = 512 << 20
# A million items take two to four minutes of one core; the rest is patience with a busy machine.
JOB_TIMEOUT_S = 900.0
# Below this many items a second process costs more than it saves: half a second of work.
_ITEMS_PER_PART_MIN = 4096
WORKER_MODULE = "comity_crypto.psi.worker_main"
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR")


class PsiWorkers:
    """Runs jobs; may be shared by tasks of one loop. Holds nothing between jobs."""

    def __init__(
        self,
        size: int = 1,
        *,
        memory_bytes: int = MEMORY_BYTES,
        timeout_s: float = JOB_TIMEOUT_S,
        module: str = WORKER_MODULE,
    ) -> None:
        if not 1 <= size <= 64:
            raise ComityError(ErrorCode.INTERNAL, "1 to 64 processes", size=size)
        self._size = size
        self._memory_bytes = memory_bytes
        self._timeout_s = timeout_s
        self._module = module
        self._free = asyncio.Semaphore(size)

    async def mask(self, key: bytes, elements: bytes) -> bytes:
        """Return own elements (32 bytes each) as points under `key`, in their order.

        Raises:
            ComityError: `UNSUPPORTED` without the library, `WORKER_DIED`, `WORKER_TIMEOUT`, `TOO_LARGE`.
        """
        return await self._split("mask", key, elements)

    async def remask(self, key: bytes, points: bytes) -> bytes:
        """Return a stranger's points (33 bytes each) under `key` too, in their order.

        Raises:
            ComityError: `CIPHERTEXT_INVALID` if one is no point of the curve; as `mask`.
        """
        return await self._split("remask", key, points)

    async def _split(self, job: str, key: bytes, items: bytes) -> bytes:
        size = ITEM_BYTES[job]
        count, rest = divmod(len(items), size)
        if rest or len(key) != KEY_BYTES:
            raise ComityError(ErrorCode.INTERNAL, "items or key of another size", size_bytes=len(items))
        if count > ITEMS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many items to intersect", limit=ITEMS_MAX)
        parts = max(1, min(self._size, count // _ITEMS_PER_PART_MIN))
        edges = [count * part // parts * size for part in range(parts + 1)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._job(job, key, items[edges[part] : edges[part + 1]]))
                    for part in range(parts)
                ]
        except* ComityError as failed:
            errors = failed
        else:
            return b"".join(task.result() for task in tasks)
        raise _first(errors)

    async def _job(self, job: str, key: bytes, items: bytes) -> bytes:
        async with self._free:
            process = await self._start(job)
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await _exchange(process, key, items, len(items) // ITEM_BYTES[job])
            except TimeoutError as error:
                raise ComityError(ErrorCode.WORKER_TIMEOUT, "an intersection's worker was too slow") from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _start(self, job: str) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # Nothing is imported from the folder that the node was started in, nor from its user's own packages.
        command = [sys.executable, "-P", "-s", "-m", self._module, job, str(self._memory_bytes)]
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # a library's text may repeat what it was given
                env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
            )
        except OSError as error:
            raise ComityError(ErrorCode.WORKER_DIED, "an intersection's worker did not start") from error


async def _exchange(process: asyncio.subprocess.Process, key: bytes, items: bytes, count: int) -> bytes:
    """Write the job and read its whole answer at the same time: either side may be ahead."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, target = process.stdout, process.stdin

    async def send() -> None:
        # A process that ends early says why by its exit code, not by the broken pipe.
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            target.write(key + COUNT.pack(count) + items)
            await target.drain()
            target.close()
            await target.wait_closed()

    sending = asyncio.create_task(send())
    try:
        points = await source.readexactly(count * POINT_BYTES)
        await sending
        if await process.wait() == 0:
            return points
    except asyncio.IncompleteReadError:
        await process.wait()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    raise _refusal(process.returncode)


def _refusal(code: int | None) -> ComityError:
    if code == NO_POINT:
        return ComityError(ErrorCode.CIPHERTEXT_INVALID, "a point is not on the curve")
    if code == NO_LIBRARY:
        return ComityError(ErrorCode.UNSUPPORTED, "openmined-psi is not installed here")
    return ComityError(ErrorCode.WORKER_DIED, "an intersection's worker ended", exit_code=code or 0)


def _first(group: BaseExceptionGroup[ComityError]) -> ComityError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
