"""BLS12-381 G1 as the group of commitments and proofs: canonical bytes, generators, sums of multiples.

Rules:
1. A point that enters is decoded with its subgroup check, is not the identity, and is spelt as it would be written
   again: the engine alone reads several spellings of the identity (any body behind its flag).
2. A scalar is 32 bytes, big-endian, below the group's order.
3. Generators come from hashing their names to the curve (RFC 9380), so nobody knows a discrete logarithm between any
   two of them; `independent` derives the same bytes with another implementation.
4. The engine is not constant-time: proofs are made at the owner's own node, out of a stranger's sight.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from threading import Lock

from py_arkworks_bls12381 import G1Point, Scalar

from comity.wire.errors import ComityError, ErrorCode

POINT_BYTES = 48
SCALAR_BYTES = 32
# The order r of the group.
ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
# Generators of one kind; a proof over 128 values of 32 bits needs 4,096.
GENERATORS_MAX = 1 << 16

_DST = b"COMITY_ZK_V1_BLS12381G1_XMD:SHA-256_SSWU_RO_"


def refused(detail: str) -> ComityError:
    """Return the refusal of a proof; `detail` says which of its parts, never a value."""
    return ComityError(ErrorCode.CLAIM_UNPROVEN, detail)


def decode_point(data: bytes) -> G1Point:
    """Return the point that 48 bytes spell. Raises `CLAIM_UNPROVEN` for all that rule 1 refuses."""
    if len(data) != POINT_BYTES:
        raise refused("a point has 48 bytes")
    try:
        point = G1Point.from_compressed_bytes(data)
    except ValueError as error:
        raise refused("not a point of the group") from error
    if point == G1Point.identity() or encode_point(point) != data:
        raise refused("the identity, or another spelling of a point")
    return point


def encode_point(point: G1Point) -> bytes:
    """Return the 48 bytes of a point, compressed."""
    return bytes(point.to_compressed_bytes())


def decode_scalar(data: bytes) -> int:
    """Return the number that 32 bytes spell. Raises `CLAIM_UNPROVEN` from the group's order on."""
    value = int.from_bytes(data, "big")
    if len(data) != SCALAR_BYTES or value >= ORDER:
        raise refused("a scalar has 32 bytes and lies below the group's order")
    return value


def encode_scalar(value: int) -> bytes:
    """Return the 32 bytes of a number modulo the group's order."""
    return (value % ORDER).to_bytes(SCALAR_BYTES, "big")


def random_scalar() -> int:
    """Return a uniform number from 1 to the group's order - 1, from the system's source."""
    return secrets.randbelow(ORDER - 1) + 1


def scalar(value: int) -> Scalar:
    """Return the engine's form of a number modulo the group's order."""
    return Scalar.from_le_bytes((value % ORDER).to_bytes(SCALAR_BYTES, "little"))


def combine(points: Sequence[G1Point], factors: Sequence[int]) -> G1Point:
    """Return the sum of `factors[i] * points[i]`."""
    if len(points) != len(factors):
        raise ValueError("as many factors as points")
    return G1Point.multiexp_unchecked(list(points), [scalar(each) for each in factors])


def hash_to_group(name: str) -> G1Point:
    """Return the generator called `name`."""
    return G1Point.hash_to_curve(name.encode("ascii"), _DST)


class Series:
    """The generators `<name>/0`, `<name>/1`, … made when they are first needed (about 0.2 ms each) and kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: list[G1Point] = []
        self._lock = Lock()

    def first(self, count: int) -> list[G1Point]:
        """Return the first `count`. Raises `ValueError` above `GENERATORS_MAX`."""
        if not 0 <= count <= GENERATORS_MAX:
            raise ValueError("too many generators")
        with self._lock:
            for index in range(len(self._made), count):
                self._made.append(hash_to_group(f"{self._name}/{index}"))
            return self._made[:count]


VALUE = hash_to_group("value")
BLINDING = hash_to_group("blinding")
INNER = hash_to_group("inner")
LEFT = Series("left")
RIGHT = Series("right")
VECTOR = Series("vector")
