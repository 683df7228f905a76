"""A collective BFV key that nobody holds: drawing parts, dealing them, and what binds the two (research/crypto.md 2.6).

1. The key's secret is s = s_1 + .. + s_n; holder i draws s_i (uniform in {-1, 0, 1}) and an error e_i (centred
   binomial with 21 bit pairs, deviation 3.24: SEAL's own default) and shows b_i = -(a s_i + e_i). The public key is
   (b_1 + .. + b_n, a), and `a` follows from all holders' nonces: nobody can choose it.
2. For a quorum T below n every s_i is shared by Shamir, coefficient by coefficient and prime by prime, in points
   1 .. n; what holder k got adds up to its share S_k. T shares give s, T - 1 give nothing. At T = n nothing is dealt.
3. Each dealer adds one more random value per prime, shared alike. A challenge drawn after all boxes are fixed takes one
   random combination of each dealt vector plus that value: points that do not lie on one polynomial of degree T - 1
   show the dealer (error 2^-49 per prime), and the values reveal nothing, since the added one is uniform.
4. What is not shown: that the dealt secret is the one in b_i. A dealer that lies there spoils the key for everybody,
   without a name; nothing leaks.

Polynomials of keys are kept transformed (`bfv.ring`), residues in rows: shape (limbs, N).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import ring
from comity_crypto.secagg.bfv.params import LIMBS, Parameters
from comity_crypto.secagg.bfv.residues import pack, pack_poly, unpack_poly
from comity_crypto.secagg.bfv.ring import Ints
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

ENTROPY_BYTES = 32
_BINOMIAL_PAIRS = 21
_COMMON = b"comity/secagg/common/v1\x00"
_CRS = b"comity/secagg/crs/v1\x00"
_BLIND_BYTES = 8
# Streams of one dealer's or one holder's entropy: what they are for is the first number of the nonce.
_SECRET, _ERROR, _DEAL, _BLIND, _CHALLENGE = range(5)


@dataclass(frozen=True)
class Part:
    """A holder's own part of a key: s_i and e_i, shape (key limbs, N), transformed."""

    secret: Ints = field(repr=False)
    error: Ints = field(repr=False)


@dataclass(frozen=True)
class Dealt:
    """What one dealer gives one holder: a point of s_i's sharing, shape (LIMBS, N), and of the added value's."""

    share: Ints = field(repr=False)
    blind: tuple[int, ...] = field(repr=False)


def common_string(ceremony: str, nonces: Mapping[str, bytes]) -> bytes:
    """Return the 32 bytes that `a` follows from: all holders' nonces, by organisation, in one ceremony."""
    said = {org: nonce.hex() for org, nonce in nonces.items()}
    return hashlib.sha256(_CRS + canonical({"ceremony": ceremony, "nonces": said})).digest()


def common_poly(parameters: Parameters, crs: bytes, index: int) -> Ints:
    """Return `a` of the batch's key `index`: uniform residues from SHAKE128, shape (key limbs, N), transformed."""
    rows = []
    for limb, prime in enumerate(parameters.primes):
        words = parameters.ring_degree + 64  # one word in 2^29 is dropped
        place = _COMMON + bytes.fromhex(parameters.digest) + index.to_bytes(4, "big") + limb.to_bytes(4, "big")
        values = np.frombuffer(hashlib.shake_128(place + crs).digest(8 * words), "<u8")
        values = values & np.uint64((1 << prime.bit_length()) - 1)
        rows.append(values[values < prime][: parameters.ring_degree].astype(np.int64))
    return np.stack(rows)


def draw_part(parameters: Parameters, entropy: bytes) -> Part:
    """Draw s_i and e_i of one key from 32 fresh bytes, which are of no other use."""
    _check_entropy(entropy)
    degree = parameters.ring_degree
    tossed = np.frombuffer(ring.stream(entropy, (_SECRET, 0), 2 * degree), "u1")
    ternary = tossed[tossed < 255][:degree].astype(np.int64) % 3 - 1
    words = np.frombuffer(ring.stream(entropy, (_ERROR, 0), 8 * degree), "<u8")
    half = np.uint64((1 << _BINOMIAL_PAIRS) - 1)
    plus = np.bitwise_count(words & half).astype(np.int64)
    error = plus - np.bitwise_count(words >> np.uint64(_BINOMIAL_PAIRS) & half)
    return Part(_transformed(parameters, ternary), _transformed(parameters, error.astype(np.int64)))


def public_share(parameters: Parameters, common: Ints, part: Part) -> Ints:
    """Return b_i = -(a s_i + e_i), shape (key limbs, N), transformed."""
    rows = []
    for limb, prime in enumerate(parameters.primes):
        product = ring.multiply(common[limb], part.secret[limb], prime)
        rows.append(ring.subtract(np.zeros_like(product), ring.add(product, part.error[limb], prime), prime))
    return np.stack(rows)


def collective_key(parameters: Parameters, common: Ints, shares: Sequence[Ints]) -> bytes:
    """Return the packed public key (b_1 + .. + b_n, a), in the form that `bfv.Encrypter` takes."""
    total = shares[0]
    for share in shares[1:]:
        total = np.stack([ring.add(total[j], share[j], prime) for j, prime in enumerate(parameters.primes)])
    return pack(np.stack([total, common]).astype(np.uint64))


