"""Linear digests: short fingerprints of ciphertexts that add as the ciphertexts do (secure-aggregation.md section 4 e).

1. The challenge is derived from the aggregate's own hash, so that whoever forms the aggregate cannot fit it to a known
   challenge (research/crypto.md 2.7).
2. A digest is, for each polynomial and each prime, seven inner products with 16-bit coefficients. A wrong aggregate
   passes with probability 2^-112 for each one that is tried; grinding over aggregates stays out of reach.
3. All arithmetic is exact: 25-bit parts x 16-bit coefficients x 2^12 terms stay below the 2^53 of a double.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import LIMBS, POLYS, Parameters
from comity_crypto.secagg.bfv.residues import unpack_chunk

COLUMNS = 7
DIGEST_VALUES = POLYS * LIMBS * COLUMNS
_PART_BITS = 25
_PARTS = 2
_TERMS_MAX = 1 << 12

Digest = tuple[int, ...]  # DIGEST_VALUES residues: [polynomial][limb][column], each below its limb's prime


def _coefficients(challenge: bytes, chunk: int, parameters: Parameters) -> NDArray[np.float64]:
    """Return the challenge's coefficients for one chunk, shape (N, COLUMNS), integers below 2^16 as doubles."""
    nonce = struct.pack(">QII", 1, chunk, 0)
    count = parameters.ring_degree * COLUMNS
    stream = Cipher(algorithms.AES256(challenge), modes.CTR(nonce)).encryptor().update(bytes(2 * count))
    return np.frombuffer(stream, "<u2").astype(np.float64).reshape(parameters.ring_degree, COLUMNS)


def linear_digest(parameters: Parameters, challenge: bytes, chunks: Iterable[bytes], first: int = 0) -> Digest:
    """Return the digest of packed chunks in order; `first` is the number of the first. Raises `CIPHERTEXT_INVALID`."""
    if len(challenge) != 32:
        raise ComityError(ErrorCode.MALFORMED, "a challenge is 32 bytes")
    totals = [0] * DIGEST_VALUES
    mask = np.uint64((1 << _PART_BITS) - 1)
    for index, data in enumerate(chunks, first):
        coefficients = _coefficients(challenge, index, parameters)
        pieces = -(-parameters.ring_degree // _TERMS_MAX)
        rows = unpack_chunk(data, parameters).reshape(POLYS * LIMBS, pieces, -1).transpose(1, 0, 2)
        for part in range(_PARTS):
            limb = ((rows >> np.uint64(_PART_BITS * part)) & mask).astype(np.float64)
            products = (limb @ coefficients.reshape(pieces, -1, COLUMNS)).astype(np.int64).sum(axis=0)
            for place, product in enumerate(products.ravel().tolist()):
                totals[place] += product << (_PART_BITS * part)
    return tuple(total % prime for total, prime in zip(totals, _primes(parameters), strict=True))


def sum_digests(parameters: Parameters, digests: Sequence[Digest]) -> Digest:
    """Return the digest that the sum of the ciphertexts must have."""
    columns = zip(*digests, strict=True)
    return tuple(sum(column) % prime for column, prime in zip(columns, _primes(parameters), strict=True))


def check_digest(parameters: Parameters, digest: Digest) -> None:
    """Refuse a stranger's digest with a wrong count or a value not below its prime. Raises `MALFORMED`."""
    primes = _primes(parameters)
    if len(digest) != len(primes) or not all(0 <= value < prime for value, prime in zip(digest, primes, strict=True)):
        raise ComityError(ErrorCode.MALFORMED, "not a linear digest of these parameters")


def _primes(parameters: Parameters) -> list[int]:
    return [prime for _ in range(POLYS) for prime in parameters.data_primes for _ in range(COLUMNS)]
