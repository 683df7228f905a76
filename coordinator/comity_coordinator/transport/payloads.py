"""The spool: sealed payloads on their way from one node to others, readable while they are still being written.

Rules
1. A payload belongs to its owner (who uploads) and its receivers (whom the owner names); nobody else learns of it. Two
   owners with the same digest have two entries, so that nobody can spoil another's payload.
2. Bytes are hashed as they come. A whole payload with another digest is deleted, and its readers are told.
3. Every chunk but the last has exactly `CHUNK_BYTES`; a break costs nothing, because an upload goes on at what is
   there and a download at any multiple of the chunk.
4. Bounded: size of one payload, bytes of one owner, bytes of all, readers that wait, and time in every wait. What all
   receivers have fetched goes first.
5. Nothing is fsynced: the sender keeps its journalled copy until it is answered. Unfinished uploads do not survive a
   restart, finished ones do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import sha256_hex
from comity_coordinator.transport import spool_files
from comity_coordinator.transport.spool_entry import Entry

CHUNK_BYTES = 512 << 10
RECEIVERS_MAX = 64


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Bounds of the spool. A waiting reader gives up after `wait_s` without news."""

    payload_bytes: int = 4 << 30
    owner_bytes: int = 8 << 30
    total_bytes: int = 16 << 30
    free_bytes: int = 256 << 20
    entries: int = 16_384
    waiters: int = 1_024
    wait_s: float = 60.0
    partial_s: float = 600.0
    complete_s: float = 7 * 86_400.0
    fetched_small_s: float = 600.0
    fetched_large_s: float = 4.0
    small_bytes: int = 1 << 20
    tail_chunks: int = 8


