"""From a reply to slots, and from summed slots to a weighted mean (secure-aggregation.md section 3).

1. d = y - x, clipped together over all arrays to the L2 norm `clip_norm`; w = min(examples, cohort, weight_max) /
   weight_max, rounded to a multiple of 2^-16 *before* it multiplies d, so that the mean is exact for the weights used.
2. A value is w d / range * 32767 by stochastic rounding, shifted to 1 .. 65535; two of them share a slot in 22-bit
   fields, which 50 contributors cannot overflow.
3. The rounding is a pseudo-random function of a key: the same reply under the same key gives the same integers.
4. Payload order: weight, metrics by name, values in the order of x's arrays. Each chunk starts with 8 slots that
   hold 1.
5. Nothing is dropped in silence: coordinates beyond the range are counted, the clip of the norm is reported, values
   that are not finite are refused.

For `agg-i32` (statistics) a slot carries one exact signed integer below 2^26; no weights, no clipping.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, CHECK_SLOTS, Parameters
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX, CONTRIBUTORS_MIN

Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]
Slots: TypeAlias = NDArray[np.uint64]

LEVELS = 32767
_SHIFT = 32768
_FIELD_BITS = 22
_FIELD_MASK = np.uint64((1 << _FIELD_BITS) - 1)
WEIGHT_ONE = 1 << 16
_METRIC_ONE = 1 << 20
METRICS_MAX = 256
INTEGER_BOUND = (1 << 26) - 1
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
class MetricRange:
    """The declared range of a metric; a value beyond it is clamped and counted."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ComityError(ErrorCode.MALFORMED, "a metric's range is two finite numbers, the lower first")


@dataclass(frozen=True)
class Layout:
    """Where things lie in the slots; every contributor and the lead derive the same one from order and terms."""

    values: int
    metrics: tuple[tuple[str, MetricRange], ...] = ()

    @classmethod
    def of(cls, x_arrays: Arrays, metrics: Mapping[str, MetricRange] | None = None) -> Layout:
        """Return the layout for the order's arrays and the declared metrics. Raises `REPLY_SHAPE`, `TOO_LARGE`."""
        for name, array in x_arrays.items():
            if array.dtype.kind != "f":
                raise ComityError(ErrorCode.REPLY_SHAPE, f"array {name[:64]!r} is not of floating point")
        declared = tuple(sorted((metrics or {}).items()))
        if len(declared) > METRICS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many metrics", count=len(declared))
        return cls(sum(array.size for array in x_arrays.values()), declared)

    @property
    def value_start(self) -> int:
        """Payload slot of the first value: one weight and the metrics come before."""
        return 1 + len(self.metrics)

    @property
    def payload_slots(self) -> int:
        """Number of payload slots."""
        return self.value_start + (self.values + 1) // 2

    @property
    def chunks(self) -> int:
        """Number of `agg-q16` chunks. Raises `TOO_LARGE`."""
        return AGG_Q16.chunks_for(self.payload_slots)


@dataclass(frozen=True)
class Encoded:
    """A contribution before masking. `slots`: shape (chunks, N), uint64; it is secret, so it is not shown."""

    slots: Slots = field(repr=False)
    clipped: int  # coordinates and metrics that were clamped
    norm_clipped: bool
    weight: int  # w x 2^16

    @property
    def digest(self) -> str:
        """SHA-256 of the slots: tells a repeated contribution from another one; it stays at home."""
        return hashlib.sha256(np.ascontiguousarray(self.slots).data).hexdigest()


