"""Shamir's shares of 32-byte secrets, modulo the prime 2^521 - 1 (design: secure-aggregation.md section 4).

1. The field is larger than the secret, so that a combination of shares that do not belong together almost surely falls
   outside of the secrets' range and is refused; callers compare what comes out with a commitment besides.
2. A holder's point is its place in the roster, from 1: no two holders share one and none is 0.
3. Thresholds and numbers of holders are bounded before any arithmetic. Python's integers are not constant in time: this
   runs on the own node for one use, and its timing is not on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

PRIME = (1 << 521) - 1
SECRET_BYTES = 32
SHARE_BYTES = 66
_DRAWS_MAX = 8


def split(secret: bytes, threshold: int, points: Iterable[int], entropy: Callable[[int], bytes]) -> dict[int, bytes]:
    """Return a share of `SHARE_BYTES` for each point; any `threshold` of them give the secret, fewer give nothing.

    Args:
        secret: 32 bytes. points: distinct numbers from 1 to 50. entropy: `entropy(n)` returns n random bytes.

    Raises:
        ComityError: `INTERNAL` for bounds that cannot be.
    """
    places = tuple(points)
    legal = len(set(places)) == len(places) and all(1 <= place <= CONTRIBUTORS_MAX for place in places)
    if len(secret) != SECRET_BYTES or not legal or not 2 <= threshold <= len(places):
        raise ComityError(ErrorCode.INTERNAL, "these shares cannot be made", threshold=threshold, holders=len(places))
    coefficients = [int.from_bytes(secret, "big"), *(_element(entropy) for _ in range(threshold - 1))]
    return {place: _at(coefficients, place).to_bytes(SHARE_BYTES, "big") for place in places}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret behind exactly `threshold` shares, the ones with the lowest points.

    Raises:
        ComityError: `BAD_SHARE` with fewer shares, for bytes that are no share, and if nothing comes out.
    """
    if not 2 <= threshold <= len(shares) <= CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.BAD_SHARE, "too few shares", here=len(shares), needed=threshold)
    chosen = {place: check_share(shares[place]) for place in sorted(shares)[:threshold]}
    if min(chosen) < 1 or max(chosen) > CONTRIBUTORS_MAX:
        raise ComityError(ErrorCode.BAD_SHARE, "a share of nobody")
    secret = 0
    for place, value in chosen.items():
        above = below = 1
        for other in chosen:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ComityError(ErrorCode.BAD_SHARE, "the shares do not belong together")
    return secret.to_bytes(SECRET_BYTES, "big")


def check_share(share: bytes) -> int:
    """Return a stranger's share as an element of the field. Raises `BAD_SHARE`."""
    value = int.from_bytes(share, "big") if len(share) == SHARE_BYTES else PRIME
    if value >= PRIME:
        raise ComityError(ErrorCode.BAD_SHARE, "not a share", size_bytes=len(share))
    return value


def _element(entropy: Callable[[int], bytes]) -> int:
    """Return a uniform element of the field. One draw in 2^521 is the prime itself."""
    for _ in range(_DRAWS_MAX):
        value = int.from_bytes(entropy(SHARE_BYTES), "big") & PRIME
        if value < PRIME:
            return value
    raise ComityError(ErrorCode.INTERNAL, "the source of randomness gives one value only")


def _at(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value
