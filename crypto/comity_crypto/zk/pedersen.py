"""Pedersen commitments to one number and to vectors of them: hiding for ever, binding under discrete logarithms.

C = v * VALUE + r * BLINDING, with r uniform; for a vector, one generator for each place. Commitments add up: the sum of
several is a commitment to the sum, under the sum of their blindings, and so an aggregate is checked against its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from py_arkworks_bls12381 import G1Point

from comity_crypto.zk.group import (
    BLINDING,
    VALUE,
    VECTOR,
    combine,
    decode_point,
    encode_point,
    random_scalar,
    refused,
)

VECTOR_MAX = 1 << 16
# A sum over parties and places stays far below the group's order, so equal modulo it means equal.
ABSOLUTE_MAX = 1 << 128
PARTS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Opening:
    """What opens a commitment: the values and the blinding. Secret; stays out of `repr` and so out of logs."""

    values: tuple[int, ...] = field(repr=False)
    blinding: int = field(repr=False)


def commit(value: int, blinding: int | None = None) -> tuple[bytes, Opening]:
    """Commit to one number; returns the commitment (48 bytes) and its opening. Raises `ValueError` beyond 2^128."""
    return _commit([VALUE], [value], blinding)


def commit_vector(values: Sequence[int], blinding: int | None = None) -> tuple[bytes, Opening]:
    """Commit to 1 to 65,536 numbers in order. Raises `ValueError` beyond that, or beyond 2^128."""
    if not 1 <= len(values) <= VECTOR_MAX:
        raise ValueError("a vector of 1 to 65,536 numbers")
    return _commit(VECTOR.first(len(values)), values, blinding)


def opens(commitment: bytes, opening: Opening) -> bool:
    """Tell whether `opening` opens a commitment to one number. Raises `CLAIM_UNPROVEN` for bytes that are no point."""
    if len(opening.values) != 1:
        return False
    return decode_point(commitment) == _point([VALUE], opening.values, opening.blinding)


def verify_sum(commitments: Sequence[bytes], total: int, blinding: int) -> None:
    """Check that `total` is the sum of what was committed to; `blinding` is the sum of the blindings.

    Raises:
        ComityError: `CLAIM_UNPROVEN`.
    """
    _verify_sum(commitments, [VALUE], [total], blinding)


def verify_vector_sum(commitments: Sequence[bytes], totals: Sequence[int], blinding: int) -> None:
    """As `verify_sum`, for commitments to vectors: an aggregate that was altered in one place does not pass."""
    if not 1 <= len(totals) <= VECTOR_MAX:
        raise refused("a vector of 1 to 65,536 numbers")
    _verify_sum(commitments, VECTOR.first(len(totals)), totals, blinding)


def _commit(generators: Sequence[G1Point], values: Sequence[int], blinding: int | None) -> tuple[bytes, Opening]:
    if any(abs(value) > ABSOLUTE_MAX for value in values):
        raise ValueError("a number beyond 2^128")
    opening = Opening(tuple(values), random_scalar() if blinding is None else blinding)
    return encode_point(_point(generators, opening.values, opening.blinding)), opening


def _point(generators: Sequence[G1Point], values: Sequence[int], blinding: int) -> G1Point:
    return combine([*generators, BLINDING], [*values, blinding])


def _verify_sum(
    commitments: Sequence[bytes], generators: Sequence[G1Point], totals: Sequence[int], blinding: int
) -> None:
    if not 1 <= len(commitments) <= PARTS_MAX or any(abs(value) > ABSOLUTE_MAX for value in totals):
        raise refused("a sum has 1 to 1,024 parts and stays within 2^128")
    summed = G1Point.identity()
    for each in commitments:
        summed = summed + decode_point(each)
    if summed != _point(generators, totals, blinding):
        raise refused("the aggregate is not the sum of the commitments")
