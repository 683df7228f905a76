"""Replies as words of uint32, and summed words as a weighted mean (profile `masked`).

Rules of `frame.replies`. Besides:
1. 2^25 - 1 levels: one value in a word, with room for 50 contributors; 1,024 times finer than under `agg-q16`.
2. Content: weight, limbs of weighed numbers, values in the order of x's arrays. A weighed number is 48 limbs of 2 bits,
   between which amounts below 2^23 are moved (`frame.limbs`), so that each stays below 2^26.
3. Exact integers (statistics) take the same words: |value| < 2^25.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.limbs import Cut
from comity_crypto.secagg.frame.replies import (
    Arrays,
    Bounds,
    Content,
    Decoded,
    check_contributors,
    check_integers,
    check_weight,
    judged,
    mean,
    quantise,
    unshifted,
)
from comity_crypto.secagg.masked.words import CONTENT_START, WORD_BOUND, WORDS_MAX, Words, contribution

LEVELS = (WORD_BOUND >> 1) - 1
INTEGER_BOUND = LEVELS
NUMBERS = Cut(limb_bits=2, places=48, moved_bits=23)


@dataclass(frozen=True)
class EncodedWords:
    """A contribution before tag and masks. `words`: shape (words,), uint32; it is secret, so it is not shown."""

    words: Words = field(repr=False)
    clipped: int  # coordinates that were clamped
    norm_clipped: bool
    weight: int  # w x 2^16

    @property
    def digest(self) -> str:
        """SHA-256 of the words: tells a repeated contribution from another one; it stays at home."""
        return hashlib.sha256(np.ascontiguousarray(self.words).data).hexdigest()


def words_for(layout: Content) -> int:
    """Return how many words a contribution of this layout has, all included. Raises `TOO_LARGE`."""
    words = CONTENT_START + _value_start(layout) + layout.values
    if words > WORDS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many values for one secure sum", words=words)
    return words


def encode(
    x_arrays: Arrays,
    y_arrays: Arrays,
    weight: int,
    clip_norm: float,
    value_range: float,
    prf_key: bytes,
    *,
    numbers: Sequence[int] = (),
) -> EncodedWords:
    """Encode one reply; arguments and refusals are those of `bfv.encoder.encode`."""
    layout = Content.of(x_arrays, len(numbers))
    words_for(layout)
    reply = judged(x_arrays, y_arrays, weight, Bounds(clip_norm, value_range), numbers)
    content: Words = np.empty(_value_start(layout) + layout.values, np.uint32)
    content[0] = weight
    content[1 : _value_start(layout)] = NUMBERS.limbs(reply.weighed, prf_key)
    values, scale = content[_value_start(layout) :], reply.scale * LEVELS
    # 26 bits of a level and 26 of the rounding are exact in a double.
    clipped = quantise(x_arrays, y_arrays, values, levels=LEVELS, scale=scale, prf_key=prf_key, random_bits=26)
    return EncodedWords(contribution(content), clipped, reply.norm_clipped, weight)


def decode(
    content: Words,
    contributors: int,
    x_arrays: Arrays,
    value_range: float,
    *,
    numbers: int = 0,
) -> Decoded:
    """Decode the opened sum of `contributors` encodings; refusals are those of `bfv.encoder.decode`.

    Args:
        content: what `words.unmask` returns, shape (words,). numbers: how many.
    """
    layout = Content.of(x_arrays, numbers)
    _check_content(content, contributors, _value_start(layout) + layout.values)
    weight = int(content[0])
    check_weight(weight, contributors)
    weighed = NUMBERS.totals(content[1 : _value_start(layout)].astype(np.int64), contributors)
    sums = unshifted(content[_value_start(layout) :].astype(np.int64), contributors, LEVELS)
    return mean(x_arrays, weight, weighed, sums, value_range / LEVELS)


def quantisation_bound(value_range: float, contributors: int, weight: float) -> float:
    """Return the largest error of a coordinate of the mean, clipping apart: one level for each contributor.

    Args:
        weight: the sum of w, as `Decoded.weight`.
    """
    return contributors * value_range / LEVELS / weight


def encode_integers(values: NDArray[np.int64]) -> EncodedWords:
    """Encode exact integers, |value| < 2^25. Raises `TOO_LARGE`."""
    check_integers(values, INTEGER_BOUND)
    return EncodedWords(contribution((values + LEVELS + 1).astype(np.uint32)), 0, False, 0)


def decode_integers(content: Words, contributors: int, values: int) -> NDArray[np.int64]:
    """Return the exact sums. Raises `SUM_MISMATCH` for a sum that nobody could have reached."""
    _check_content(content, contributors, values)
    return unshifted(content.astype(np.int64), contributors, LEVELS)


def _value_start(layout: Content) -> int:
    return 1 + layout.numbers * NUMBERS.places


def _check_content(content: Words, contributors: int, words: int) -> None:
    check_contributors(contributors)
    if content.shape != (words,):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum has another number of words")