@dataclass(frozen=True)
class Decoded:
    """The weighted mean: x + sum(w d) / sum(w), with x's names, shapes and dtypes."""

    arrays: dict[str, NDArray[np.generic]] = field(repr=False)
    weight: float  # sum of w; times weight_max it is the number of examples
    metrics: dict[str, float]


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
) -> Encoded:
    """Encode one reply as `agg-q16` slots.

    Args:
        x_arrays: the order's arrays (floating point). y_arrays: the reply's: same names, shapes and dtypes.
        weight: w x 2^16, from `weight_of`.
        clip_norm: L2 bound of d over all arrays. value_range: largest |w d| of one coordinate.
        prf_key: 32 bytes, from a node secret and the order's digest.
        metrics: the reply's numbers. metric_ranges: the declared ones; a missing one is refused, others are ignored.

    Raises:
        ComityError: `REPLY_SHAPE` (names, shapes, dtypes, not finite, a declared metric missing), `TOO_LARGE`.
    """
    bounds = Bounds(clip_norm, value_range)
    layout = Layout.of(x_arrays, metric_ranges)
    check_same(x_arrays, y_arrays)
    if not 1 <= weight <= WEIGHT_ONE:
        raise ComityError(ErrorCode.REPLY_SHAPE, "a weight is above 0 and at most 1", weight=weight)
    norm = norm_of(x_arrays, y_arrays)
    factor = min(1.0, bounds.clip_norm / norm) if norm > 0 else 1.0
    scale = factor * weight / WEIGHT_ONE / bounds.value_range * LEVELS
    quantised, clipped = _quantise(x_arrays, y_arrays, layout.values, scale, prf_key)
    payload: Slots = np.zeros(layout.chunks * AGG_Q16.payload_slots, np.uint64)
    payload[0] = weight
    for place, (name, declared) in enumerate(layout.metrics):
        fraction, clamped = metric_fraction(name, (metrics or {}).get(name), declared)
        payload[1 + place] = round(fraction * _METRIC_ONE) * weight
        clipped += clamped
    packed = payload[layout.value_start : layout.payload_slots]
    packed[:] = quantised[1::2]
    packed <<= np.uint64(_FIELD_BITS)
    packed |= quantised[0::2]
    return Encoded(_to_chunks(payload, AGG_Q16), clipped, factor < 1.0, weight)


def decode(
    sum_slots: Slots,
    contributors: int,
    x_arrays: Arrays,
    value_range: float,
    *,
    metric_ranges: Mapping[str, MetricRange] | None = None,
) -> Decoded:
    """Decode the decrypted sum of `contributors` encodings against the order's arrays.

    Args:
        sum_slots: shape (chunks, N), values below t. x_arrays, value_range, metric_ranges: as in `encode`.

    Raises:
        ComityError: `SUM_MISMATCH` if a check slot does not show `contributors`, or a weight, metric or value is beyond
            what that many contributors can reach.
    """
    layout = Layout.of(x_arrays, metric_ranges)
    payload = _from_chunks(sum_slots, contributors, layout.payload_slots, AGG_Q16)
    weight = int(payload[0])
    if not contributors <= weight <= contributors * WEIGHT_ONE:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum of weights is impossible")
    metrics: dict[str, float] = {}
    for place, (name, declared) in enumerate(layout.metrics):
        fraction = int(payload[1 + place]) / (_METRIC_ONE * weight)
        if fraction > 1.0:
            raise ComityError(ErrorCode.SUM_MISMATCH, "a summed metric is impossible")
        metrics[name] = declared.low + fraction * (declared.high - declared.low)
    sums = _fields(payload[layout.value_start :], layout.values, contributors)
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


def encode_integers(values: NDArray[np.int64]) -> Encoded:
    """Encode exact integers, |value| < 2^26, as `agg-i32` slots. Raises `TOO_LARGE`."""
    # By smallest and largest: the smallest int64 has no absolute value.
    if values.ndim != 1 or (
        values.size and not -INTEGER_BOUND <= int(values.min()) <= int(values.max()) <= INTEGER_BOUND
    ):
        raise ComityError(ErrorCode.TOO_LARGE, "a summed integer is below 2^26", limit=INTEGER_BOUND)
    shifted = np.where(values < 0, values + AGG_I32.plain_modulus, values).astype(np.uint64)
    return Encoded(_to_chunks(shifted, AGG_I32), 0, False, 0)


