"""Blobs as anonymous files: written once, sealed, passed by descriptor, mapped, never copied through a socket.

Rules:
1. A blob that comes from another process is used only after `adopt`: right size, below the bound, and **sealed**, so
   that the sender can neither shrink it under our mapping (SIGBUS) nor change a byte between our check and our use.
2. Whoever holds a descriptor closes it; the functions here say when they take one over.
3. Where the system has no sealed memory files (macOS), a blob is an unlinked temporary file and `adopt` copies it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence

from comity.wire.errors import ComityError, ErrorCode

Buffer = bytes | bytearray | memoryview

_HAS_SEALS = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
# writev takes at most IOV_MAX (1024) buffers; fewer per call keeps one call's kernel time short.
_IOV_PARTS = 256
_COPY_BYTES = 1 << 20


def create(label: str = "comity") -> int:
    """Return the descriptor of a new, empty, anonymous file; the caller closes it."""
    if _HAS_SEALS:
        return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    handle, path = tempfile.mkstemp(prefix="comity-")
    os.unlink(path)  # noqa: PTH108 - by path of mkstemp, as text
    return handle


def seal(fd: int) -> None:
    """Make the blob unchangeable. Raises `OSError` if somebody still maps it writable or it is no memory file."""
    if _HAS_SEALS:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _all_seals())


def write_parts(parts: Sequence[Buffer]) -> tuple[int, int]:
    """Write `parts` one behind the other into a new sealed blob; returns (descriptor, size in bytes)."""
    fd = create()
    try:
        size_bytes = append(fd, parts)
        seal(fd)
    except BaseException:  # whatever happened, no descriptor stays open
        os.close(fd)
        raise
    return fd, size_bytes


def append(fd: int, parts: Sequence[Buffer]) -> int:
    """Write all `parts` at the descriptor's position; returns the number of bytes. A short write is continued."""
    views = [view for part in parts if (view := memoryview(part).cast("B")).nbytes]
    total_bytes = sum(view.nbytes for view in views)
    first = 0
    while first < len(views):  # every turn writes at least one byte or raises
        written = os.writev(fd, views[first : first + _IOV_PARTS])
        if written <= 0:
            raise OSError("the blob takes no more bytes")
        while first < len(views) and written >= views[first].nbytes:
            written -= views[first].nbytes
            first += 1
        if written:
            views[first] = views[first][written:]
    return total_bytes


def adopt(fd: int, size_bytes: int, size_bytes_max: int) -> int:
    """Take over a blob from an untrusted sender and return a descriptor that is safe to map.

    The descriptor `fd` belongs to this function from the call on: it is returned, or closed on every refusal.

    Raises:
        ComityError: `TOO_LARGE` above `size_bytes_max`; `MALFORMED` if it is no sealed memory file of that very size.
    """
    try:
        if size_bytes > size_bytes_max:
            raise ComityError(ErrorCode.TOO_LARGE, "blob", size_bytes=size_bytes, limit_bytes=size_bytes_max)
        if not _HAS_SEALS:
            return _copied(fd, size_bytes)
        # Seals are asked for first: a descriptor of another file system (FUSE) could block in any other call.
        with contextlib.suppress(OSError):  # sealed by the sender already, or not sealable: judged by what holds
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _all_seals())
        if _seals_of(fd) & _content_seals() != _content_seals():
            raise ComityError(ErrorCode.MALFORMED, "the blob is not sealed")
        if os.fstat(fd).st_size != size_bytes:
            raise ComityError(ErrorCode.MALFORMED, "the blob has another size than announced")
    except BaseException:  # whatever happened, no descriptor stays open
        os.close(fd)
        raise
    return fd


def map_blob(fd: int, size_bytes: int) -> memoryview:
    """Map a sealed blob read-only; the mapping lives as long as the view (the descriptor may be closed)."""
    if size_bytes == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))


@contextlib.contextmanager
def mapped(fd: int, size_bytes: int) -> Iterator[memoryview]:
    """Map a sealed blob read-only within a `with` block; nothing may refer to it afterwards (else `BufferError`)."""
    if size_bytes == 0:
        yield memoryview(b"")
        return
    with mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as region, memoryview(region) as view:
        yield view


def _seals_of(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return 0  # not a memory file at all


def _content_seals() -> int:
    return int(fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)


def _all_seals() -> int:
    return int(_content_seals() | fcntl.F_SEAL_SEAL)


def _copied(fd: int, size_bytes: int) -> int:
    """Copy a blob that cannot be sealed, so that its sender holds nothing of ours."""
    copy = create()
    try:
        done_bytes = 0
        while done_bytes < size_bytes:
            piece = os.pread(fd, min(_COPY_BYTES, size_bytes - done_bytes), done_bytes)
            if not piece:
                raise ComityError(ErrorCode.MALFORMED, "the blob has another size than announced")
            append(copy, [piece])
            done_bytes += len(piece)
        if os.fstat(fd).st_size != size_bytes:
            raise ComityError(ErrorCode.MALFORMED, "the blob has another size than announced")
    except BaseException:  # whatever happened, no descriptor stays open
        os.close(copy)
        raise
    os.close(fd)
    return copy
