"""From a reply to levels, and from summed levels to a weighted mean: what all number formats share.

Source: secure-aggregation.md section 3.

1. d = y - x, clipped together over all arrays to the L2 norm `clip_norm`; w = min(examples, cohort, weight_max) /
   weight_max, rounded to a multiple of 2^-16 *before* it multiplies d, so that the mean is exact for the weights used.
2. A value is w d / range * levels by stochastic rounding, shifted to 1 .. 2 levels + 1.
3. The rounding is a pseudo-random function of a key: the same reply under the same key gives the same integers.
4. Nothing is dropped in silence: coordinates beyond the range are counted, the clip of the norm is reported, values
   that are not finite are refused.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX, CONTRIBUTORS_MIN

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

WEIGHT_ONE = 1 << 16
# An app's number is below 2^80; times a weight it fills the 96 bits that the formats cut into limbs.
NUMBER_BITS = 80
NUMBERS_MAX = 64
_BLOCK_VALUES = 1 << 18


@dataclass(frozen=True)
class Bounds:
    """What the agreement's terms fix: the L2 clip, and the largest |w d| that a slot can carry."""

    clip_norm: float
    value_range: float

    def __post_init__(self) -> None:
        for value in (self.clip_norm, self.value_range):
            if not (math.isfinite(value) and value > 0):
                raise ComityError(ErrorCode.MALFORMED, "clip and range are positive numbers")

    @classmethod
    def default(cls, clip_norm: float, values: int) -> Bounds:
        """Return the design's default: range = 8 clip / sqrt(size)."""
        return cls(clip_norm, 8.0 * clip_norm / math.sqrt(max(1, values)))


@dataclass(frozen=True)
class Content:
    """What a contribution holds beside its weight; all derive the same from order and terms."""

    values: int
    numbers: int = 0

    @classmethod
    def of(cls, x_arrays: Arrays, numbers: int = 0) -> Self:
        """Return what the order's arrays and so many numbers ask for. Raises `REPLY_SHAPE`, `TOO_LARGE`."""
        for name, array in x_arrays.items():
            if array.dtype.kind != "f":
                raise ComityError(ErrorCode.REPLY_SHAPE, f"array {name[:64]!r} is not of floating point")
        if not 0 <= numbers <= NUMBERS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many numbers", count=numbers)
        return cls(sum(array.size for array in x_arrays.values()), numbers)


@dataclass(frozen=True)
class Judged:
    """A reply that may be encoded.

    Args:
        scale: what y - x is multiplied with, to lie within -1 and 1.
        weighed: the numbers, each times the weight.
    """

    scale: float
    norm_clipped: bool
    weighed: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Decoded:
    """The weighted mean: x + sum(w d) / sum(w), with x's names, shapes and dtypes."""

    arrays: dict[str, NDArray[np.generic]] = field(repr=False)
    weight: float  # sum of w; times weight_max it is the number of examples
    weighed: tuple[int, ...] = ()  # sums of w x 2^16 x number, exact


def rounding_key(node_secret: bytes, agreement: str, order_digest: str) -> bytes:
    """Return the 32-byte key of the stochastic rounding for one order, from a secret that only this node has."""
    place = b"comity/secagg/rounding/v1\x00" + canonical([agreement, order_digest])
    return hmac.digest(node_secret, place, "sha256")


def weight_of(examples: int, cohort: int, weight_max: int) -> int:
    """Return w x 2^16 = min(examples, measured cohort, weight_max) / weight_max, at least one unit.

    Raises:
        ComityError: `REPLY_SHAPE` without a positive number of examples and cohort.
    """
    counted = min(examples, cohort, weight_max)
    if counted <= 0:
        raise ComityError(ErrorCode.REPLY_SHAPE, "a contribution needs one example or more", examples=examples)
    return max(1, round(counted * WEIGHT_ONE / weight_max))


def judged(x_arrays: Arrays, y_arrays: Arrays, weight: int, bounds: Bounds, numbers: Sequence[int]) -> Judged:
    """Return what an encoding begins with; arguments and refusals are those of `encode` in every format."""
    check_same(x_arrays, y_arrays)
    if not 1 <= weight <= WEIGHT_ONE:
        raise ComityError(ErrorCode.REPLY_SHAPE, "a weight is above 0 and at most 1", weight=weight)
    norm = norm_of(x_arrays, y_arrays)
    factor = min(1.0, bounds.clip_norm / norm) if norm > 0 else 1.0
    scale = factor * weight / WEIGHT_ONE / bounds.value_range
    if not math.isfinite(scale):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply cannot be scaled")
    if any(not 0 <= number < 1 << NUMBER_BITS for number in numbers):
        raise ComityError(ErrorCode.TOO_LARGE, "a number is too large to be summed")
    return Judged(scale, factor < 1.0, tuple(number * weight for number in numbers))


