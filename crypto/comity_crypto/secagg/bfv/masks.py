"""Pairwise masks: uniform modulo t over every slot of every chunk, summing to zero over the roster.

1. Of each pair the organisation that sorts first adds the pair's stream, the other subtracts it.
2. Streams are AES-256-CTR under the pair's 32-byte seed; the nonce is the chunk's number, so chunks are masked apart.
3. Uniform by rejection: words are cut to the bits of t and words at or above t are dropped, by both sides alike.
   (Reducing 64-bit words modulo t would be visible: t has up to 45 bits.)
4. Masks cover check slots, weights and padding too: an update must not show in any slot (research/crypto.md 2.7).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import Parameters
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

SEED_BYTES = 32
# One word in 10^6 or fewer is dropped (t is just below a power of two): 64 spare words of 8192 are never used up.
_SPARE_WORDS = 64


@dataclass(frozen=True)
class PairSeed:
    """A pair's secret, and whether this side adds or subtracts its stream."""

    adds: bool
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ComityError(ErrorCode.MALFORMED, "a mask seed is 32 bytes")


def mask_stream(seed: bytes, chunk: int, parameters: Parameters) -> NDArray[np.uint64]:
    """Return N uniform values below t: the pair's stream for one chunk."""
    words = parameters.ring_degree + _SPARE_WORDS
    nonce = struct.pack(">QII", 0, chunk, 0)
    stream = Cipher(algorithms.AES256(seed), modes.CTR(nonce)).encryptor().update(bytes(8 * words))
    modulus = parameters.plain_modulus
    values = np.frombuffer(stream, "<u8") & np.uint64((1 << modulus.bit_length()) - 1)
    kept = values[values < modulus]
    if len(kept) < parameters.ring_degree:
        raise ComityError(ErrorCode.INTERNAL, "the mask's stream ran out")
    return kept[: parameters.ring_degree]


def mask_chunk(
    slots: NDArray[np.uint64], chunk: int, pairs: Sequence[PairSeed], parameters: Parameters
) -> NDArray[np.uint64]:
    """Return one chunk's N slots with all pairs' streams added or subtracted modulo t.

    Raises:
        ComityError: `INTERNAL` without at least two pairs: one pair's masks would hide nothing from that other party.
    """
    if not 2 <= len(pairs) < CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.INTERNAL, "masks need two or more other contributors", count=len(pairs))
    modulus = np.uint64(parameters.plain_modulus)
    total = slots.copy()
    for pair in pairs:  # at most 50 terms below 2^45: no overflow before the one reduction
        stream = mask_stream(pair.seed, chunk, parameters)
        total += stream if pair.adds else modulus - stream
    total %= modulus
    return total
