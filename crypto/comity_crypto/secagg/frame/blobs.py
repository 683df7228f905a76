"""Uploads, aggregates and shares as files: a 64-byte header, then content of one exact size, read and written in place.

1. The size of a blob follows from the offer; any other size or header is refused before anything else is read.
2. Everything is read and written at its offset, so that a blob is never whole in memory and workers share it.
"""

from __future__ import annotations

import hashlib
import os
from enum import IntEnum

from comity.wire.errors import ComityError, ErrorCode

HEADER_BYTES = 64
_READ_BYTES = 1 << 20


class BlobKind(IntEnum):
    """What a blob holds; an aggregate can never be replayed as an upload."""

    UPLOAD = 1
    AGGREGATE = 2
    SHARE = 3  # of a collective key: one polynomial a chunk, where the others have two


def check_form(fd: int, header: bytes, size_bytes: int) -> None:
    """Check size and header of a stranger's blob before anything else. Raises `CIPHERTEXT_INVALID`."""
    found_bytes = os.fstat(fd).st_size
    if found_bytes != size_bytes:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another size", size_bytes=found_bytes)
    if os.pread(fd, HEADER_BYTES, 0) != header:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another header")


def read_at(fd: int, size_bytes: int, start: int) -> bytes:
    """Return a piece of the content, which starts behind the header. Raises `PAYLOAD_TRUNCATED`."""
    data = os.pread(fd, size_bytes, HEADER_BYTES + start)
    if len(data) != size_bytes:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the blob ends early", start=start)
    return data


def write_at(fd: int, data: bytes, start: int) -> None:
    """Write a piece of the content; the header stands at `-HEADER_BYTES`."""
    view, offset = memoryview(data), HEADER_BYTES + start
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def file_digest(fd: int) -> tuple[str, int]:
    """Return (lower-case hexadecimal SHA-256, size in bytes) of a whole file, read by 1 MiB; the offset stays."""
    hasher = hashlib.sha256()
    size_bytes = os.fstat(fd).st_size
    for offset in range(0, size_bytes, _READ_BYTES):
        hasher.update(os.pread(fd, _READ_BYTES, offset))
    return hasher.hexdigest(), size_bytes
