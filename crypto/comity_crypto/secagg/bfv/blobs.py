"""Uploads and aggregates as one blob: a 64-byte header, then packed chunks of one fixed size.

1. The size of a blob follows from the parameter set and the number of chunks; any other size is refused before reading.
2. Chunks are read and written at their offset, so that a blob is never whole in memory and workers share it.

Header: magic 16, parameter digest 32, kind u8, zeros 3, chunks u32 (big-endian), zeros 8.
"""

from __future__ import annotations

import hashlib
import os
import struct
from enum import IntEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import CHUNKS_MAX, LIMBS, Parameters

HEADER_BYTES = 64
_HEADER = struct.Struct(">16s32sB3sI8s")
_MAGIC = b"comity/secagg/1\x00"
_READ_BYTES = 1 << 20


class BlobKind(IntEnum):
    """What a blob holds; an aggregate can never be replayed as an upload."""

    UPLOAD = 1
    AGGREGATE = 2
    SHARE = 3  # of a collective key: one polynomial a chunk, where the others have two


def _piece_bytes(parameters: Parameters, kind: BlobKind) -> int:
    return parameters.poly_bytes(LIMBS) if kind is BlobKind.SHARE else parameters.chunk_bytes


def blob_bytes(parameters: Parameters, chunks: int, kind: BlobKind = BlobKind.UPLOAD) -> int:
    """Return the exact size of a blob. Raises `TOO_LARGE` for a number of chunks outside of 1 to `CHUNKS_MAX`."""
    if not 1 <= chunks <= CHUNKS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "chunks outside of 1 to 4096", chunks=chunks)
    return HEADER_BYTES + chunks * _piece_bytes(parameters, kind)


def header(parameters: Parameters, kind: BlobKind, chunks: int) -> bytes:
    """Return the 64-byte header."""
    return _HEADER.pack(_MAGIC, bytes.fromhex(parameters.digest), kind, bytes(3), chunks, bytes(8))


def check_blob(fd: int, parameters: Parameters, kind: BlobKind, chunks: int) -> None:
    """Check size and header of a stranger's blob before anything else. Raises `CIPHERTEXT_INVALID`."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes != blob_bytes(parameters, chunks, kind):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another size", size_bytes=size_bytes)
    if os.pread(fd, HEADER_BYTES, 0) != header(parameters, kind, chunks):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another header")


def read_chunk(fd: int, parameters: Parameters, index: int, kind: BlobKind = BlobKind.UPLOAD) -> bytes:
    """Return packed chunk `index`. Raises `PAYLOAD_TRUNCATED`."""
    piece_bytes = _piece_bytes(parameters, kind)
    data = os.pread(fd, piece_bytes, HEADER_BYTES + index * piece_bytes)
    if len(data) != piece_bytes:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the blob ends early", chunk=index)
    return data


def write_header(fd: int, parameters: Parameters, kind: BlobKind, chunks: int) -> None:
    """Give an empty file its full size and its header; the chunks follow in any order."""
    os.ftruncate(fd, blob_bytes(parameters, chunks, kind))
    _write_at(fd, header(parameters, kind, chunks), 0)


def write_chunk(fd: int, parameters: Parameters, index: int, data: bytes, kind: BlobKind = BlobKind.UPLOAD) -> None:
    """Write packed chunk `index` at its place."""
    _write_at(fd, data, HEADER_BYTES + index * _piece_bytes(parameters, kind))


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
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
