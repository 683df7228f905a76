"""From contents to sealed payloads and back, off the event loop: hash, seal and open run in threads, in one pass each.

Rules:
1. A content above `INLINE_BYTES_MAX` when sealed lies in `<home>/payloads`, written once; the same file is the upload.
2. What is opened lands in a sealed memory blob that the worker maps; nothing of it is acted on before `finish` has
   compared the signed digest.
3. An order's plain payload is 32 random bytes, then the content; its header names `content_digest(salt, hash)`. So the
   parties can compare what they were asked, and the coordinator can guess nothing from the digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.threads import carried_out, ended
from comity_crypto.sealing import (
    SEALED_CHUNK_BYTES,
    BoxOpener,
    Opener,
    SealedRef,
    read_sealed,
    seal_to_bytes,
    seal_to_file,
    sealed_size,
    write_all,
)
from comity_node.training.tables import INLINE_BYTES_MAX

T = TypeVar("T")

SALT_BYTES = 32
# Two cores seal and hash at full speed; more threads would only take the interpreter from each other.
_POOL = ThreadPoolExecutor(max_workers=3, thread_name_prefix="blobs")
_HASH_STEP_BYTES = 8 << 20


@dataclass(slots=True)
class Blob:
    """A content in a sealed memory file. The holder closes it."""

    fd: int
    size: int

    def close(self) -> None:
        """Close the descriptor; harmless the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def duplicate(self) -> Blob:
        """Return the same content under a descriptor of its own."""
        return Blob(os.dup(self.fd), self.size)


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """A sealed payload: its reference, and either its bytes or the name of its file in the payload folder."""

    ref: SealedRef
    inline: bytes | None
    file: str | None


def content_digest(salt: bytes, content_sha256: str) -> str:
    """Return what an order's header says of its content."""
    return hashlib.sha256(b"comity/content/v1\x00" + salt + bytes.fromhex(content_sha256)).hexdigest()


def order_context(run: str, seq: int) -> bytes:
    """Return the context that an order's payload is sealed under."""
    return f"comity/order/v1/{run}/{seq}".encode()


async def sha256_of(blob: Blob) -> str:
    """Return the lower-case hexadecimal SHA-256 of a content."""
    return await _threaded(_sha256, blob)


async def seal(
    blob: Blob,
    folder: Path,
    receivers: Mapping[str, bytes],
    context: bytes,
    *,
    salt: bytes = b"",
    header: bytes = b"",
    fsync: bool,
) -> SealedBlob:
    """Seal a content to `receivers`; into a file below `folder` if it is large. Raises `SPOOL_FULL`, `TOO_LARGE`."""
    return await _threaded(_seal, blob, folder, receivers, context, salt, header, fsync)


async def sync(path: Path, *, uncache: bool = False) -> None:
    """Put a file and its folder on disk; with `uncache`, out of memory too, for what only a restart reads again."""
    await _threaded(_sync, path, uncache)


async def open_stream(
    keys: BoxOpener,
    org: str,
    ref: SealedRef,
    context: bytes,
    chunks: AsyncIterator[bytes | memoryview],
    *,
    size_max: int,
    salt_bytes: int = 0,
    keep: Path | None = None,
    heard: Callable[[bytes], None] | None = None,
) -> tuple[Blob, bytes]:
    """Open a payload while it comes; opening one chunk overlaps with waiting for the next.

    Args:
        chunks: the sealed chunks in order.
        size_max: the most bytes of content.
        salt_bytes: how many bytes stand before the content.
        keep: where the sealed bytes are kept as they come, whole or not at all.
        heard: told the header, once the payload is known to be the sender's.

    Returns:
        The content, which the caller closes, and the salt.

    Raises:
        ComityError: as `Opener`, or what `chunks` raises.
    """
    opener = Opener(keys, org, ref, context, plain_size_max=size_max + salt_bytes)
    landing = _Landing(opener, salt_bytes, keep)
    loop = asyncio.get_running_loop()
    pending: asyncio.Future[None] | None = None
    try:
        async for chunk in chunks:
            if pending is not None:
                await carried_out(pending)
            pending = loop.run_in_executor(_POOL, landing.take, chunk)
        if pending is not None:
            await carried_out(pending)
        pending = loop.run_in_executor(_POOL, landing.finish)
        await carried_out(pending)
        if heard is not None:
            heard(opener.header)
        return landing.hand_over(), bytes(landing.salt)
    finally:
        if pending is not None:
            await ended(pending)
        landing.abandon()


