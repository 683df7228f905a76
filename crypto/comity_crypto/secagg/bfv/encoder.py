"""Replies as slots of BFV chunks, and summed slots as a weighted mean (secure-aggregation.md section 3).

Rules of `frame.replies`. Besides:
1. 32767 levels; two values share a slot in 22-bit fields, which 50 contributors cannot overflow.
2. Payload order: weight, limbs of weighed numbers, values in the order of x's arrays. Each chunk starts with 8 slots
   that hold 1.
3. A weighed number is 12 limbs of 8 bits, between which amounts below 2^31 are moved (`frame.limbs`): 50 limbs stay
   below the plain modulus.

For `agg-i32` (statistics) a slot carries one exact signed integer below 2^26; no weights, no clipping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, CHECK_SLOTS, Parameters
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

Slots: TypeAlias = NDArray[np.uint64]

LEVELS = 32767
_FIELD_BITS = 22
_FIELD_MASK = np.uint64((1 << _FIELD_BITS) - 1)
INTEGER_BOUND = (1 << 26) - 1
NUMBERS = Cut(limb_bits=8, places=12, moved_bits=31)


@dataclass(frozen=True)
class Layout(Content):
    """Where things lie in the slots."""

    @property
    def value_start(self) -> int:
        """Payload slot of the first value: one weight and the numbers come before."""
        return 1 + self.numbers * NUMBERS.places

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
    clipped: int  # coordinates that were clamped
    norm_clipped: bool
    weight: int  # w x 2^16

    @property
    def digest(self) -> str:
        """SHA-256 of the slots: tells a repeated contribution from another one; it stays at home."""
        return hashlib.sha256(np.ascontiguousarray(self.slots).data).hexdigest()


def encode(
    x_arrays: Arrays,
    y_arrays: Arrays,
    weight: int,
    clip_norm: float,
    value_range: float,
    prf_key: bytes,
    *,
    numbers: Sequence[int] = (),
) -> Encoded:
    """Encode one reply as `agg-q16` slots.

    Args:
        x_arrays: the order's arrays (floating point). y_arrays: the reply's: same names, shapes and dtypes.
        weight: w x 2^16, from `weight_of`.
        clip_norm: L2 bound of d over all arrays. value_range: largest |w d| of one coordinate.
        prf_key: 32 bytes, from a node secret and the order's digest.
        numbers: what is averaged exactly beside the arrays: integers from 0 to below 2^80.

    Raises:
        ComityError: `REPLY_SHAPE` (names, shapes, dtypes, not finite), `TOO_LARGE`.
    """
    layout = Layout.of(x_arrays, len(numbers))
    reply = judged(x_arrays, y_arrays, weight, Bounds(clip_norm, value_range), numbers)
    # The last field of an odd number of values is padded with 0.
    quantised: NDArray[np.uint16] = np.zeros(layout.values + layout.values % 2, np.uint16)
    scale = reply.scale * LEVELS
    clipped = quantise(x_arrays, y_arrays, quantised, levels=LEVELS, scale=scale, prf_key=prf_key, random_bits=32)
    payload: Slots = np.zeros(layout.chunks * AGG_Q16.payload_slots, np.uint64)
    payload[0] = weight
    payload[1 : layout.value_start] = NUMBERS.limbs(reply.weighed, prf_key)
    packed = payload[layout.value_start : layout.payload_slots]
    packed[:] = quantised[1::2]
    packed <<= np.uint64(_FIELD_BITS)
    packed |= quantised[0::2]
    return Encoded(_to_chunks(payload, AGG_Q16), clipped, reply.norm_clipped, weight)


def decode(
    sum_slots: Slots,
    contributors: int,
    x_arrays: Arrays,
    value_range: float,
    *,
    numbers: int = 0,
) -> Decoded:
    """Decode the decrypted sum of `contributors` encodings against the order's arrays.

    Args:
        sum_slots: shape (chunks, N), values below t. x_arrays, value_range: as in `encode`. numbers: how many.

    Raises:
        ComityError: `SUM_MISMATCH` if a check slot does not show `contributors`, or a weight, number or value is beyond
            what that many contributors can reach.
    """
    layout = Layout.of(x_arrays, numbers)
    payload = _from_chunks(sum_slots, contributors, layout.payload_slots, AGG_Q16)
    weight = int(payload[0])
    check_weight(weight, contributors)
    weighed = NUMBERS.totals(payload[1 : layout.value_start].astype(np.int64), contributors)
    sums = _fields(payload[layout.value_start :], layout.values, contributors)
    return mean(x_arrays, weight, weighed, sums, value_range / LEVELS)


def encode_integers(values: NDArray[np.int64]) -> Encoded:
    """Encode exact integers, |value| < 2^26, as `agg-i32` slots. Raises `TOO_LARGE`."""
    check_integers(values, INTEGER_BOUND)
    shifted = np.where(values < 0, values + AGG_I32.plain_modulus, values).astype(np.uint64)
    return Encoded(_to_chunks(shifted, AGG_I32), 0, False, 0)


def decode_integers(sum_slots: Slots, contributors: int, values: int) -> NDArray[np.int64]:
    """Return the exact sums. Raises `SUM_MISMATCH` (check slots, or a sum that nobody could have reached)."""
    signed = _from_chunks(sum_slots, contributors, values, AGG_I32).astype(np.int64)
    signed[signed > AGG_I32.plain_modulus // 2] -= AGG_I32.plain_modulus
    if signed.size and int(np.abs(signed).max()) > contributors * INTEGER_BOUND:
        raise ComityError(ErrorCode.SUM_MISMATCH, "a summed integer is impossible")
    return signed


def _to_chunks(payload: Slots, parameters: Parameters) -> Slots:
    chunks = parameters.chunks_for(payload.size)
    missing = chunks * parameters.payload_slots - payload.size
    padded = np.pad(payload, (0, missing)) if missing else payload
    slots: Slots = np.ones((chunks, parameters.ring_degree), np.uint64)
    slots[:, CHECK_SLOTS:] = padded.reshape(chunks, parameters.payload_slots)
    return slots


def _from_chunks(sum_slots: Slots, contributors: int, payload_slots: int, parameters: Parameters) -> Slots:
    check_contributors(contributors)
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
    return unshifted(sums[:values], contributors, LEVELS)
