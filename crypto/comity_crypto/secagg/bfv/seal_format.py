"""SEAL 4.3's and TenSEAL 0.3.18's byte layouts, for bytes that this process made itself.

1. Only the output of our own TenSEAL is read here; strangers' bytes go through `residues.py`.
2. What we write for TenSEAL to load is uncompressed, so that SEAL's decompressor never runs on input.
3. The layout has no promise of stability: `scheme.self_test` checks it at every start.

Layouts (measured, research/crypto.md 2.1; integers little-endian):
    SEAL object   magic u16, header size u8, major u8, minor u8, compression u8, reserved u16, total size u64, body
    ciphertext    parms_id 32, is_ntt u8, polynomials u64, N u64, limbs u64, scale f64, correction u64, array object
    array         count u64, values u64[polynomials][limbs][N]
    BFVVector     protobuf {1: packed sizes, 2: repeated ciphertext object}
    context       protobuf {1: parameters object, 2: {1: public key object, 2: flags, 3: scale}, ...}
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import POLYS, SEAL_HEADER_BYTES, SEAL_MAGIC, SEAL_VERSION, Parameters
from comity_crypto.secagg.bfv.residues import Residues

_HEADER = struct.Struct("<HBBBBHQ")
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")
_COMPRESSION_NONE = 0
_COMPRESSION_ZSTD = 2
_PLAIN_SCALE = 1.0
# TenSEAL's own defaults in a context: all three "auto" flags set, no global scale.
_CONTEXT_FLAGS = b"\x10\x07"
_CONTEXT_SCALE = b"\x19" + struct.pack("<d", -1.0)
_FIELDS_MAX = 16


def layout_error(what: str) -> ComityError:
    """Return the error for TenSEAL bytes that are not laid out as this version expects."""
    return ComityError(ErrorCode.UNSUPPORTED, f"this build of TenSEAL lays out {what} in another way")


def wrap(body: bytes) -> bytes:
    """Return `body` as an uncompressed SEAL object."""
    return _header(len(body)) + body


def _header(body_bytes: int) -> bytes:
    size_bytes = SEAL_HEADER_BYTES + body_bytes
    return _HEADER.pack(SEAL_MAGIC, SEAL_HEADER_BYTES, *SEAL_VERSION, _COMPRESSION_NONE, 0, size_bytes)


def unwrap(data: bytes, body_bytes: int) -> bytes | memoryview:
    """Return the body of a SEAL object, which must be `body_bytes` long. Raises `UNSUPPORTED`."""
    magic, header_bytes, major, minor, compression, _, size_bytes = _HEADER.unpack_from(data)
    if (magic, header_bytes, (major, minor)) != (SEAL_MAGIC, SEAL_HEADER_BYTES, SEAL_VERSION):
        raise layout_error("objects")
    body: bytes | memoryview = data[SEAL_HEADER_BYTES:size_bytes]
    if compression == _COMPRESSION_ZSTD:
        body = _inflate(bytes(body), body_bytes)
    elif compression != _COMPRESSION_NONE:
        raise layout_error("compression")
    if len(body) != body_bytes:
        raise layout_error("sizes")
    return body


@cache
def _extension() -> ctypes.CDLL:
    import tenseal

    return ctypes.CDLL(tenseal._ts_cpp.__file__)


def _inflate(body: bytes, body_bytes: int) -> memoryview:
    """Decompress with the zstd that SEAL itself is linked with; the extension module exports it."""
    function = _extension().ZSTD_decompress
    function.restype = ctypes.c_size_t
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t)
    # SEAL may pad its stream's last block, so a little more room than the exact size.
    room: NDArray[np.uint8] = np.empty(body_bytes + 64, np.uint8)
    size_bytes = function(room.ctypes.data, len(room), body, len(body))
    if size_bytes != body_bytes:
        raise layout_error("compressed objects")
    return memoryview(room)[:body_bytes]


def has_zstd() -> bool:
    """Whether the extension module exports zstd; elsewhere `bfv` reads residues one by one, four times slower."""
    return hasattr(_extension(), "ZSTD_decompress")


def _ciphertext_head(parameters: Parameters, limbs: int, *, key: bool) -> bytes:
    parms_id = bytes.fromhex(parameters.key_parms_id if key else parameters.parms_id)
    # A public key is kept in the transformed (NTT) domain, a BFV ciphertext in the coefficient domain.
    return _CIPHERTEXT.pack(parms_id, int(key), POLYS, parameters.ring_degree, limbs, _PLAIN_SCALE, 1)


def build_ciphertext(parameters: Parameters, residues: Residues, *, key: bool = False) -> bytes:
    """Return residues of shape (2, limbs, N) as a SEAL ciphertext object (a public key's body if `key`)."""
    return b"".join(_ciphertext_parts(parameters, residues, key=key))


def _ciphertext_parts(parameters: Parameters, residues: Residues, *, key: bool = False) -> list[bytes | memoryview]:
    """Return the object in pieces: its content is a quarter of a megabyte, and is to be copied once."""
    values = np.ascontiguousarray(residues, dtype="<u8")
    head = _ciphertext_head(parameters, values.shape[1], key=key)
    count = struct.pack("<Q", values.size)
    inner = _header(len(count) + values.nbytes)
    outer = _header(len(head) + len(inner) + len(count) + values.nbytes)
    return [outer, head, inner, count, values.reshape(-1).data.cast("B")]


def parse_ciphertext(parameters: Parameters, data: bytes, limbs: int, *, key: bool = False) -> Residues:
    """Return the residues, shape (2, limbs, N), of an object that our own SEAL made. Raises `UNSUPPORTED`."""
    count = POLYS * limbs * parameters.ring_degree
    head_bytes = _CIPHERTEXT.size + SEAL_HEADER_BYTES + 8
    body = unwrap(data, head_bytes + 8 * count)
    if body[: _CIPHERTEXT.size] != _ciphertext_head(parameters, limbs, key=key):
        raise layout_error("ciphertexts")
    if struct.unpack_from("<Q", body, head_bytes - 8)[0] != count:
        raise layout_error("arrays")
    return np.frombuffer(body, "<u8", offset=head_bytes).astype(np.uint64).reshape(POLYS, limbs, parameters.ring_degree)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _field_head(number, len(data)) + data


def _field_head(number: int, size_bytes: int) -> bytes:
    return _varint(number << 3 | 2) + _varint(size_bytes)


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a protobuf message that our own TenSEAL made; others are skipped."""
    position = 0
    for _ in range(_FIELDS_MAX):
        if position >= len(data):
            return
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == 2:
            size_bytes, position = _read_varint(data, position)
            yield key >> 3, data[position : position + size_bytes]
            position += size_bytes
        elif kind == 0:
            _, position = _read_varint(data, position)
        elif kind == 1:
            position += 8
        else:
            raise layout_error("messages")
    if position < len(data):
        raise layout_error("messages")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise layout_error("messages")


def build_vector(parameters: Parameters, residues: Residues) -> bytes:
    """Return one chunk as TenSEAL's BFVVector message."""
    parts = _ciphertext_parts(parameters, residues)
    size_bytes = sum(len(part) for part in parts)
    return b"".join([_field(1, _varint(parameters.ring_degree)), _field_head(2, size_bytes), *parts])


def vector_ciphertext(data: bytes) -> bytes:
    """Return the only ciphertext object of a BFVVector message. Raises `UNSUPPORTED`."""
    found = [value for number, value in fields(data) if number == 2]
    if len(found) != 1:
        raise layout_error("vectors")
    return found[0]


def build_context(parameters: Parameters, public_key: Residues | None) -> bytes:
    """Return a TenSEAL context message: parameters only, or with a public key and nothing else."""
    key = b"" if public_key is None else _field(1, build_ciphertext(parameters, public_key, key=True))
    return _field(1, wrap(parameters.parms_bytes)) + _field(2, key + _CONTEXT_FLAGS + _CONTEXT_SCALE)


def context_public_key(data: bytes) -> bytes:
    """Return the public key object of a context message that our own TenSEAL made. Raises `UNSUPPORTED`."""
    for number, value in fields(data):
        if number == 2:
            for inner, key in fields(value):
                if inner == 1:
                    return key
    raise layout_error("contexts")


def context_parameters(data: bytes) -> bytes:
    """Return the parameters object of a context message that our own TenSEAL made. Raises `UNSUPPORTED`."""
    for number, value in fields(data):
        if number == 1:
            return value
    raise layout_error("contexts")
