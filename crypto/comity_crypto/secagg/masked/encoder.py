"""From a reply to words of uint32, and from summed words to a weighted mean (profile `masked`).

The rules are those of `encoder` (secure-aggregation.md section 3), in another number format:
1. A value is w d / range * (2^25 - 1) by stochastic rounding, shifted to 1 .. 2^26 - 1: one value in a word, with room
   for 50 contributors. It is 1,024 times finer than under `agg-q16`.
2. Content: weight, two words for each metric by name (20 low bits, the rest), values in the order of x's arrays.
3. Exact integers (statistics) take the same words: |value| < 2^25.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.encoder import (
    WEIGHT_ONE,
    Arrays,
    Bounds,
    Decoded,
    Layout,
    MetricRange,
    check_same,
    differences,
    metric_fraction,
    norm_of,
)
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX, CONTRIBUTORS_MIN
from comity_crypto.secagg.masked.words import CONTENT_START, WORD_BOUND, WORDS_MAX, Words, contribution

LEVELS = (WORD_BOUND >> 1) - 1
_SHIFT = WORD_BOUND >> 1
INTEGER_BOUND = LEVELS
_METRIC_BITS = 20
_METRIC_ONE = 1 << _METRIC_BITS


@dataclass(frozen=True)
class EncodedWords:
    """A contribution before tag and masks. `words`: shape (words,), uint32; it is secret, so it is not shown."""

    words: Words = field(repr=False)
    clipped: int  # coordinates and metrics that were clamped
    norm_clipped: bool
    weight: int  # w x 2^16

    @property
    def digest(self) -> str:
        """SHA-256 of the words: tells a repeated contribution from another one; it stays at home."""
        return hashlib.sha256(np.ascontiguousarray(self.words).data).hexdigest()


def words_for(layout: Layout) -> int:
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
    metrics: Mapping[str, float] | None = None,
    metric_ranges: Mapping[str, MetricRange] | None = None,
) -> EncodedWords:
    """Encode one reply; arguments and refusals are those of `encoder.encode`."""
    bounds = Bounds(clip_norm, value_range)
    layout = Layout.of(x_arrays, metric_ranges)
    words_for(layout)
    check_same(x_arrays, y_arrays)
    if not 1 <= weight <= WEIGHT_ONE:
        raise ComityError(ErrorCode.REPLY_SHAPE, "a weight is above 0 and at most 1", weight=weight)
    norm = norm_of(x_arrays, y_arrays)
    factor = min(1.0, bounds.clip_norm / norm) if norm > 0 else 1.0
    content: Words = np.empty(_value_start(layout) + layout.values, np.uint32)
    content[0] = weight
    clipped = 0
    for place, (name, declared) in enumerate(layout.metrics):
        fraction, clamped = metric_fraction(name, (metrics or {}).get(name), declared)
        number = round(fraction * _METRIC_ONE) * weight
        content[1 + 2 * place : 3 + 2 * place] = number % _METRIC_ONE, number >> _METRIC_BITS
        clipped += clamped
    scale = factor * weight / WEIGHT_ONE / bounds.value_range * LEVELS
    clipped += _quantise(x_arrays, y_arrays, content[_value_start(layout) :], scale, prf_key)
    return EncodedWords(contribution(content), clipped, factor < 1.0, weight)


def decode(
    content: Words,
    contributors: int,
    x_arrays: Arrays,
    value_range: float,
    *,
    metric_ranges: Mapping[str, MetricRange] | None = None,
) -> Decoded:
    """Decode the opened sum of `contributors` encodings; refusals are those of `encoder.decode`.

    Args:
        content: what `masked_words.unmask` returns, shape (words,).
    """
    layout = Layout.of(x_arrays, metric_ranges)
    _check_content(content, contributors, _value_start(layout) + layout.values)
    weight = int(content[0])
    if not contributors <= weight <= contributors * WEIGHT_ONE:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum of weights is impossible")
    metrics: dict[str, float] = {}
    for place, (name, declared) in enumerate(layout.metrics):
        low, high = (int(word) for word in content[1 + 2 * place : 3 + 2 * place])
        fraction = (low + (high << _METRIC_BITS)) / (_METRIC_ONE * weight)
        if fraction > 1.0:
            raise ComityError(ErrorCode.SUM_MISMATCH, "a summed metric is impossible")
        metrics[name] = declared.low + fraction * (declared.high - declared.low)
    sums = _levels(content[_value_start(layout) :], contributors)
    step = value_range / LEVELS * WEIGHT_ONE / weight
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    for name, array in x_arrays.items():
        delta = sums[start : start + array.size].astype(np.float64)
        delta *= step
        delta += array.reshape(-1)
        arrays[name] = delta.astype(array.dtype).reshape(array.shape)
        start += array.size
    return Decoded(arrays, weight / WEIGHT_ONE, metrics)


def quantisation_bound(value_range: float, contributors: int, weight: float) -> float:
    """Return the largest error of a coordinate of the mean, clipping apart: one level for each contributor.

    Args:
        weight: the sum of w, as `Decoded.weight`.
    """
    return contributors * value_range / LEVELS / weight


def encode_integers(values: NDArray[np.int64]) -> EncodedWords:
    """Encode exact integers, |value| < 2^25. Raises `TOO_LARGE`."""
    # By smallest and largest: the smallest int64 has no absolute value.
    if values.ndim != 1 or (
        values.size and not -INTEGER_BOUND <= int(values.min()) <= int(values.max()) <= INTEGER_BOUND
    ):
        raise ComityError(ErrorCode.TOO_LARGE, "a summed integer is below 2^25", limit=INTEGER_BOUND)
    return EncodedWords(contribution((values + _SHIFT).astype(np.uint32)), 0, False, 0)


def decode_integers(content: Words, contributors: int, values: int) -> NDArray[np.int64]:
    """Return the exact sums. Raises `SUM_MISMATCH` for a sum that nobody could have reached."""
    _check_content(content, contributors, values)
    return _levels(content, contributors)


def _value_start(layout: Layout) -> int:
    return 1 + 2 * len(layout.metrics)


def _check_content(content: Words, contributors: int, words: int) -> None:
    if not CONTRIBUTORS_MIN <= contributors <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "3 to 50 contributors", contributors=contributors)
    if content.shape != (words,):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum has another number of words")


def _levels(words: Words, contributors: int) -> NDArray[np.int64]:
    """Return summed levels, shape (values,), each within +-contributors x LEVELS. Raises `SUM_MISMATCH`."""
    sums = words.astype(np.int64)
    sums -= contributors * _SHIFT
    if sums.size and int(np.abs(sums).max()) > contributors * LEVELS:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed value is impossible")
    return sums


def _quantise(x: Arrays, y: Arrays, out: Words, scale: float, prf_key: bytes) -> int:
    """Fill `out` with shifted levels (1 .. 2^26 - 1); returns how many were clamped. Raises `REPLY_SHAPE`."""
    if not math.isfinite(scale):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply cannot be scaled")
    stream = Cipher(algorithms.AES256(prf_key), modes.CTR(bytes(16))).encryptor()
    clipped = start = 0
    for block in differences(x, y):
        block *= scale
        clipped += int(np.count_nonzero(np.abs(block) > LEVELS))
        np.clip(block, -LEVELS, LEVELS, out=block)
        # floor(v + u) with u uniform in [0, 1) has the mean v; u has 26 bits: with the 26 of a level it stays exact.
        block += (np.frombuffer(stream.update(bytes(4 * block.size)), "<u4") >> np.uint32(6)) * 2.0**-26
        np.floor(block, out=block)
        block += _SHIFT
        out[start : start + block.size] = block
        start += block.size
    return clipped
