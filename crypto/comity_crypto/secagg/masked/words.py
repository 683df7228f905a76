"""Masks over vectors of uint32, and the tag that shows a changed sum (profile `masked`).

1. A contribution is a vector of words: `CHECK_WORDS` that hold 1, `TAG_WORDS` of its tag, then its content. Every word
   of a contribution is below `WORD_BOUND`, so that 50 of them add up without wrapping; masks wrap modulo 2^32.
2. Each mask is AES-256-CTR under a key of its own: pairwise ones cancel within the roster, the own one and the round's
   are taken away by whoever may open the sum. The round's streams differ from party to party: one stream for all would
   be multiplied by their number, and an even number shows the sum's lowest bits (there is a test of that).
3. The tag is `TAG_COLUMNS` inner products of all other words with secret 32-bit coefficients, modulo 2^64, in limbs of
   20 bits. Summed words are below 2^32, so a changed sum passes with probability 2^-32 for each column: 2^-64 in all,
   and whoever adds (without the round's secret) has one try.
4. Vectors are worked on block by block: memory is one block beside the vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

Words: TypeAlias = NDArray[np.uint32]

KEY_BYTES = 32
WORD_BOUND = 1 << 26
# 67 million words are 268 MB: as many values as the largest encrypted sum holds.
WORDS_MAX = 1 << 26
CHECK_WORDS = 8
TAG_COLUMNS = 2
_LIMB_BITS, _LIMBS = 20, 4
TAG_WORDS = TAG_COLUMNS * _LIMBS
CONTENT_START = CHECK_WORDS + TAG_WORDS
MASKS_MAX = 3 * CONTRIBUTORS_MAX + CONTRIBUTORS_MAX * CONTRIBUTORS_MAX // 4
_BLOCK_WORDS = 1 << 18
_TOP = (1 << 64) - 1


@dataclass(frozen=True)
class Mask:
    """A stream's key, and whether the stream is added or subtracted."""

    adds: bool
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ComityError(ErrorCode.INTERNAL, "a mask's key is 32 bytes")

    @property
    def inverse(self) -> Mask:
        """What takes this mask away."""
        return Mask(not self.adds, self.key)


def contribution(content: NDArray[np.uint32]) -> Words:
    """Return check words, an empty tag and the content. Raises `TOO_LARGE`."""
    if not 1 <= content.size <= WORDS_MAX - CONTENT_START:
        raise ComityError(ErrorCode.TOO_LARGE, "too many values for one secure sum", words=content.size)
    words: Words = np.zeros(CONTENT_START + content.size, np.uint32)
    words[:CHECK_WORDS] = 1
    words[CONTENT_START:] = content
    return words


def protect(words: Words, tag_key: bytes, masks: Sequence[Mask]) -> Words:
    """Return a contribution with its tag, masked.

    Raises:
        ComityError: `TOO_LARGE` for a word beyond `WORD_BOUND`; `INTERNAL` without an own mask, the round's and two
            pairs' (a single pair's would hide nothing from that other party).
    """
    if not 4 <= len(masks) <= CONTRIBUTORS_MAX + 1:
        raise ComityError(ErrorCode.INTERNAL, "masks need two or more other contributors", count=len(masks))
    if int(words.max()) >= WORD_BOUND:
        raise ComityError(ErrorCode.TOO_LARGE, "a word is too large to be summed", limit=WORD_BOUND)
    out = words.copy()
    for column, tag in enumerate(_tags(words, tag_key)):
        start = CHECK_WORDS + column * _LIMBS
        out[start : start + _LIMBS] = [(tag >> (_LIMB_BITS * limb)) % (1 << _LIMB_BITS) for limb in range(_LIMBS)]
    return apply(out, masks)


def apply(words: Words, masks: Sequence[Mask]) -> Words:
    """Add every mask's stream to `words`, in place, and return them."""
    if len(masks) > MASKS_MAX:
        raise ComityError(ErrorCode.INTERNAL, "too many masks", count=len(masks))
    for mask in masks:
        for start, stream in _stream(mask.key, words.size):
            block = words[start : start + stream.size]
            if mask.adds:
                block += stream
            else:
                block -= stream
    return words


def unmask(total: Words, tag_key: bytes, masks: Sequence[Mask], contributors: int) -> Words:
    """Return the content of a sum, shape (words - CONTENT_START,), in place of `total`.

    Args:
        total: the sum of the masked contributions modulo 2^32; it is overwritten.
        masks: what takes away all that is left in the sum.
        contributors: how many contributions are in it.

    Raises:
        ComityError: `SUM_MISMATCH` if check words or tag do not show a sum of that many.
    """
    apply(total, masks)
    if not bool((total[:CHECK_WORDS] == contributors).all()):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the check words do not show the number of contributors")
    limbs = [int(word) for word in total[CHECK_WORDS:CONTENT_START]]
    said = [
        sum(limb << (_LIMB_BITS * place) for place, limb in enumerate(limbs[start : start + _LIMBS])) & _TOP
        for start in range(0, TAG_WORDS, _LIMBS)
    ]
    if said != _tags(total, tag_key):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum is not that of the contributions")
    return total[CONTENT_START:]


def add_into(total: Words, part: Words) -> None:
    """Add a contribution to a running sum, modulo 2^32. Raises `CIPHERTEXT_INVALID` for another size."""
    if part.shape != total.shape:
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a contribution has another size", words=part.size)
    total += part


def _stream(key: bytes, words: int) -> Iterator[tuple[int, Words]]:
    """Yield a key's stream as (first word, block)."""
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(4 * min(words, _BLOCK_WORDS))
    for start in range(0, words, _BLOCK_WORDS):
        size = min(_BLOCK_WORDS, words - start)
        yield start, np.frombuffer(cipher.update(zeros[: 4 * size]), "<u4")


def _tags(words: Words, key: bytes) -> list[int]:
    """Return the inner products of everything but the tag itself with secret coefficients, modulo 2^64."""
    tags = []
    for column in range(TAG_COLUMNS):
        nonce = bytes([column]) + bytes(15)
        cipher = Cipher(algorithms.AES256(key), modes.CTR(nonce)).encryptor()
        total = 0
        for start in range(0, words.size, _BLOCK_WORDS):
            block = words[start : start + _BLOCK_WORDS].astype(np.uint64)
            if start == 0:
                block[CHECK_WORDS:CONTENT_START] = 0
            coefficients = np.frombuffer(cipher.update(bytes(4 * block.size)), "<u4").astype(np.uint64)
            total += int(coefficients @ block)  # wraps modulo 2^64, as it may
        tags.append(total & _TOP)
    return tags