def decode_integers(sum_slots: Slots, contributors: int, values: int) -> NDArray[np.int64]:
    """Return the exact sums. Raises `SUM_MISMATCH` (check slots, or a sum that nobody could have reached)."""
    signed = _from_chunks(sum_slots, contributors, values, AGG_I32).astype(np.int64)
    signed[signed > AGG_I32.plain_modulus // 2] -= AGG_I32.plain_modulus
    if signed.size and int(np.abs(signed).max()) > contributors * INTEGER_BOUND:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed integer is impossible")
    return signed


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
    squared = math.fsum(float(block @ block) for block in differences(x_arrays, y_arrays))
    if not math.isfinite(squared):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply holds values that are not finite")
    return math.sqrt(squared)


def _quantise(x: Arrays, y: Arrays, values: int, scale: float, prf_key: bytes) -> tuple[NDArray[np.uint16], int]:
    """Return shifted levels (1 .. 65535; the last of an odd number is padded with 0), and how many were clamped."""
    out: NDArray[np.uint16] = np.zeros(values + values % 2, np.uint16)
    stream = Cipher(algorithms.AES256(prf_key), modes.CTR(bytes(16))).encryptor()
    clipped = start = 0
    for block in differences(x, y):
        block *= scale
        clipped += int(np.count_nonzero(np.abs(block) > LEVELS))
        np.clip(block, -LEVELS, LEVELS, out=block)
        # floor(v + u) with u uniform in [0, 1) has the mean v; u has 32 bits, so the largest level stays in range.
        block += np.frombuffer(stream.update(bytes(4 * block.size)), "<u4") * 2.0**-32
        np.floor(block, out=block)
        block += _SHIFT
        out[start : start + block.size] = block
        start += block.size
    return out, clipped


def metric_fraction(name: str, value: float | None, declared: MetricRange) -> tuple[float, int]:
    """Return where in its range a metric lies (0 to 1), and 1 if it was clamped. Raises `REPLY_SHAPE`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ComityError(ErrorCode.REPLY_SHAPE, f"metric {name[:64]!r} is missing or not a finite number")
    clamped = min(max(value, declared.low), declared.high)
    return (clamped - declared.low) / (declared.high - declared.low), int(clamped != value)


def _to_chunks(payload: Slots, parameters: Parameters) -> Slots:
    chunks = parameters.chunks_for(payload.size)
    missing = chunks * parameters.payload_slots - payload.size
    padded = np.pad(payload, (0, missing)) if missing else payload
    slots: Slots = np.ones((chunks, parameters.ring_degree), np.uint64)
    slots[:, CHECK_SLOTS:] = padded.reshape(chunks, parameters.payload_slots)
    return slots


def _from_chunks(sum_slots: Slots, contributors: int, payload_slots: int, parameters: Parameters) -> Slots:
    if not CONTRIBUTORS_MIN <= contributors <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "3 to 50 contributors", contributors=contributors)
    if sum_slots.shape != (parameters.chunks_for(payload_slots), parameters.ring_degree):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the sum has another number of slots")
    if not bool((sum_slots[:, :CHECK_SLOTS] == contributors).all()):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the check slots do not show the number of contributors")
    payload = sum_slots[:, CHECK_SLOTS:].reshape(-1)
    if bool(payload[payload_slots:].any()):
        raise ComityError(ErrorCode.SUM_MISMATCH, "the padding of the sum is not empty")
    return payload[:payload_slots]


def _fields(packed: Slots, values: int, contributors: int) -> NDArray[np.int32]:
    """Split summed slots into summed levels, shape (values,), each within +-contributors x 32767."""
    sums = np.empty(2 * packed.size, np.int32)
    sums[0::2] = packed & _FIELD_MASK
    sums[1::2] = np.minimum(packed >> np.uint64(_FIELD_BITS), np.uint64(1 << 30))
    if values % 2 and sums[values] != 0:
        raise ComityError(ErrorCode.SUM_MISMATCH, "the padding of the sum is not empty")
    sums = sums[:values]
    sums -= contributors * _SHIFT
    if values and int(np.abs(sums).max()) > contributors * LEVELS:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed value is impossible")
    return sums
