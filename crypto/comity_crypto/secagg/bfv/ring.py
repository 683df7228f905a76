"""Arithmetic in Z_q[X]/(X^N + 1) by the prime, equal bit by bit to SEAL's transforms, in numpy.

1. Arrays are int64 with values in [0, prime), prime < 2^50; the last axis is the coefficient. Nothing is changed in
   place that a caller owns: a transform of one single polynomial copies as one of many does.
2. Products: a double gives the quotient to within one, wrapping 64-bit integers give the remainder, two corrections
   make it exact (research/crypto.md 2.1). `tests/property/secagg` compares with Python's integers at the edges.
3. The transform is SEAL's: negacyclic, with the smallest primitive 2N-th root, output in bit-reversed order.
4. Uniform values come from a stream by rejection; a stream's key belongs to one purpose, its nonce to one use.
5. Not constant-time: it runs on the organisation's own machine and its timing is not on the wire.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode

Ints: TypeAlias = NDArray[np.int64]

PRIME_BITS_MAX = 50
# 16 polynomials of 8192 coefficients are 1 MiB: a block stays in the second-level cache.
_BLOCK_POLYS = 16
_WORD_BYTES = 8


def multiply(a: Ints, b: Ints, prime: int, ratio: NDArray[np.float64] | None = None) -> Ints:
    """Return a x b modulo the prime. `ratio` is b / prime, where the caller multiplies by the same b again."""
    share = b / float(prime) if ratio is None else ratio
    quotient = (a * share).astype(np.int64)
    quotient *= prime
    out: Ints = a * b
    out -= quotient  # in (-prime, 2 prime): the quotient is off by one at most
    out += (out >> 63) & prime
    out -= prime
    out += (out >> 63) & prime
    return out


def add(a: Ints, b: Ints, prime: int) -> Ints:
    """Return a + b modulo the prime."""
    out: Ints = a + b
    out -= prime
    out += (out >> 63) & prime
    return out


def subtract(a: Ints, b: Ints, prime: int) -> Ints:
    """Return a - b modulo the prime."""
    out: Ints = a - b
    out += (out >> 63) & prime
    return out


def scale(a: Ints, factor: int, prime: int) -> Ints:
    """Return `a` times one number in [0, prime)."""
    return multiply(a, np.full(1, factor, np.int64), prime)


class Transform:
    """The number-theoretic transform of one ring and prime; take it from `transform`."""

    def __init__(self, degree: int, prime: int) -> None:
        if prime >> PRIME_BITS_MAX or prime % (2 * degree) != 1:
            raise ComityError(ErrorCode.INTERNAL, "no transform for this prime")
        self.degree, self.prime = degree, prime
        root = _smallest_root(degree, prime)
        self._forward = _powers(root, degree, prime)
        self._inverse = _powers(pow(root, -1, prime), degree, prime)
        self._forward_ratio = self._forward / float(prime)
        self._inverse_ratio = self._inverse / float(prime)
        self._degree_inverse = pow(degree, -1, prime)

    def forward(self, polys: Ints) -> Ints:
        """Return the transforms of polynomials, shape (count, N), in SEAL's order."""
        return self._blocks(polys, self._forward_block)

    def inverse(self, polys: Ints) -> Ints:
        """Return the polynomials of transforms, shape (count, N)."""
        return self._blocks(polys, self._inverse_block)

    def _blocks(self, polys: Ints, work: object) -> Ints:
        if polys.ndim != 2 or polys.shape[1] != self.degree or not callable(work):
            raise ComityError(ErrorCode.INTERNAL, "a transform takes whole polynomials")
        out = np.empty_like(polys)
        for start in range(0, len(polys), _BLOCK_POLYS):
            # `np.ascontiguousarray` would return the caller's own array where there is one polynomial only.
            block = np.array(polys[start : start + _BLOCK_POLYS].T, dtype=np.int64, order="C", copy=True)
            out[start : start + _BLOCK_POLYS] = work(block).T
        return out

    def _forward_block(self, block: Ints) -> Ints:
        """Transform a block of shape (N, count), which is this method's own."""
        groups, half = 1, self.degree
        while groups < self.degree:
            half //= 2
            view = block.reshape(groups, 2, half, -1)
            place = slice(groups, 2 * groups)
            factor, ratio = self._forward[place, None, None], self._forward_ratio[place, None, None]
            upper, lower = view[:, 0], multiply(view[:, 1], factor, self.prime, ratio)
            view[:, 1], view[:, 0] = subtract(upper, lower, self.prime), add(upper, lower, self.prime)
            groups *= 2
        return block

    def _inverse_block(self, block: Ints) -> Ints:
        groups, half = self.degree, 1
        while groups > 1:
            groups //= 2
            view = block.reshape(groups, 2, half, -1)
            place = slice(groups, 2 * groups)
            factor, ratio = self._inverse[place, None, None], self._inverse_ratio[place, None, None]
            upper, lower = view[:, 0].copy(), view[:, 1]
            difference = subtract(upper, lower, self.prime)
            view[:, 0] = add(upper, lower, self.prime)
            view[:, 1] = multiply(difference, factor, self.prime, ratio)
            half *= 2
        return scale(block, self._degree_inverse, self.prime)


@cache
def transform(degree: int, prime: int) -> Transform:
    """Return the transform of a ring and a prime; its tables are made once a process."""
    return Transform(degree, prime)


def _smallest_root(degree: int, prime: int) -> int:
    """Return the smallest primitive 2N-th root of one, which is the one that SEAL takes."""
    root = next(
        found
        for base in range(2, 1000)  # half of all bases give one
        if pow(found := pow(base, (prime - 1) // (2 * degree), prime), degree, prime) == prime - 1
    )
    square, best = root * root % prime, root
    for _ in range(degree):
        root = root * square % prime
        best = min(best, root)
    return best


def _powers(root: int, degree: int, prime: int) -> Ints:
    """Return root^i in bit-reversed order of i."""
    bits = degree.bit_length() - 1
    powers = [1] * degree
    for index in range(1, degree):
        powers[index] = powers[index - 1] * root % prime
    return np.array([powers[int(f"{index:0{bits}b}"[::-1], 2)] for index in range(degree)], np.int64)


def stream(key: bytes, nonce: tuple[int, int], size_bytes: int) -> bytes:
    """Return AES-256-CTR's stream under a 32-byte key; a nonce is two numbers below 2^32."""
    counter = struct.pack(">IIQ", *nonce, 0)
    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor().update(bytes(size_bytes))


def uniform(key: bytes, nonce: tuple[int, int], count: int, prime: int) -> Ints:
    """Return `count` values uniform in [0, prime), by rejection from the stream of key and nonce."""
    mask = np.uint64((1 << prime.bit_length()) - 1)
    # The primes lie just below a power of two, so that one word in 2^29 is dropped; half of all in the worst case.
    words = count + 64 if (1 << prime.bit_length()) - prime < prime >> 20 else 3 * count + 256
    values = np.frombuffer(stream(key, nonce, _WORD_BYTES * words), "<u8") & mask
    kept = values[values < prime]
    if len(kept) < count:
        raise ComityError(ErrorCode.INTERNAL, "a stream of random values ran out")
    return kept[:count].astype(np.int64)


def lagrange(points: tuple[int, ...], prime: int) -> dict[int, int]:
    """Return, by point, the weight with which values at `points` give the value at 0. Points are not 0 and differ."""
    if len(set(points)) != len(points) or not all(0 < point < prime for point in points):
        raise ComityError(ErrorCode.INTERNAL, "points are different numbers above 0")
    weights = {}
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        weights[point] = above * pow(below, -1, prime) % prime
    return weights
