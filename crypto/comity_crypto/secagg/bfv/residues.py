"""Residues of a ciphertext as bytes: 50 bits each, four residues in 25 bytes, and nothing else.

1. One array has one encoding: 50-bit residues fill the bytes exactly, so that there are no padding bits to check.
2. What a stranger sends is read here first: the length is exact and every residue is below its prime, or it is refused
   with `CIPHERTEXT_INVALID`. TenSEAL therefore never parses a stranger's bytes: no protobuf, no zstd, no headers.

A packed chunk is 204,800 bytes, where TenSEAL's compressed vector takes 235,700.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import KEY_LIMBS, LIMBS, POLYS, RESIDUE_BITS, Parameters

Residues: TypeAlias = NDArray[np.uint64]  # shape (POLYS, limbs, N), each value below the limb's prime

_GROUP = np.dtype([("a", "<u8"), ("b", "<u8"), ("c", "<u8"), ("d", "u1")])  # 4 x 50 bits, little-endian
# The same 25 bytes to read: one word for each residue, of eight bytes that hold it whole, and where in them it starts.
_WORDS = np.dtype({"names": ["a", "b", "c", "d"], "formats": ["<u8"] * 4, "offsets": [0, 6, 12, 17], "itemsize": 25})
_STARTS = {"a": 0, "b": 2, "c": 4, "d": 14}
_MASK = np.uint64((1 << RESIDUE_BITS) - 1)


def pack(residues: Residues) -> bytes:
    """Return the packed bytes of residues below 2^50; their number must be a multiple of four."""
    flat = residues.reshape(-1, 4)
    v0, v1, v2, v3 = (flat[:, column] for column in range(4))
    out: NDArray[np.void] = np.empty(len(flat), _GROUP)
    out["a"] = v0 | (v1 << np.uint64(50))
    out["b"] = (v1 >> np.uint64(14)) | (v2 << np.uint64(36))
    out["c"] = (v2 >> np.uint64(28)) | (v3 << np.uint64(22))
    out["d"] = (v3 >> np.uint64(42)).astype(np.uint8)
    return bytes(out.tobytes())


def _unpack(data: bytes | memoryview, parameters: Parameters, limbs: int, polys: int = POLYS) -> Residues:
    count = polys * limbs * parameters.ring_degree
    if len(data) != count * RESIDUE_BITS // 8:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a packed polynomial has another length", size_bytes=len(data))
    groups = np.frombuffer(data, _WORDS)
    flat: NDArray[np.uint64] = np.empty((len(groups), 4), np.uint64)
    for column, (name, start) in enumerate(_STARTS.items()):
        np.right_shift(groups[name], np.uint64(start), out=flat[:, column])
    flat &= _MASK
    residues = flat.reshape(polys, limbs, parameters.ring_degree)
    for limb in range(limbs):
        if int(residues[:, limb].max()) >= parameters.primes[limb]:
            raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a residue is not below its prime", limb=limb)
    return residues


def unpack_chunk(data: bytes | memoryview, parameters: Parameters) -> Residues:
    """Return a ciphertext's residues, shape (2, 2, N). Raises `CIPHERTEXT_INVALID` (length, residue too large)."""
    return _unpack(data, parameters, LIMBS)


def unpack_key(data: bytes | memoryview, parameters: Parameters) -> Residues:
    """Return a public key's residues, shape (2, 3, N). Raises `CIPHERTEXT_INVALID` (length, residue too large)."""
    return _unpack(data, parameters, KEY_LIMBS)


def pack_poly(rows: NDArray[np.int64]) -> bytes:
    """Return the packed bytes of one polynomial's residues, shape (limbs, N), each in [0, prime)."""
    return pack(rows.astype(np.uint64))


def unpack_poly(data: bytes | memoryview, parameters: Parameters, limbs: int) -> NDArray[np.uint64]:
    """Return one polynomial's residues, shape (limbs, N). Raises `CIPHERTEXT_INVALID` (length, residue too large)."""
    return _unpack(data, parameters, limbs, 1)[0]