def deal(parameters: Parameters, secret: Ints, threshold: int, holders: int, entropy: bytes) -> list[Dealt]:
    """Share s_i by polynomials of degree T - 1; item k is for point k + 1.

    Args:
        secret: the part's, shape (LIMBS or more, N); only the ciphertext's primes are shared.
        entropy: 32 fresh bytes, which are of no other use.

    Raises:
        ComityError: `INTERNAL` unless 1 < threshold < holders <= 50.
    """
    _check_entropy(entropy)
    if not 1 < threshold < holders <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.INTERNAL, "a key is dealt for a quorum below all holders", threshold=threshold)
    shares: list[list[Ints]] = [[] for _ in range(holders)]
    blinds: list[list[int]] = [[] for _ in range(holders)]
    for limb, prime in enumerate(parameters.data_primes):
        rows = [secret[limb]]
        for power in range(1, threshold):
            rows.append(ring.uniform(entropy, (_DEAL, limb << 16 | power), parameters.ring_degree, prime))
        extra = ring.uniform(entropy, (_BLIND, limb), threshold, prime).tolist()
        for place in range(holders):
            value, blind = rows[-1], extra[-1]
            for row, more in zip(rows[-2::-1], extra[-2::-1], strict=True):
                value = ring.add(ring.scale(value, place + 1, prime), row, prime)
                blind = (blind * (place + 1) + more) % prime
            shares[place].append(value)
            blinds[place].append(blind)
    return [Dealt(np.stack(rows), tuple(extra)) for rows, extra in zip(shares, blinds, strict=True)]


def pack_dealt(dealt: Dealt) -> bytes:
    """Return the content of one box: the packed share, then one 8-byte number per prime."""
    return pack_poly(dealt.share) + b"".join(value.to_bytes(_BLIND_BYTES, "little") for value in dealt.blind)


def dealt_bytes(parameters: Parameters) -> int:
    """Return the exact size of `pack_dealt`."""
    return parameters.poly_bytes(LIMBS) + LIMBS * _BLIND_BYTES


def unpack_dealt(parameters: Parameters, data: bytes) -> Dealt:
    """Read what another dealer packed. Raises `CIPHERTEXT_INVALID` (length, a value not below its prime)."""
    if len(data) != dealt_bytes(parameters):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a dealt share has another length", size_bytes=len(data))
    size = parameters.poly_bytes(LIMBS)
    share = unpack_poly(data[:size], parameters, LIMBS)
    blind = tuple(int.from_bytes(data[size + 8 * limb : size + 8 * limb + 8], "little") for limb in range(LIMBS))
    if any(value >= prime for value, prime in zip(blind, parameters.data_primes, strict=True)):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "a dealt value is not below its prime")
    return Dealt(share.astype(np.int64), blind)


def gather(parameters: Parameters, dealt: Sequence[Dealt]) -> Ints:
    """Return S_k, shape (LIMBS, N): the sum of what all dealers gave this holder."""
    rows = []
    for limb, prime in enumerate(parameters.data_primes):
        total = dealt[0].share[limb]
        for item in dealt[1:]:
            total = ring.add(total, item.share[limb], prime)
        rows.append(total)
    return np.stack(rows)


def own_share(secret: Ints) -> Ints:
    """Return the share of a key of which everybody is needed: s_i itself, shape (LIMBS, N)."""
    return secret[:LIMBS].copy()


def check_values(parameters: Parameters, challenge: bytes, index: int, dealt: Dealt) -> tuple[int, ...]:
    """Return, per prime, the challenge's combination of a dealt vector plus the added value (rule 3)."""
    values = []
    for limb, prime in enumerate(parameters.data_primes):
        weights = ring.uniform(challenge, (_CHALLENGE, index << 8 | limb), parameters.ring_degree, prime)
        products = ring.multiply(dealt.share[limb], weights, prime)
        low = int((products & ((1 << 25) - 1)).sum())
        values.append((low + (int((products >> 25).sum()) << 25) + dealt.blind[limb]) % prime)
    return tuple(values)


def on_one_polynomial(parameters: Parameters, threshold: int, values: Sequence[tuple[int, ...]]) -> bool:
    """Whether the values in points 1 .. n lie on one polynomial of degree below T, for every prime.

    The first T points fix the polynomial; every other point must give the same value at 0 in the place of the last one.
    """
    first = tuple(range(1, threshold + 1))
    for limb, prime in enumerate(parameters.data_primes):
        expected = _at_zero(first, values, limb, prime)
        for point in range(threshold + 1, len(values) + 1):
            if _at_zero((*first[:-1], point), values, limb, prime) != expected:
                return False
    return True


def _at_zero(points: tuple[int, ...], values: Sequence[tuple[int, ...]], limb: int, prime: int) -> int:
    weights = _weights(points, prime)
    return sum(weights[point] * values[point - 1][limb] for point in points) % prime


@lru_cache(maxsize=512)  # every dealer and key is checked in the same points
def _weights(points: tuple[int, ...], prime: int) -> dict[int, int]:
    return ring.lagrange(points, prime)


def _transformed(parameters: Parameters, small: Ints) -> Ints:
    rows = [
        ring.transform(parameters.ring_degree, prime).forward((small % prime)[None])[0] for prime in parameters.primes
    ]
    return np.stack(rows)


def _check_entropy(entropy: bytes) -> None:
    if len(entropy) != ENTROPY_BYTES:
        raise ComityError(ErrorCode.INTERNAL, "a key part needs 32 fresh bytes")
