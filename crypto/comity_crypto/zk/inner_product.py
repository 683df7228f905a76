"""The inner-product argument of Bulletproofs (Bünz et al. 2018, section 3): two vectors of length n in 2 log n points.

The prover halves both vectors once for each challenge u: with a = (a1, a2), b = (b1, b2),
L = <a1, G2> + <b2, H1> + <a1, b2> Q and R = <a2, G1> + <b1, H2> + <a2, b1> Q; then a' = u a1 + u^-1 a2,
b' = u^-1 b1 + u b2, G' = u^-1 G1 + u G2, H' = u H1 + u^-1 H2. The verifier unrolls all of it into one sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from py_arkworks_bls12381 import G1Point

from comity_crypto.zk.group import ORDER, combine, encode_point, scalar
from comity_crypto.zk.transcript import Transcript


@dataclass(frozen=True, slots=True)
class InnerProof:
    """L and R of each halving (48 bytes each), and the two numbers that are left."""

    left: tuple[bytes, ...]
    right: tuple[bytes, ...]
    a: int
    b: int


@dataclass(slots=True)
class _Folded:
    """Generators after some halvings: the true ones are `factor * points[i]`; one multiplication a point, not two."""

    points: list[G1Point]
    factors: list[int]

    def fold(self, low: int, high: int) -> None:
        """Replace both halves by low * first + high * second."""
        half = len(self.points) // 2
        points, factors = [], []
        for index in range(half):
            one, two = low * self.factors[index] % ORDER, high * self.factors[index + half] % ORDER
            points.append(self.points[index] + self.points[index + half] * scalar(two * pow(one, -1, ORDER)))
            factors.append(one)
        self.points, self.factors = points, factors

    def weighted(self, values: Sequence[int], start: int) -> list[int]:
        """Return `values` times the factors from `start` on."""
        return [value * factor % ORDER for value, factor in zip(values, self.factors[start:], strict=False)]


def prove(
    transcript: Transcript,
    left: Sequence[G1Point],
    right: Sequence[G1Point],
    right_factors: Sequence[int],
    inner: G1Point,
    a: Sequence[int],
    b: Sequence[int],
) -> InnerProof:
    """Argue that the commitment made of a over `left`, b over `right` times `right_factors`, and <a, b> over `inner`
    is known.

    Lengths are one power of two.
    """
    first, second = _Folded(list(left), [1] * len(left)), _Folded(list(right), list(right_factors))
    a, b, lefts, rights = list(a), list(b), [], []
    while len(a) > 1:
        half = len(a) // 2
        points = [*first.points[half:], *second.points[:half], inner]
        factors = [*first.weighted(a[:half], half), *second.weighted(b[half:], 0), dot(a[:half], b[half:])]
        lefts.append(encode_point(combine(points, factors)))
        points = [*first.points[:half], *second.points[half:], inner]
        factors = [*first.weighted(a[half:], 0), *second.weighted(b[:half], half), dot(a[half:], b[:half])]
        rights.append(encode_point(combine(points, factors)))
        u = halving(transcript, lefts[-1], rights[-1])
        inverse = pow(u, -1, ORDER)
        a = [(one * u + two * inverse) % ORDER for one, two in zip(a[:half], a[half:], strict=True)]
        b = [(one * inverse + two * u) % ORDER for one, two in zip(b[:half], b[half:], strict=True)]
        first.fold(inverse, u)
        second.fold(u, inverse)
    return InnerProof(tuple(lefts), tuple(rights), a[0], b[0])


def halving(transcript: Transcript, left: bytes, right: bytes) -> int:
    """Return the challenge of one halving."""
    transcript.absorb("L", left)
    transcript.absorb("R", right)
    return transcript.challenge("u")


def unrolled(challenges: Sequence[int], inverses: Sequence[int]) -> list[int]:
    """Return by which factor each of the 2^k first generators stands in the last one: u for a bit 1, u^-1 for 0.

    The first challenge decides by the highest bit; the second generators' factors are this list backwards.
    """
    factors = [1]
    for u, inverse in zip(challenges, inverses, strict=True):
        factors = [factor * each % ORDER for factor in factors for each in (inverse, u)]
    return factors


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the inner product modulo the group's order."""
    return sum(one * two for one, two in zip(a, b, strict=True)) % ORDER
