"""Aggregated range proofs: every one of several committed numbers lies in [0, 2^bits) (Bünz et al. 2018, section 4.3).

Rules:
1. What is proven stands in the transcript first: bits, count, and the commitments as bytes.
2. A proof's size follows from bits and count alone and is checked before anything is decoded:
   48 (4 + 2 log2(bits * places)) + 160 bytes, where places is count rounded up to a power of two.
3. Places beyond count hold the number 0 under the blinding 0 on both sides: nobody can put anything else there.
4. Both equations of the paper are checked as one sum under a random weight that the prover cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from py_arkworks_bls12381 import G1Point

from comity_crypto.zk import inner_product
from comity_crypto.zk.group import (
    BLINDING,
    INNER,
    LEFT,
    ORDER,
    POINT_BYTES,
    RIGHT,
    SCALAR_BYTES,
    VALUE,
    combine,
    decode_point,
    decode_scalar,
    encode_point,
    encode_scalar,
    random_scalar,
    refused,
    scalar,
)
from comity_crypto.zk.inner_product import InnerProof, dot
from comity_crypto.zk.transcript import Transcript

BITS = (8, 16, 32, 64)
COUNT_MAX = 128
PLACES_BITS_MAX = 8192


@dataclass(frozen=True, slots=True)
class RangeProof:
    """One proof, by the letters of the paper: points as bytes, numbers as numbers."""

    a: bytes
    s: bytes
    t1: bytes
    t2: bytes
    t_hat: int
    tau: int
    mu: int
    inner: InnerProof

    def to_bytes(self) -> bytes:
        """Return the one spelling."""
        points = [self.a, self.s, self.t1, self.t2]
        for left, right in zip(self.inner.left, self.inner.right, strict=True):
            points += [left, right]
        numbers = (self.t_hat, self.tau, self.mu, self.inner.a, self.inner.b)
        return b"".join([*points, *(encode_scalar(each) for each in numbers)])

    @classmethod
    def from_bytes(cls, data: bytes, bits: int, count: int) -> RangeProof:
        """Read a proof of `count` numbers of `bits`. Raises `CLAIM_UNPROVEN`; points are decoded by the verifier."""
        halvings = halvings_of(bits, count)
        if len(data) != proof_bytes(bits, count):
            raise refused("a range proof of this statement has another size")
        points = [data[at : at + POINT_BYTES] for at in range(0, (4 + 2 * halvings) * POINT_BYTES, POINT_BYTES)]
        tail = data[len(points) * POINT_BYTES :]
        numbers = [decode_scalar(tail[at : at + SCALAR_BYTES]) for at in range(0, len(tail), SCALAR_BYTES)]
        inner = InnerProof(tuple(points[4::2]), tuple(points[5::2]), numbers[3], numbers[4])
        a, s, t1, t2 = points[:4]
        t_hat, tau, mu = numbers[:3]
        return cls(a, s, t1, t2, t_hat, tau, mu, inner)


def halvings_of(bits: int, count: int) -> int:
    """Return log2(bits * places). Raises `CLAIM_UNPROVEN` for a statement that is not offered."""
    if bits not in BITS or not 1 <= count <= COUNT_MAX:
        raise refused("ranges of 8, 16, 32 or 64 bits, over 1 to 128 numbers")
    return (bits * places_of(count)).bit_length() - 1


def places_of(count: int) -> int:
    """Return `count` rounded up to a power of two."""
    return 1 << (count - 1).bit_length()


def proof_bytes(bits: int, count: int) -> int:
    """Return the size of a proof: 832 bytes for one number of 32 bits."""
    return POINT_BYTES * (4 + 2 * halvings_of(bits, count)) + 5 * SCALAR_BYTES


def prove(
    transcript: Transcript, commitments: Sequence[bytes], values: Sequence[int], blindings: Sequence[int], bits: int
) -> bytes:
    """Prove that each of `values`, committed to under `blindings`, lies in [0, 2^bits).

    Raises:
        ValueError: one of them does not.
    """
    halvings_of(bits, len(values))
    if any(not 0 <= value < 1 << bits for value in values):
        raise ValueError("a number outside the range")
    _announce(transcript, commitments, bits)
    spare = places_of(len(values)) - len(values)
    values, blindings = [*values, *[0] * spare], [*blindings, *[0] * spare]
    size = bits * len(values)
    left, right = LEFT.first(size), RIGHT.first(size)
    ones = [value >> bit & 1 for value in values for bit in range(bits)]
    alpha, rho = random_scalar(), random_scalar()
    s_left, s_right = [random_scalar() for _ in range(size)], [random_scalar() for _ in range(size)]
    a = _bits_point(ones, left, right) + BLINDING * scalar(alpha)
    s = combine([BLINDING, *left, *right], [rho, *s_left, *s_right])
    a_bytes, s_bytes = encode_point(a), encode_point(s)
    y, z = _first_challenges(transcript, a_bytes, s_bytes)
    y_powers, z_powers = powers(y, size), _z_powers(z, len(values))
    l0 = [(one - z) % ORDER for one in ones]
    r0 = [
        (y_powers[at] * (one - 1 + z) + z_powers[at // bits] * (1 << at % bits)) % ORDER for at, one in enumerate(ones)
    ]
    r1 = [power * each % ORDER for power, each in zip(y_powers, s_right, strict=True)]
    tau1, tau2 = random_scalar(), random_scalar()
    t1 = encode_point(combine([VALUE, BLINDING], [dot(l0, r1) + dot(s_left, r0), tau1]))
    t2 = encode_point(combine([VALUE, BLINDING], [dot(s_left, r1), tau2]))
    x = _second_challenge(transcript, t1, t2)
    final_left = [(one + x * two) % ORDER for one, two in zip(l0, s_left, strict=True)]
    final_right = [(one + x * two) % ORDER for one, two in zip(r0, r1, strict=True)]
    t_hat = dot(final_left, final_right)
    tau = (tau2 * x * x + tau1 * x + dot(z_powers, blindings)) % ORDER
    mu = (alpha + rho * x) % ORDER
    w = _third_challenge(transcript, t_hat, tau, mu)
    inner = inner_product.prove(
        transcript, left, right, powers(pow(y, -1, ORDER), size), INNER * scalar(w), final_left, final_right
    )
    return RangeProof(a_bytes, s_bytes, t1, t2, t_hat, tau, mu, inner).to_bytes()


def verify(transcript: Transcript, commitments: Sequence[bytes], shifts: Sequence[int], data: bytes, bits: int) -> None:
    """Check that each commitment, less its public shift times `VALUE`, holds a number in [0, 2^bits).

    Raises:
        ComityError: `CLAIM_UNPROVEN`.
    """
    proof = RangeProof.from_bytes(data, bits, len(commitments))
    holders = [decode_point(each) for each in commitments]
    _announce(transcript, commitments, bits)
    y, z = _first_challenges(transcript, proof.a, proof.s)
    x = _second_challenge(transcript, proof.t1, proof.t2)
    w = _third_challenge(transcript, proof.t_hat, proof.tau, proof.mu)
    pairs = list(zip(proof.inner.left, proof.inner.right, strict=True))
    u = [inner_product.halving(transcript, left, right) for left, right in pairs]
    u_inverse = [pow(each, -1, ORDER) for each in u]
    size, places = 1 << len(u), places_of(len(commitments))
    y_powers, y_inverse = powers(y, size), powers(pow(y, -1, ORDER), size)
    z_powers = _z_powers(z, places)
    unrolled = inner_product.unrolled(u, u_inverse)
    weight = random_scalar()
    delta = (z - z * z) * sum(y_powers) - z * sum(z_powers) * ((1 << bits) - 1)
    shifted = dot(z_powers[: len(shifts)], list(shifts))
    left_factors = [-z - proof.inner.a * each for each in unrolled]
    right_factors = [
        z + y_inverse[at] * (z_powers[at // bits] * (1 << at % bits) - proof.inner.b * unrolled[size - 1 - at])
        for at in range(size)
    ]
    pillars = [decode_point(each) for each in (proof.a, proof.s, proof.t1, proof.t2)]
    sides = [decode_point(each) for pair in pairs for each in pair]
    squares = [each * each for pair in zip(u, u_inverse, strict=True) for each in pair]
    points = [*LEFT.first(size), *RIGHT.first(size), *pillars, BLINDING, INNER, VALUE, *holders, *sides]
    factors = [
        *left_factors,
        *right_factors,
        *(1, x, weight * x, weight * x * x),
        -proof.mu - weight * proof.tau,
        w * (proof.t_hat - proof.inner.a * proof.inner.b),
        weight * (delta - proof.t_hat - shifted),
        *(weight * each for each in z_powers[: len(holders)]),
        *squares,
    ]
    if combine(points, factors) != G1Point.identity():
        raise refused("the range is not shown")


def powers(base: int, count: int) -> list[int]:
    """Return base^0 … base^(count - 1) modulo the group's order."""
    found = [1] * count
    for at in range(1, count):
        found[at] = found[at - 1] * base % ORDER
    return found