async def open_sealed(
    keys: BoxOpener,
    org: str,
    sealed: SealedBlob,
    context: bytes,
    folder: Path,
    *,
    size_max: int,
    salt_bytes: int = 0,
) -> tuple[Blob, bytes]:
    """Open a payload that is here. Raises as `open_stream`, and `PAYLOAD_MISSING`."""
    arguments = (keys, org, sealed, context, folder, size_max, salt_bytes)
    return await _threaded(_open_here, *arguments, unclaimed=lambda opened: opened[0].close())


async def to_file(blob: Blob, path: Path) -> None:
    """Write a content to `path`, readable by the owner only, on disk when this returns. Raises `SPOOL_FULL`."""
    await _threaded(_write_file, blob, path)


async def from_file(path: Path, size: int) -> Blob:
    """Read a content from `path`. Raises `PAYLOAD_MISSING`."""
    return await _threaded(_read_file, path, size, unclaimed=Blob.close)


async def pieces(data: bytes, ref: SealedRef) -> AsyncIterator[bytes]:
    """Yield the chunks of a payload that came with its message. Raises `PAYLOAD_TRUNCATED`."""
    if len(data) != ref.size:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the inline payload has another size", size_bytes=len(data))
    for start in range(0, len(data), SEALED_CHUNK_BYTES):
        yield data[start : start + SEALED_CHUNK_BYTES]


def from_bytes(data: bytes) -> Blob:
    """Return a content of these bytes."""
    return Blob(*memory.write_parts([data]))


def to_bytes(blob: Blob) -> bytes:
    """Return a small content as bytes."""
    return os.pread(blob.fd, blob.size, 0)


class _Landing:
    """Where an opened payload goes, on the threads of the pool, one call at a time."""

    def __init__(self, opener: Opener, salt_bytes: int, keep: Path | None) -> None:
        self._opener = opener
        self._salt_bytes = salt_bytes
        self._fd = memory.create()
        self._size = 0
        self._keep = keep
        self._beside = None if keep is None else keep.with_name(f".{keep.name}.{secrets.token_hex(4)}")
        self._file = -1
        self.salt = bytearray()
        if self._beside is not None:
            self._file = os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def take(self, chunk: bytes | memoryview) -> None:
        plain = self._opener.feed(chunk)
        if self._file >= 0:
            write_all(self._file, chunk)
        if plain is None:
            return
        if len(self.salt) < self._salt_bytes:
            cut = self._salt_bytes - len(self.salt)
            self.salt += plain[:cut]
            plain = plain[cut:]
        write_all(self._fd, plain)
        self._size += len(plain)

    def finish(self) -> None:
        self._opener.finish()
        if len(self.salt) != self._salt_bytes:
            raise ComityError(ErrorCode.SEAL_BROKEN, "the payload is shorter than its salt")
        memory.seal(self._fd)
        if self._beside is not None and self._keep is not None:
            os.close(self._file)
            self._file = -1
            self._beside.replace(self._keep)
            self._beside = None

    def hand_over(self) -> Blob:
        """Return the finished content, which is the caller's from here on."""
        blob, self._fd = Blob(self._fd, self._size), -1
        return blob

    def abandon(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)


