"""The residues of a TenSEAL ciphertext, read from where they lie in this process: a fifth of what its message costs.

1. TenSEAL shows a ciphertext as a compressed message only; to make and to read it is a fifth of an encryption.
2. Memory is read through the kernel, so that a wrong address is an error and no crash. Where the kernel does not let
   us, the message is read (`scheme`).
3. What stands before the values must be what a ciphertext of these parameters has: digest, form and sizes. `scheme`
   trusts this only after both ways gave the same residues in this process.

Layout (SEAL 4.3 under pybind11, x86-64 and arm64; measured): the Python object's head is followed by the address of
    parms_id 32, is_ntt u8, -, polynomials u64, N u64, limbs u64, scale f64, correction u64, pool 16, capacity u64,
    count u64, address of values u64[polynomials][limbs][N]
"""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np

from comity_crypto.secagg.bfv.params import LIMBS, POLYS, Parameters
from comity_crypto.secagg.bfv.residues import Residues

_MEMORY = "/proc/self/mem"
_ADDRESS = struct.Struct("<Q")
_CIPHERTEXT = struct.Struct("<32sB7xQQQdQ16xQQQ")


def read(parameters: Parameters, vector: Any) -> Residues | None:
    """Return the residues of a vector of one chunk, shape (2, 2, N), or nothing if they are not found as expected."""
    shape = (POLYS, LIMBS, parameters.ring_degree)
    out: Residues = np.empty(shape, np.uint64)
    (ciphertext,) = vector.ciphertext()
    expected = (bytes.fromhex(parameters.parms_id), 0, POLYS, parameters.ring_degree, LIMBS, 1.0, 1, out.size, out.size)
    try:
        with open(_MEMORY, "rb", buffering=0) as memory:  # noqa: PTH123 - one call less, for every chunk
            fd = memory.fileno()
            (start,) = _ADDRESS.unpack(os.pread(fd, _ADDRESS.size, id(ciphertext) + object.__basicsize__))
            *head, values = _CIPHERTEXT.unpack(os.pread(fd, _CIPHERTEXT.size, start))
            if tuple(head) != expected or os.preadv(fd, [out.data], values) != out.nbytes:
                return None
    except (OSError, OverflowError, struct.error):  # no such file, or no such address
        return None
    return out
