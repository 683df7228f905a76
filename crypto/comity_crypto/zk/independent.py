"""The verifier once more, for `comity ledger verify --independent`: py_ecc only, and no line shared with the rest.

Rules:
1. Nothing here imports the engine, the prover or their verifier: transcript, parsing, generators and equations are
   written again from the paper (Bünz et al. 2018, sections 3.1 and 4.2), each equation by itself instead of in one sum.
2. Every point is decoded, re-encoded and compared, checked to lie in the subgroup, and is not the identity.
3. About 50 times slower than `claims`; meant for auditors who would rather not trust one implementation.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.zk.binding import Binding

# Importing py_ecc raises the recursion limit to 100,000, more than the stack bears under hostile nesting.
_LIMIT = sys.getrecursionlimit()
from py_ecc import optimized_bls12_381 as curve  # noqa: E402 - between the two lines that guard the limit
from py_ecc.bls.g2_primitives import G1_to_pubkey, pubkey_to_G1, subgroup_check  # noqa: E402
from py_ecc.bls.hash_to_curve import hash_to_G1  # noqa: E402

sys.setrecursionlimit(_LIMIT)

_R = curve.curve_order
_DST = b"COMITY_ZK_V1_BLS12381G1_XMD:SHA-256_SSWU_RO_"
_WINDOW_BITS = 4


def generator_bytes(name: str) -> bytes:
    """Return the 48 bytes of the generator called `name`, as py_ecc derives it."""
    return bytes(G1_to_pubkey(_generator(name)))


def verify_at_least(commitment: bytes, minimum: int, proof: bytes, binding: Binding) -> None:
    """As `claims.verify_at_least`. Raises `CLAIM_UNPROVEN`."""
    _require(0 <= minimum < 1 << 62, "the minimum")
    heard = _Heard("at-least", binding)
    heard.number("minimum", minimum)
    _range(heard, [commitment], [minimum], proof, 32)


def verify_between(commitments: Sequence[bytes], low: int, high: int, proof: bytes, binding: Binding) -> None:
    """As `claims.verify_between`. Raises `CLAIM_UNPROVEN`."""
    _require(1 <= len(commitments) <= 64 and -(1 << 62) < low <= high < 1 << 62, "the range")
    bits = 8
    while high - low >= 1 << bits:
        bits *= 2
    heard = _Heard("between", binding)
    heard.number("low", low)
    heard.number("high", high)
    shifts = [low] * len(commitments) + [high + 1 - (1 << bits)] * len(commitments)
    _range(heard, [*commitments, *commitments], shifts, proof, bits)


def verify_same(first: bytes, second: bytes, proof: bytes, binding: Binding) -> None:
    """As `schnorr.verify_same`. Raises `CLAIM_UNPROVEN`."""
    _require(len(proof) == 80 and first != second, "the size, or one commitment twice")
    shown, answer = _point(proof[:48]), _number(proof[48:])
    one, two = _point(first), _point(second)
    heard = _Heard("same-value", binding)
    heard.bytes("commitment", first)
    heard.bytes("commitment", second)
    heard.bytes("R", proof[:48])
    challenge = heard.challenge("c")
    left = curve.multiply(_generator("blinding"), answer)
    right = curve.add(shown, curve.multiply(curve.add(one, curve.neg(two)), challenge))
    _require(curve.eq(left, right), "the equation")


def verify_sum(commitments: Sequence[bytes], total: int, blinding: int) -> None:
    """As `pedersen.verify_sum`. Raises `CLAIM_UNPROVEN`."""
    _sum(commitments, ["value"], [total], blinding)


def verify_vector_sum(commitments: Sequence[bytes], totals: Sequence[int], blinding: int) -> None:
    """As `pedersen.verify_vector_sum`. Raises `CLAIM_UNPROVEN`."""
    _require(1 <= len(totals) <= 1 << 16, "the length")
    _sum(commitments, [f"vector/{index}" for index in range(len(totals))], totals, blinding)


def _sum(commitments: Sequence[bytes], names: Sequence[str], totals: Sequence[int], blinding: int) -> None:
    _require(1 <= len(commitments) <= 1024 and all(abs(each) <= 1 << 128 for each in totals), "the size")
    left = curve.Z1
    for each in commitments:
        left = curve.add(left, _point(each))
    right = _multiples([*(_generator(name) for name in names), _generator("blinding")], [*totals, blinding])
    _require(curve.eq(left, right), "the sum")


def verify_sum_opening(commitments: Sequence[bytes], commitment: bytes, proof: bytes, binding: Binding) -> None:
    """As `openings.sum_of`, compared with `commitment`, and `openings.verify_opening`. Raises `CLAIM_UNPROVEN`."""
    _require(1 <= len(commitments) <= 1024 and len(proof) == 112, "the size")
    held, summed = _point(commitment), curve.Z1
    for each in commitments:
        summed = curve.add(summed, _point(each))
    _require(curve.eq(summed, held), "the sum")
    shown, value, blinding = _point(proof[:48]), _number(proof[48:80]), _number(proof[80:])
    heard = _Heard("sum-opening", binding)
    heard.bytes("commitment", commitment)
    heard.bytes("R", proof[:48])
    challenge = heard.challenge("c")
    left = _multiples([_generator("value"), _generator("blinding")], [value, blinding])
    _require(curve.eq(left, curve.add(shown, curve.multiply(held, challenge))), "the equation")


def _range(heard: _Heard, commitments: Sequence[bytes], shifts: Sequence[int], proof: bytes, bits: int) -> None:
    """Both equations of section 4.2, with m commitments padded by commitments to nothing."""
    m = 1
    while m < len(commitments):
        m *= 2
    n = m * bits
    rounds = n.bit_length() - 1
    _require(len(proof) == (4 + 2 * rounds) * 48 + 160, "the size")
    pieces = [proof[48 * index : 48 * index + 48] for index in range(4 + 2 * rounds)]
    tail = proof[48 * len(pieces) :]
    t_hat, tau, mu, a, b = (_number(tail[32 * index : 32 * index + 32]) for index in range(5))
    points = [_point(each) for each in pieces]
    held = [_point(each) for each in commitments]
    heard.number("bits", bits)
    heard.number("count", len(commitments))
    for each in commitments:
        heard.bytes("commitment", each)
    heard.bytes("A", pieces[0])
    heard.bytes("S", pieces[1])
    y, z = heard.challenge("y"), heard.challenge("z")
    heard.bytes("T1", pieces[2])
    heard.bytes("T2", pieces[3])
    x = heard.challenge("x")
    for index in range(3):
        heard.bytes("numbers", tail[32 * index : 32 * index + 32])
    w = heard.challenge("w")
    u = []
    for index in range(rounds):
        heard.bytes("L", pieces[4 + 2 * index])
        heard.bytes("R", pieces[5 + 2 * index])
        u.append(heard.challenge("u"))
    # (65): t_hat = z^2 v + delta(y, z) + t1 x + t2 x^2, in the exponent.
    ys = [pow(y, index, _R) for index in range(n)]
    zs = [pow(z, 2 + place, _R) for place in range(m)]
    delta = (z - z * z) * sum(ys) - sum(each * z for each in zs) * (2**bits - 1)
    lowered = sum(each * shift for each, shift in zip(zs, shifts, strict=False))
    left = _multiples([_generator("value"), _generator("blinding")], [t_hat - delta + lowered, tau])
    right = _multiples([points[2], points[3], *held], [x, x * x, *zs[: len(held)]])
    _require(curve.eq(left, right), "the first equation")
    # (66) with section 3.1: the commitment to both vectors equals what the halvings left over.
    y_back = [pow(each, -1, _R) for each in ys]
    twos = [zs[index // bits] * 2 ** (index % bits) for index in range(n)]
    first = [_generator(f"left/{index}") for index in range(n)]
    second = [_generator(f"right/{index}") for index in range(n)]
    sent = _multiples(
        [points[0], points[1], *first, *second, _generator("blinding"), _generator("inner")],
        [1, x, *[-z] * n, *(z + twos[index] * y_back[index] for index in range(n)), -mu, w * t_hat],
    )
    exponents = [_exponent(u, index) for index in range(n)]
    back = [pow(each, -1, _R) for each in exponents]
    left_over = _multiples(
        [*first, *second, _generator("inner"), *points[4:]],
        [
            *(a * each for each in exponents),
            *(b * each * y_back[index] for index, each in enumerate(back)),
            w * a * b,
            *(-pow(each, sign, _R) for each in u for sign in (2, -2)),
        ],
    )
    _require(curve.eq(sent, left_over), "the second equation")


def _exponent(u: Sequence[int], index: int) -> int:
    """Section 3.1: the product of u_j where bit j of the index, highest first, is 1, and of 1 / u_j where it is 0."""
    product: int = 1
    for j, each in enumerate(u):
        chosen = index >> (len(u) - 1 - j) & 1
        product = int(product * (each if chosen else pow(each, -1, _R)) % _R)
    return product


class _Heard:
    """The transcript, written again from its rules."""

    def __init__(self, claim: str, binding: Binding) -> None:
        self._hash = hashlib.sha512(b"comity/zk/v1").digest()
        self.bytes("claim", claim.encode())
        self.bytes("agreement", bytes.fromhex(binding.agreement))
        self.bytes("round", binding.round.encode())
        self.bytes("organisation", binding.organisation.encode())

    def bytes(self, label: str, data: bytes) -> None:
        name = label.encode()
        sized = b"".join(len(each).to_bytes(4, "big") + each for each in (name, data))
        self._hash = hashlib.sha512(self._hash + sized).digest()

    def number(self, label: str, value: int) -> None:
        self.bytes(label, value.to_bytes(8, "big", signed=True))

    def challenge(self, label: str) -> int:
        self.bytes("challenge", label.encode())
        return int(1 + int.from_bytes(self._hash, "big") % (_R - 1))


@cache
def _generator(name: str) -> Any:
    """A named generator; the names are ours, at most some thousand."""
    return hash_to_G1(name.encode(), _DST, hashlib.sha256)


def _point(data: bytes) -> Any:
    _require(len(data) == 48, "a point's size")
    try:
        point = pubkey_to_G1(data)
        sound = not curve.is_inf(point) and bytes(G1_to_pubkey(point)) == data and subgroup_check(point)
    except (ValueError, AssertionError) as error:
        raise ComityError(ErrorCode.CLAIM_UNPROVEN, "not a point of the group (py_ecc)") from error
    _require(sound, "a point")
    return point


def _number(data: bytes) -> int:
    value = int.from_bytes(data, "big")
    _require(len(data) == 32 and value < _R, "a number")
    return value


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ComityError(ErrorCode.CLAIM_UNPROVEN, f"{what} does not hold (py_ecc)")


def _multiples(points: Sequence[Any], factors: Sequence[int]) -> Any:
    """The sum of factors times points, by buckets (Pippenger), 4 bits at a time."""
    reduced = [each % _R for each in factors]
    total = curve.Z1
    for shift in range(256 - _WINDOW_BITS, -1, -_WINDOW_BITS):
        for _ in range(_WINDOW_BITS):
            total = curve.double(total)
        buckets = [curve.Z1] * (1 << _WINDOW_BITS)
        for point, factor in zip(points, reduced, strict=True):
            digit = factor >> shift & (1 << _WINDOW_BITS) - 1
            if digit:
                buckets[digit] = curve.add(buckets[digit], point)
        running = curve.Z1
        for bucket in reversed(buckets[1:]):
            running = curve.add(running, bucket)
            total = curve.add(total, running)
    return total