def _z_powers(z: int, places: int) -> list[int]:
    """Return z^2, z^3, … one for each place."""
    return powers(z, places + 2)[2:]


def _bits_point(ones: Sequence[int], left: Sequence[G1Point], right: Sequence[G1Point]) -> G1Point:
    """Return <a_L, G> + <a_R, H> with a_R = a_L - 1: G where a bit is 1, -H where it is 0."""
    total = G1Point.identity()
    for one, first, second in zip(ones, left, right, strict=True):
        total = total + (first if one else -second)
    return total


def _announce(transcript: Transcript, commitments: Sequence[bytes], bits: int) -> None:
    transcript.absorb_number("bits", bits)
    transcript.absorb_number("count", len(commitments))
    transcript.absorb("commitment", *commitments)


def _first_challenges(transcript: Transcript, a: bytes, s: bytes) -> tuple[int, int]:
    transcript.absorb("A", a)
    transcript.absorb("S", s)
    return transcript.challenge("y"), transcript.challenge("z")


def _second_challenge(transcript: Transcript, t1: bytes, t2: bytes) -> int:
    transcript.absorb("T1", t1)
    transcript.absorb("T2", t2)
    return transcript.challenge("x")


def _third_challenge(transcript: Transcript, t_hat: int, tau: int, mu: int) -> int:
    transcript.absorb("numbers", encode_scalar(t_hat), encode_scalar(tau), encode_scalar(mu))
    return transcript.challenge("w")