class Spool:
    """All payloads of one coordinator, in one folder. To be used in the event loop only."""

    def __init__(self, folder: Path, limits: SpoolLimits | None = None) -> None:
        self.limits = limits or SpoolLimits()
        self._folder = folder
        self._entries: dict[str, dict[str, Entry]] = {}
        self._waiters = 0
        self._writes: set[asyncio.Future[None]] = set()
        self._arrivals: dict[str, asyncio.Event] = {}
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="comity-spool")
        for found in spool_files.load(folder):
            entry = Entry(
                found.digest,
                found.owner,
                found.size_bytes,
                set(found.receivers),
                found.path,
                None,
                time.monotonic(),
                present_bytes=found.size_bytes,
                complete=True,
            )
            self._entries.setdefault(entry.digest, {})[entry.owner] = entry

    @property
    def folder(self) -> Path:
        """Where the payloads lie; what is to be adopted is written there."""
        return self._folder

    def stored_bytes(self) -> int:
        """Return how much is promised to payloads, whole or on their way."""
        return sum(entry.size_bytes for owners in self._entries.values() for entry in owners.values())

    def stat(self, org: str, digest: str) -> tuple[int, bool]:
        """Return (present bytes, complete) of `org`'s own upload or of one it may fetch; (0, False) if unknown."""
        entry = self._entries.get(digest, {}).get(org) or self._readable(org, digest)
        return (entry.present_bytes, entry.complete) if entry else (0, False)

    def begin(self, owner: str, digest: str, size_bytes: int, receivers: frozenset[str], offset_bytes: int) -> Upload:
        """Start or continue an upload; an older one of the same payload by the same owner is cut off.

        Raises:
            ComityError: `MALFORMED`, `TOO_LARGE`, `SPOOL_FULL`, `CONFLICT` (another size), `PAYLOAD_TRUNCATED` if the
                offset lies beyond what is here (fact `present_bytes`).
        """
        sha256_hex(digest)
        if not 0 < size_bytes <= self.limits.payload_bytes:
            raise ComityError(ErrorCode.TOO_LARGE, size_bytes=size_bytes, limit_bytes=self.limits.payload_bytes)
        if not 0 < len(receivers) <= RECEIVERS_MAX:
            raise ComityError(ErrorCode.MALFORMED, "a payload has 1 to 64 receivers")
        entry = self._entries.get(digest, {}).get(owner)
        if entry is None:
            entry = self._create(owner, digest, size_bytes, receivers)
        if entry.size_bytes != size_bytes:
            raise ComityError(ErrorCode.CONFLICT, "this payload was announced with another size")
        if offset_bytes % CHUNK_BYTES or (offset_bytes > entry.present_bytes and not entry.complete):
            raise ComityError(
                ErrorCode.PAYLOAD_TRUNCATED, "no upload can go on there", present_bytes=entry.present_bytes
            )
        if len(entry.receivers | receivers) > RECEIVERS_MAX:
            raise ComityError(ErrorCode.MALFORMED, "a payload has 1 to 64 receivers")
        if not entry.receivers >= receivers:
            entry.receivers |= receivers
            if entry.complete:
                self._record(entry)
        entry.upload += 1
        entry.touched_at = time.monotonic()
        self._announce(entry)
        return Upload(self, entry, offset_bytes)

    async def read(
        self, org: str, digest: str, offset_bytes: int, owner: str = ""
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the chunks from `offset_bytes` on, as they arrive; of `owner`'s payload, if one is named.

        Raises:
            ComityError: `MALFORMED` for an offset that is no multiple of the chunk or lies beyond the end,
                `PAYLOAD_MISSING` if no upload for `org` begins in time, `PAYLOAD_TRUNCATED` if one stops,
                `PAYLOAD_DIGEST` if it turns out to be something else, `BUSY` if too many wait.
        """
        sha256_hex(digest)
        entry = await self._await_entry(org, digest, owner)
        if offset_bytes % CHUNK_BYTES or offset_bytes >= entry.size_bytes:
            raise ComityError(ErrorCode.MALFORMED, "no download can begin there")
        # Its own descriptor: the bytes stay readable for this reader whatever happens to the entry.
        file = entry.file or spool_files.SpoolFile(entry.path)
        entry.readers += 1
        try:
            while offset_bytes < entry.size_bytes:
                await self._await_bytes(entry, offset_bytes)
                chunk = entry.tail.get(offset_bytes)
                if chunk is None:
                    chunk = await self._read_chunk(entry, file, offset_bytes)
                entry.touched_at = time.monotonic()
                offset_bytes += len(chunk)
                if offset_bytes == entry.size_bytes:
                    # The last chunk is readable only once the digest has held (`_append`).
                    entry.fetched.add(org)
                yield chunk
        finally:
            entry.readers -= 1

    async def whole(self, reader: str, owner: str, digest: str) -> int:
        """Wait until `owner`'s payload for `reader` is whole; return it as a descriptor, which the caller closes.

        Raises:
            ComityError: as `read`; `PAYLOAD_MISSING` also where another owner's payload has this digest.
        """
        entry = await self._await_entry(reader, digest, owner)
        while not entry.complete:  # bounded by the waits
            await self._await_bytes(entry, entry.present_bytes)
        entry.touched_at = time.monotonic()
        return spool_files.open_whole(entry.path)

    def adopt(self, path: Path, owner: str, digest: str, size_bytes: int, receivers: frozenset[str]) -> None:
        """Take a file of this coordinator's making into the spool, whole. Raises `SPOOL_FULL`."""
        if digest in self._entries and owner in self._entries[digest]:
            path.unlink(missing_ok=True)
            return
        entry = self._create(owner, digest, size_bytes, receivers)
        path.replace(entry.path)
        entry.file, entry.present_bytes, entry.complete = None, size_bytes, True
        self._record(entry)
        self._announce(entry)

    def discard(self, owner: str, digest: str) -> None:
        """Drop a payload that has served its purpose."""
        entry = self._entries.get(digest, {}).get(owner)
        if entry is not None and entry.complete and entry.readers == 0:
            self._drop(entry, ComityError(ErrorCode.PAYLOAD_MISSING))

    def sweep(self, *, only_fetched: bool = False) -> int:
        """Drop what has expired, or of that only what all receivers fetched; return how many bytes were freed."""
        now, freed = time.monotonic(), 0
        for entry in [entry for owners in self._entries.values() for entry in owners.values()]:
            wanted = only_fetched and not entry.fetched >= entry.receivers
            if not wanted and entry.readers == 0 and now - entry.touched_at > self._lifetime_s(entry):
                freed += entry.size_bytes
                self._drop(entry, ComityError(ErrorCode.PAYLOAD_MISSING))
        return freed

    def close(self) -> None:
        """Stop; unfinished uploads are deleted."""
        for entry in [entry for owners in self._entries.values() for entry in owners.values()]:
            if not entry.complete:
                self._drop(entry, ComityError(ErrorCode.UNAVAILABLE))
        self._entries.clear()
        self._pool.shutdown(wait=True)

    # Used by Upload.

    async def store(self, entry: Entry, chunk: bytes | memoryview, offset_bytes: int) -> None:
        """Write and hash one chunk in a thread if it is the next one; one that is here already is skipped.

        The caller may be cancelled, the write goes on: file and hash never differ.
        """
        writing = asyncio.ensure_future(self._store(entry, chunk, offset_bytes))
        self._writes.add(writing)
        writing.add_done_callback(self._written)
        await asyncio.shield(writing)

    async def _store(self, entry: Entry, chunk: bytes | memoryview, offset_bytes: int) -> None:
        async with entry.lock:
            if entry.failed is not None:
                raise entry.failed
            if offset_bytes == entry.present_bytes:
                await self._append(entry, chunk, offset_bytes)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writes.discard(writing)
        if not writing.cancelled():
            writing.exception()  # seen here, in case that the caller left

    async def _append(self, entry: Entry, chunk: bytes | memoryview, offset_bytes: int) -> None:
        assert entry.file is not None, "open until it is complete or dropped"
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._pool, entry.file.store, entry.hasher, chunk, offset_bytes)
        if entry.failed is not None:
            raise entry.failed
        entry.present_bytes = offset_bytes + len(chunk)
        entry.tail[offset_bytes] = chunk
        while len(entry.tail) > self.limits.tail_chunks:
            entry.tail.popitem(last=False)
        entry.touched_at = time.monotonic()
        if entry.present_bytes == entry.size_bytes:
            self._finish(entry)
        entry.tell()

    def spoil(self, entry: Entry, error: ComityError) -> None:
        """Delete an upload that broke the rules."""
        self._drop(entry, error)

    def _finish(self, entry: Entry) -> None:
        if entry.hasher.hexdigest() != entry.digest:
            error = ComityError(ErrorCode.PAYLOAD_DIGEST, digest=entry.digest)
            self._drop(entry, error)
            raise error
        entry.complete = True
        entry.file = None
        self._record(entry)

    def _record(self, entry: Entry) -> None:
        receivers = tuple(sorted(entry.receivers))
        spool_files.record(spool_files.Found(entry.digest, entry.owner, entry.size_bytes, receivers, entry.path))

    def _create(self, owner: str, digest: str, size_bytes: int, receivers: frozenset[str]) -> Entry:
        # Files that served their purpose leave before new ones come: their pages of memory are used again, which costs
        # a tenth of pages that the system has to find.
        self.sweep(only_fetched=True)
        self._make_room(owner, size_bytes)
        path, file = spool_files.create(self._folder, owner, digest)
        entry = Entry(digest, owner, size_bytes, set(receivers), path, file, time.monotonic())
        self._entries.setdefault(digest, {})[owner] = entry
        return entry

    def _make_room(self, owner: str, size_bytes: int) -> None:
        entries = [entry for owners in self._entries.values() for entry in owners.values()]
        over_all = sum(entry.size_bytes for entry in entries) + size_bytes - self.limits.total_bytes
        mine = [entry for entry in entries if entry.owner == owner]
        over_mine = sum(entry.size_bytes for entry in mine) + size_bytes - self.limits.owner_bytes
        for entry in sorted(entries, key=lambda each: each.touched_at):
            helps = over_all > 0 or (over_mine > 0 and entry.owner == owner)
            if helps and entry.complete and entry.readers == 0 and entry.fetched >= entry.receivers:
                over_all -= entry.size_bytes
                over_mine -= entry.size_bytes if entry.owner == owner else 0
                self._drop(entry, ComityError(ErrorCode.PAYLOAD_MISSING))
        if max(over_all, over_mine) > 0 or len(entries) >= self.limits.entries:
            raise ComityError(ErrorCode.SPOOL_FULL, size_bytes=size_bytes)
        if spool_files.free_bytes(self._folder) < size_bytes + self.limits.free_bytes:
            raise ComityError(ErrorCode.SPOOL_FULL, size_bytes=size_bytes)

    def _lifetime_s(self, entry: Entry) -> float:
        if not entry.complete:
            return self.limits.partial_s
        if not entry.fetched >= entry.receivers:
            return self.limits.complete_s
        small = entry.size_bytes <= self.limits.small_bytes
        return self.limits.fetched_small_s if small else self.limits.fetched_large_s

    def _drop(self, entry: Entry, error: ComityError) -> None:
        owners = self._entries.get(entry.digest, {})
        if owners.get(entry.owner) is not entry:
            return
        del owners[entry.owner]
        if not owners:
            del self._entries[entry.digest]
        entry.failed = error
        entry.upload += 1
        entry.tail.clear()
        entry.tell()
        spool_files.delete(entry.path)
        entry.file = None

    def _readable(self, org: str, digest: str, owner: str = "") -> Entry | None:
        found = self._entries.get(digest, {}).values()
        allowed = [entry for entry in found if org in entry.receivers and owner in ("", entry.owner)]
        return max(allowed, key=lambda each: (each.complete, each.present_bytes), default=None)

    def _announce(self, entry: Entry) -> None:
        arrival = self._arrivals.pop(entry.digest, None)
        if arrival is not None:
            arrival.set()

    async def _await_entry(self, org: str, digest: str, owner: str = "") -> Entry:
        until = time.monotonic() + self.limits.wait_s
        while True:
            entry = self._readable(org, digest, owner)
            if entry is not None:
                return entry
            arrival = self._arrivals.setdefault(digest, asyncio.Event())
            try:
                await self._wait(arrival, until - time.monotonic(), ErrorCode.PAYLOAD_MISSING)
            except ComityError:
                if self._arrivals.get(digest) is arrival:
                    del self._arrivals[digest]
                    arrival.set()
                raise

    async def _await_bytes(self, entry: Entry, offset_bytes: int) -> None:
        while entry.present_bytes <= offset_bytes:
            if entry.failed is not None:
                raise entry.failed
            await self._wait(entry.news, self.limits.wait_s, ErrorCode.PAYLOAD_TRUNCATED)
        if entry.failed is not None:
            raise entry.failed

    async def _wait(self, event: asyncio.Event, timeout_s: float, code: ErrorCode) -> None:
        if self._waiters >= self.limits.waiters:
            raise ComityError(ErrorCode.BUSY, "too many downloads wait")
        self._waiters += 1
        try:
            await asyncio.wait_for(event.wait(), max(timeout_s, 0))
        except TimeoutError as error:
            raise ComityError(code) from error
        finally:
            self._waiters -= 1

    async def _read_chunk(self, entry: Entry, file: spool_files.SpoolFile, offset_bytes: int) -> bytes:
        size_bytes = min(CHUNK_BYTES, entry.size_bytes - offset_bytes)
        loop = asyncio.get_running_loop()
        chunk = await loop.run_in_executor(self._pool, file.read, size_bytes, offset_bytes)
        if len(chunk) != size_bytes:
            raise ComityError(ErrorCode.PAYLOAD_TRUNCATED)
        return chunk


