"""Decryption shares: what a quorum adds to an aggregate to open it, and nothing else (research/crypto.md 2.6, 2.7).

1. A share of one chunk is lambda_k S_k c1 + noise, coefficient by coefficient: c1 is the aggregate's second polynomial,
   lambda_k the quorum's Lagrange weight (1 where everybody is needed).
2. The noise hides S_k and must: full-granularity integers, uniform in [-2^b, 2^b), the same integer under both primes,
   from AES-256-CTR under 32 bytes that serve one share of one holder. b = 48 for agg-q16, 56 for agg-i32.
3. No failure by construction: 50 shares' noise and that of 50 ciphertexts (below 2^31 in the worst case) stay under
   q / 2t, which is 64 times 2^48 and 2^10 times 2^56.
4. Fusing gives (c0 + the sum of shares, 0), which any key decrypts; TenSEAL does, with a key that is thrown away.
5. A share is 102,400 bytes a chunk, of one size and with residues below their primes, or it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import ring
from comity_crypto.secagg.bfv.params import LIMBS, Parameters
from comity_crypto.secagg.bfv.residues import Residues, pack, pack_poly, unpack_chunk, unpack_poly
from comity_crypto.secagg.bfv.ring import Ints
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

SMUDGING_BITS = {"agg-q16": 48, "agg-i32": 56}
SEED_BYTES = 32
_NOISE = 7  # purpose of the stream: first number of the nonce


def smudging(parameters: Parameters, seed: bytes, chunk: int) -> Ints:
    """Return N integers uniform in [-2^b, 2^b) for one chunk of one share."""
    if len(seed) != SEED_BYTES:
        raise ComityError(ErrorCode.INTERNAL, "the noise of a share needs 32 fresh bytes")
    bits = SMUDGING_BITS[parameters.name]
    words = np.frombuffer(ring.stream(seed, (_NOISE, chunk), 8 * parameters.ring_degree), "<u8")
    return (words >> np.uint64(63 - bits)).astype(np.int64) - (1 << bits)


class Sharer:
    """Makes one holder's shares for one quorum and one aggregate."""

    def __init__(
        self, parameters: Parameters, share: Ints, point: int, quorum: tuple[int, ...], threshold: int, holders: int
    ) -> None:
        """Take S_k, this holder's point k, and the points of the quorum. Raises `INTERNAL` for another quorum."""
        if point not in quorum or len(quorum) != threshold or not set(quorum) <= set(range(1, holders + 1)):
            raise ComityError(ErrorCode.INTERNAL, "not a quorum of this key")
        self._parameters = parameters
        self._keys: list[Ints] = []
        for limb, prime in enumerate(parameters.data_primes):
            weight = 1 if threshold == holders else ring.lagrange(quorum, prime)[point]
            self._keys.append(ring.scale(share[limb], weight, prime))
        primes = parameters.data_primes
        self._ratios = [key / float(prime) for key, prime in zip(self._keys, primes, strict=True)]

    def __repr__(self) -> str:
        return "Sharer(held)"

    def share(self, chunks: Sequence[bytes], seed: bytes, first: int) -> list[bytes]:
        """Return the packed shares of packed chunks of the aggregate, of which the first has the number `first`.

        Raises:
            ComityError: `CIPHERTEXT_INVALID` for a chunk of another length or with a residue that is too large.
        """
        parameters = self._parameters
        second = np.stack([unpack_chunk(chunk, parameters)[1] for chunk in chunks]).astype(np.int64)
        noise = np.stack([smudging(parameters, seed, first + place) for place in range(len(chunks))])
        out = np.empty_like(second)
        for limb, prime in enumerate(parameters.data_primes):
            turn = ring.transform(parameters.ring_degree, prime)
            product = ring.multiply(turn.forward(second[:, limb]), self._keys[limb], prime, self._ratios[limb])
            made = turn.inverse(product)
            made += noise  # below 2^56, which is 2^6 primes
            ring.reduce(made, prime)
            out[:, limb] = made
        return [pack_poly(item) for item in out]


def fuse(parameters: Parameters, chunk: bytes, shares: Sequence[bytes]) -> bytes:
    """Return a packed chunk that any key decrypts: (c0 + all shares, 0).

    Raises:
        ComityError: `CIPHERTEXT_INVALID` for a chunk or share of another length or with a residue that is too large.
    """
    return pack(fuse_residues(parameters, chunk, [unpack_poly(share, parameters, LIMBS) for share in shares]))


def fuse_residues(parameters: Parameters, chunk: bytes, shares: Sequence[NDArray[np.uint64]]) -> Residues:
    """Return the residues of (c0 + all shares, 0), shape (2, 2, N); a share is what `unpack_poly` read.

    Raises:
        ComityError: `CIPHERTEXT_INVALID` for a chunk of another length or with a residue that is too large.
    """
    if not 1 <= len(shares) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many shares", count=len(shares))
    fused = unpack_chunk(chunk, parameters)
    total = fused[0]
    for share in shares:  # at most 51 values below 2^50: no overflow before the one reduction
        total += share
    for limb, prime in enumerate(parameters.data_primes):
        total[limb] %= np.uint64(prime)
    fused[1] = 0
    return fused


def share_bytes(parameters: Parameters) -> int:
    """Return the size of one chunk's packed share."""
    return parameters.poly_bytes(LIMBS)
