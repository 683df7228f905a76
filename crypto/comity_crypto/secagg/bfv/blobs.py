"""Encrypted uploads, their aggregate and decryption shares as blobs: packed chunks of one fixed size.

Rules of `frame.blobs`. Header: magic 16, parameter digest 32, kind u8, zeros 3, chunks u32 (big-endian), zeros 8.
"""

from __future__ import annotations

import os
import struct

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import CHUNKS_MAX, LIMBS, Parameters
from comity_crypto.secagg.frame.blobs import HEADER_BYTES, BlobKind, check_form, read_at, write_at

_HEADER = struct.Struct(">16s32sB3sI8s")
_MAGIC = b"comity/secagg/1\x00"


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
    check_form(fd, header(parameters, kind, chunks), blob_bytes(parameters, chunks, kind))


def read_chunk(fd: int, parameters: Parameters, index: int, kind: BlobKind = BlobKind.UPLOAD) -> bytes:
    """Return packed chunk `index`. Raises `PAYLOAD_TRUNCATED`."""
    piece_bytes = _piece_bytes(parameters, kind)
    return read_at(fd, piece_bytes, index * piece_bytes)


def write_header(fd: int, parameters: Parameters, kind: BlobKind, chunks: int) -> None:
    """Give an empty file its full size and its header; the chunks follow in any order."""
    os.ftruncate(fd, blob_bytes(parameters, chunks, kind))
    write_at(fd, header(parameters, kind, chunks), -HEADER_BYTES)


def write_chunk(fd: int, parameters: Parameters, index: int, data: bytes, kind: BlobKind = BlobKind.UPLOAD) -> None:
    """Write packed chunk `index` at its place."""
    write_at(fd, data, index * _piece_bytes(parameters, kind))