def _sha256(blob: Blob) -> str:
    digest = hashlib.sha256()
    with memory.mapped(blob.fd, blob.size) as view:
        for start in range(0, blob.size, _HASH_STEP_BYTES):
            with view[start : start + _HASH_STEP_BYTES] as part:
                digest.update(part)
    return digest.hexdigest()


def _seal(
    blob: Blob,
    folder: Path,
    receivers: Mapping[str, bytes],
    context: bytes,
    salt: bytes,
    header: bytes,
    fsync: bool,
) -> SealedBlob:
    with memory.mapped(blob.fd, blob.size) as view:
        parts: list[bytes | memoryview] = [salt, view] if salt else [view]
        if sealed_size(len(salt) + blob.size, len(header)) <= INLINE_BYTES_MAX:
            ref, data = seal_to_bytes(parts, receivers, context, header)
            return SealedBlob(ref, data, None)
        beside = folder / f".new-{secrets.token_hex(8)}"
        try:
            ref = seal_to_file(parts, beside, receivers, context, fsync=False, header=header)
            beside.replace(folder / ref.digest)
        finally:
            beside.unlink(missing_ok=True)
    if fsync:
        _sync(folder / ref.digest)
    return SealedBlob(ref, None, ref.digest)


def _sync(path: Path, uncache: bool = False) -> None:
    for each, flags in ((path, os.O_RDONLY), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(each, flags)
        try:
            os.fsync(descriptor)
            if uncache and each is path and hasattr(os, "posix_fadvise"):
                # Otherwise a long run fills the cache with files that nobody reads, and every new page has to be found.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _open_here(
    keys: BoxOpener, org: str, sealed: SealedBlob, context: bytes, folder: Path, size_max: int, salt_bytes: int
) -> tuple[Blob, bytes]:
    opener = Opener(keys, org, sealed.ref, context, plain_size_max=size_max + salt_bytes)
    landing = _Landing(opener, salt_bytes, None)
    try:
        if sealed.inline is not None:
            view = memoryview(sealed.inline)
            for start in range(0, len(view), SEALED_CHUNK_BYTES):
                landing.take(view[start : start + SEALED_CHUNK_BYTES])
        else:
            for chunk in read_sealed(folder / (sealed.file or sealed.ref.digest)):
                landing.take(chunk)
        landing.finish()
        return landing.hand_over(), bytes(landing.salt)
    except FileNotFoundError as error:
        raise ComityError(ErrorCode.PAYLOAD_MISSING, "a payload of this node's journal is gone") from error
    finally:
        landing.abandon()


def _write_file(blob: Blob, path: Path) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with memory.mapped(blob.fd, blob.size) as view:
                write_all(descriptor, view)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        beside.replace(path)
    except OSError as error:
        raise ComityError(ErrorCode.SPOOL_FULL, "a payload cannot be written") from error
    finally:
        beside.unlink(missing_ok=True)
    _sync(path, uncache=True)


def _read_file(path: Path, size: int) -> Blob:
    fd = memory.create()
    try:
        with path.open("rb", buffering=0) as file:
            taken = 0
            while chunk := file.read(_HASH_STEP_BYTES):
                write_all(fd, chunk)
                taken += len(chunk)
        if taken != size:
            raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "a payload of this node's journal is incomplete")
        memory.seal(fd)
    except BaseException as error:  # also a cancelled caller leaves no descriptor
        os.close(fd)
        if isinstance(error, FileNotFoundError):
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "a payload of this node's journal is gone") from error
        raise
    return Blob(fd, size)


async def _threaded(function: Callable[..., T], *arguments: Any, unclaimed: Callable[[T], None] = lambda _: None) -> T:
    """Call it in a thread of the pool; what it returns for a caller that was cancelled goes to `unclaimed`."""
    work = asyncio.get_running_loop().run_in_executor(_POOL, function, *arguments)
    try:
        return await carried_out(work)
    except asyncio.CancelledError:
        if work.exception() is None:
            unclaimed(work.result())
        raise