def quantise(
    x: Arrays, y: Arrays, out: NDArray[Any], *, levels: int, scale: float, prf_key: bytes, random_bits: int
) -> int:
    """Fill `out` with shifted levels (1 .. 2 levels + 1); returns how many were clamped.

    Args:
        random_bits: of the rounding; with the bits of a level they stay exact in a double.
    """
    stream = Cipher(algorithms.AES256(prf_key), modes.CTR(bytes(16))).encryptor()
    spare = np.uint32(32 - random_bits)
    clipped = start = 0
    for block in differences(x, y):
        block *= scale
        clipped += int(np.count_nonzero(np.abs(block) > levels))
        np.clip(block, -levels, levels, out=block)
        # floor(v + u) with u uniform in [0, 1) has the mean v; u is so coarse that the largest level stays one.
        block += (np.frombuffer(stream.update(bytes(4 * block.size)), "<u4") >> spare) * 2.0**-random_bits
        np.floor(block, out=block)
        block += levels + 1
        out[start : start + block.size] = block
        start += block.size
    return clipped


def check_contributors(contributors: int) -> None:
    """Refuse a sum of too few or too many. Raises `PARTICIPANTS_TOO_FEW`."""
    if not CONTRIBUTORS_MIN <= contributors <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "3 to 50 contributors", contributors=contributors)


def unshifted(sums: NDArray[Any], contributors: int, levels: int) -> NDArray[Any]:
    """Take the shift out of summed levels, in place. Raises `SUM_MISMATCH` for one that nobody could have reached."""
    sums -= contributors * (levels + 1)
    if sums.size and int(np.abs(sums).max()) > contributors * levels:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed value is impossible")
    return sums


def check_weight(weight: int, contributors: int) -> None:
    """Refuse a sum of weights that nobody could have reached. Raises `SUM_MISMATCH`."""
    if not contributors <= weight <= contributors * WEIGHT_ONE:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum of weights is impossible")


def mean(x_arrays: Arrays, weight: int, weighed: Sequence[int], sums: NDArray[Any], level: float) -> Decoded:
    """Return the weighted mean.

    Args:
        weight: sum of the weights, which `check_weight` has judged. weighed: sums of `Judged.weighed`.
        sums: summed levels, shape (values,). level: what one level is worth.

    Raises:
        ComityError: `SUM_MISMATCH` for a number that nobody could have reached.
    """
    if any(total >= weight << NUMBER_BITS for total in weighed):
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed number is impossible")
    step = level * WEIGHT_ONE / weight
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    for name, array in x_arrays.items():
        delta = sums[start : start + array.size].astype(np.float64)
        delta *= step
        delta += array.reshape(-1)
        arrays[name] = delta.astype(array.dtype).reshape(array.shape)
        start += array.size
    return Decoded(arrays, weight / WEIGHT_ONE, tuple(weighed))


def check_integers(values: NDArray[np.int64], bound: int) -> None:
    """Refuse integers that cannot be summed exactly. Raises `TOO_LARGE`."""
    # By smallest and largest: the smallest int64 has no absolute value.
    if values.ndim != 1 or (values.size and not -bound <= int(values.min()) <= int(values.max()) <= bound):
        raise ComityError(ErrorCode.TOO_LARGE, "an integer is too large to be summed", limit=bound)


def check_same(x_arrays: Arrays, y_arrays: Arrays) -> None:
    """Refuse a reply with other names, shapes or dtypes. Raises `REPLY_SHAPE`."""
    if set(x_arrays) != set(y_arrays):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply's arrays have other names than the order's")
    for name, x in x_arrays.items():
        y = y_arrays[name]
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ComityError(ErrorCode.REPLY_SHAPE, f"array {name[:64]!r} has another shape or dtype")


def differences(x_arrays: Arrays, y_arrays: Arrays) -> Iterator[NDArray[np.float64]]:
    """Yield y - x in float64, flat, at most `_BLOCK_VALUES` at a time, in the order of x's arrays."""
    for name, x in x_arrays.items():
        flat_x, flat_y = x.reshape(-1), y_arrays[name].reshape(-1)
        for start in range(0, x.size, _BLOCK_VALUES):
            block = flat_y[start : start + _BLOCK_VALUES].astype(np.float64)
            block -= flat_x[start : start + _BLOCK_VALUES]
            yield block


def norm_of(x_arrays: Arrays, y_arrays: Arrays) -> float:
    """Return the L2 norm of y - x over all arrays. Raises `REPLY_SHAPE` for values that are not finite."""
    # Not by BLAS: its threads would spin for a tenth of a second after every block, on cores that others wait for.
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        squared = math.fsum(float(np.square(block, out=block).sum()) for block in differences(x_arrays, y_arrays))
    if not math.isfinite(squared):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply holds values that are not finite")
    return math.sqrt(squared)
