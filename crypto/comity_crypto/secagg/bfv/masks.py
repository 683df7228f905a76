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


class _Streams:
    """Makes the pairs' streams of one chunk, in a room of its own: nothing is allocated by the stream."""

    def __init__(self, chunk: int, parameters: Parameters) -> None:
        self._parameters = parameters
        self._mode = modes.CTR(struct.pack(">QII", 0, chunk, 0))
        self._zeros = bytes(8 * (parameters.ring_degree + _SPARE_WORDS))
        self._room = bytearray(len(self._zeros) + 15)  # `update_into` asks for a block more, less one byte
        self._bits = np.uint64((1 << parameters.plain_modulus.bit_length()) - 1)

    def of(self, seed: bytes) -> NDArray[np.uint64]:
        """Return N uniform values below t; the next call overwrites them."""
        degree, modulus = self._parameters.ring_degree, self._parameters.plain_modulus
        values = self._words(seed, degree)
        if int(values.max()) < modulus:  # nothing to drop, as most often
            return values
        values = self._words(seed, degree + _SPARE_WORDS)
        kept = values[values < modulus]
        if len(kept) < degree:
            raise ComityError(ErrorCode.INTERNAL, "the mask's stream ran out")
        return kept[:degree]

    def _words(self, seed: bytes, count: int) -> NDArray[np.uint64]:
        cipher = Cipher(algorithms.AES256(seed), self._mode).encryptor()
        cipher.update_into(memoryview(self._zeros)[: 8 * count], self._room)
        words = np.frombuffer(self._room, "<u8", count)
        words &= self._bits
        return words


def mask_stream(seed: bytes, chunk: int, parameters: Parameters) -> NDArray[np.uint64]:
    """Return N uniform values below t: the pair's stream for one chunk."""
    return _Streams(chunk, parameters).of(seed)


def mask_chunk(
    slots: NDArray[np.uint64], chunk: int, pairs: Sequence[PairSeed], parameters: Parameters
) -> NDArray[np.uint64]:
    """Return one chunk's N slots with all pairs' streams added or subtracted modulo t.

    Raises:
        ComityError: `INTERNAL` without at least two pairs: one pair's masks would hide nothing from that other party.
    """
    if not 2 <= len(pairs) < CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.INTERNAL, "masks need two or more other contributors", count=len(pairs))
    modulus, streams = np.uint64(parameters.plain_modulus), _Streams(chunk, parameters)
    # At most 50 terms below 2^45: no overflow, nor below 0, before the one reduction.
    total = slots + np.uint64(sum(not pair.adds for pair in pairs)) * modulus
    for pair in pairs:
        if pair.adds:
            total += streams.of(pair.seed)
        else:
            total -= streams.of(pair.seed)
    total -= total // modulus * modulus  # a division by one number is four times as fast as `%`
    return total
