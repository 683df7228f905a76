"""Masked uploads and their aggregate as one blob: a 64-byte header, then the words (uint32, lowest byte first).

The size follows from the number of words; any other size or header is refused before reading (as in `blobs`).
Header: magic 16, kind u8, zeros 7, words u64 (big-endian), zeros 32.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.blobs import BlobKind
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX
from comity_crypto.secagg.masked.words import CONTENT_START, WORDS_MAX, Words, add_into

HEADER_BYTES = 64
_HEADER = struct.Struct(">16sB7sQ32s")
_MAGIC = b"comity/masked/1\x00"
_BLOCK_WORDS = 1 << 18


def blob_bytes(words: int) -> int:
    """Return the exact size of a blob. Raises `TOO_LARGE`."""
    if not CONTENT_START < words <= WORDS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many values for one secure sum", words=words)
    return HEADER_BYTES + 4 * words


def check_blob(fd: int, kind: BlobKind, words: int) -> None:
    """Check size and header of a stranger's blob before anything else. Raises `CIPHERTEXT_INVALID`."""
    size_bytes = os.fstat(fd).st_size
    if size_bytes != blob_bytes(words):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another size", size_bytes=size_bytes)
    if os.pread(fd, HEADER_BYTES, 0) != _header(kind, words):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the blob has another header")


def write_blob(fd: int, kind: BlobKind, words: Words) -> None:
    """Write an empty file full."""
    _write_at(fd, _header(kind, words.size), 0)
    for start in range(0, words.size, _BLOCK_WORDS):
        _write_at(fd, words[start : start + _BLOCK_WORDS].astype("<u4").tobytes(), HEADER_BYTES + 4 * start)


def read_blob(fd: int, kind: BlobKind, words: int) -> Words:
    """Return a stranger's words, shape (words,). Raises `CIPHERTEXT_INVALID`, `PAYLOAD_TRUNCATED`."""
    check_blob(fd, kind, words)
    out: Words = np.empty(words, np.uint32)
    for start in range(0, words, _BLOCK_WORDS):
        block = out[start : start + _BLOCK_WORDS]
        block[:] = _block(fd, start, block.size)
    return out


def add_blobs(uploads: Sequence[int], words: int, fd: int) -> None:
    """Add upload files into the empty file `fd`, block by block. Raises as `read_blob`, and `TOO_LARGE`."""
    if not 1 <= len(uploads) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many contributions", count=len(uploads))
    for upload in uploads:
        check_blob(upload, BlobKind.UPLOAD, words)
    _write_at(fd, _header(BlobKind.AGGREGATE, words), 0)
    for start in range(0, words, _BLOCK_WORDS):
        size = min(_BLOCK_WORDS, words - start)
        total: Words = np.zeros(size, np.uint32)
        for upload in uploads:
            add_into(total, _block(upload, start, size))
        _write_at(fd, total.astype("<u4").tobytes(), HEADER_BYTES + 4 * start)


def _header(kind: BlobKind, words: int) -> bytes:
    return _HEADER.pack(_MAGIC, kind, bytes(7), words, bytes(32))


def _block(fd: int, start: int, words: int) -> Words:
    data = os.pread(fd, 4 * words, HEADER_BYTES + 4 * start)
    if len(data) != 4 * words:
        raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, "the blob ends early", word=start)
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
