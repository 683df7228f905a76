"""Masked uploads and their aggregate as blobs: the words (uint32, lowest byte first).

Rules of `frame.blobs`. Header: magic 16, kind u8, zeros 7, words u64 (big-endian), zeros 32.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.blobs import HEADER_BYTES, BlobKind, check_form, read_at, write_at
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX
from comity_crypto.secagg.masked.words import CONTENT_START, WORDS_MAX, Words, add_into

_HEADER = struct.Struct(">16sB7sQ32s")
_MAGIC = b"comity/masked/1\x00"
_WORD_BYTES = 4
_BLOCK_WORDS = 1 << 18


def blob_bytes(words: int) -> int:
    """Return the exact size of a blob. Raises `TOO_LARGE`."""
    if not CONTENT_START < words <= WORDS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many values for one secure sum", words=words)
    return HEADER_BYTES + _WORD_BYTES * words


def check_blob(fd: int, kind: BlobKind, words: int) -> None:
    """Check size and header of a stranger's blob before anything else. Raises `CIPHERTEXT_INVALID`."""
    check_form(fd, _header(kind, words), blob_bytes(words))


def write_blob(fd: int, kind: BlobKind, words: Words) -> None:
    """Write an empty file full."""
    write_at(fd, _header(kind, words.size), -HEADER_BYTES)
    for start, size in _blocks(words.size):
        _write(fd, words[start : start + size], start)


def read_blob(fd: int, kind: BlobKind, words: int) -> Words:
    """Return a stranger's words, shape (words,). Raises `CIPHERTEXT_INVALID`, `PAYLOAD_TRUNCATED`."""
    check_blob(fd, kind, words)
    out: Words = np.empty(words, np.uint32)
    for start, size in _blocks(words):
        out[start : start + size] = _read(fd, start, size)
    return out


def add_blobs(uploads: Sequence[int], words: int, fd: int) -> None:
    """Add upload files into the empty file `fd`, block by block. Raises as `read_blob`, and `TOO_LARGE`."""
    if not 1 <= len(uploads) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many contributions", count=len(uploads))
    for upload in uploads:
        check_blob(upload, BlobKind.UPLOAD, words)
    write_at(fd, _header(BlobKind.AGGREGATE, words), -HEADER_BYTES)
    for start, size in _blocks(words):
        total: Words = np.zeros(size, np.uint32)
        for upload in uploads:
            add_into(total, _read(upload, start, size))
        _write(fd, total, start)


def _header(kind: BlobKind, words: int) -> bytes:
    return _HEADER.pack(_MAGIC, kind, bytes(7), words, bytes(32))


def _blocks(words: int) -> Iterator[tuple[int, int]]:
    for start in range(0, words, _BLOCK_WORDS):
        yield start, min(_BLOCK_WORDS, words - start)


def _read(fd: int, start: int, words: int) -> Words:
    return np.frombuffer(read_at(fd, _WORD_BYTES * words, _WORD_BYTES * start), "<u4").astype(np.uint32)


def _write(fd: int, words: Words, start: int) -> None:
    write_at(fd, words.astype("<u4").tobytes(), _WORD_BYTES * start)