class Upload:
    """One stream of chunks into an entry, from `offset_bytes` on."""

    def __init__(self, spool: Spool, entry: Entry, offset_bytes: int) -> None:
        self._spool = spool
        self._entry = entry
        self._offset_bytes = offset_bytes
        self._number = entry.upload

    @property
    def present_bytes(self) -> int:
        """Bytes that are here."""
        return self._entry.present_bytes

    @property
    def complete(self) -> bool:
        """True if whole and its digest held."""
        return self._entry.complete

    async def add(self, chunk: bytes | memoryview) -> None:
        """Take the next chunk; one that is here already is skipped.

        Raises:
            ComityError: `TOO_LARGE` beyond the announced size and `MALFORMED` for a wrong chunk size (the upload is
                deleted), `PAYLOAD_DIGEST` at the end, `CONFLICT` if a newer upload took over.
        """
        entry = self._entry
        if self._number != entry.upload:
            raise entry.failed or ComityError(ErrorCode.CONFLICT, "a newer upload of this payload took over")
        left = entry.size_bytes - self._offset_bytes
        error: ComityError | None = None
        if len(chunk) > left:
            error = ComityError(ErrorCode.TOO_LARGE, "more bytes than announced", size_bytes=entry.size_bytes)
        elif len(chunk) != min(CHUNK_BYTES, left):
            error = ComityError(ErrorCode.MALFORMED, "a chunk has 512 KiB, only the last may be shorter")
        if error is not None:
            if not entry.complete:
                self._spool.spoil(entry, error)
            raise error
        offset_bytes, self._offset_bytes = self._offset_bytes, self._offset_bytes + len(chunk)
        await self._spool.store(entry, chunk, offset_bytes)
