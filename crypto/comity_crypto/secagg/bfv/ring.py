"""Arithmetic in Z_q[X]/(X^N + 1) by the prime, equal bit by bit to SEAL's transforms, in numpy.

1. Arrays are int64 with values in [0, prime), prime < 2^50; the last axis is the coefficient. Nothing is changed in
   place that a caller owns: a transform of one single polynomial copies as one of many does.
2. Products: a double gives the quotient to within one, wrapping 64-bit integers give the remainder, two corrections
   make it exact (research/crypto.md 2.1). `tests/property/secagg` compares with Python's integers at the edges.
3. The transform is SEAL's: negacyclic, with the smallest primitive 2N-th root, output in bit-reversed order. Inside
   it, values are reduced as late as 64 bits allow: with |a| <= k p, a x b less its truncated quotient lies within
   (0.38 k + 1) p, for three roundings of a double shift the quotient by less than |a| 2^-51.4. A forward stage adds
   that to k: below 2^9 after 15. An inverse one doubles k at most, and is reduced every 7. 2^12 p would still fit.
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
DEGREE_MAX = 1 << 15
# 8 polynomials of 8192 coefficients are 512 KiB: a block and what it takes stay in the second-level cache.
_BLOCK_POLYS = 8
# Stages of an inverse transform after which values are reduced: each doubles them at most.
_STAGES_UNREDUCED = 7
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


def reduce(values: Ints, prime: int) -> None:
    """Reduce values within 2^12 primes of 0 to [0, prime), in place."""
    quotient = np.rint(values * (1.0 / prime)).astype(np.int64)
    quotient *= prime
    values -= quotient  # to the nearest, so that a quotient that is off leaves them far from -prime and prime
    values += (values >> 63) & prime


class Transform:
    """The number-theoretic transform of one ring and prime; take it from `transform`."""

    def __init__(self, degree: int, prime: int) -> None:
        if prime >> PRIME_BITS_MAX or prime % (2 * degree) != 1 or degree > DEGREE_MAX:
            raise ComityError(ErrorCode.INTERNAL, "no transform for this prime")
        self.degree, self.prime = degree, prime
        root = _smallest_root(degree, prime)
        # The first stages run along coefficients, the others along blocks of `_width` of them: rows stay long.
        self._width = 1 << (degree.bit_length() // 2 - 1)
        self._forward = self._stages(_powers(root, degree, prime))
        self._inverse = self._stages(_powers(pow(root, -1, prime), degree, prime))
        unscale: Ints = np.full(1, pow(degree, -1, prime), np.int64)
        self._unscale = unscale, unscale / float(prime)

    def forward(self, polys: Ints) -> Ints:
        """Return the transforms of polynomials, shape (count, N), in SEAL's order."""
        return self._blocks(polys, self._forward_block)

    def inverse(self, polys: Ints) -> Ints:
        """Return the polynomials of transforms, shape (count, N)."""
        return self._blocks(polys, self._inverse_block)

    def _stages(self, powers: Ints) -> list[tuple[Ints, NDArray[np.float64]]]:
        """Return, by stage of 1, 2, 4 .. groups, the groups' factors and factors / prime, as `_views` lays them out."""
        stages = []
        for stage in range(self.degree.bit_length() - 1):
            factors, blocks = powers[1 << stage : 2 << stage], self.degree // self._width
            inner = (1 << stage) // blocks
            shaped = factors.reshape(blocks, inner).T[:, None] if inner else factors[:, None]
            shaped = np.ascontiguousarray(shaped)
            stages.append((shaped, shaped / float(self.prime)))
        return stages

    def _blocks(self, polys: Ints, work: object) -> Ints:
        if polys.ndim != 2 or polys.shape[1] != self.degree or not callable(work):
            raise ComityError(ErrorCode.INTERNAL, "a transform takes whole polynomials")
        out = np.empty(polys.shape, np.int64)
        for start in range(0, len(polys), _BLOCK_POLYS):
            work(polys[start : start + _BLOCK_POLYS], out[start : start + _BLOCK_POLYS])
        return out

    def _halves(self, block: Ints, stage: int) -> tuple[Ints, Ints]:
        """Return the upper and lower halves of a stage's groups, views of (count, N) or (count, width, blocks)."""
        groups, tail = 1 << stage, 1
        if block.ndim == 3:
            tail = block.shape[2]
            groups //= tail
        shape = (len(block), groups, 2, self.degree // (2 * groups * tail))
        view = block.reshape(*shape, tail) if block.ndim == 3 else block.reshape(shape)
        return view[:, :, 0], view[:, :, 1]

    def _across(self, block: Ints) -> Ints:
        """Return polynomials with their blocks side by side, shape (count, width, blocks)."""
        return np.ascontiguousarray(block.reshape(len(block), -1, self._width).transpose(0, 2, 1))

    def _forward_block(self, given: Ints, out: Ints) -> None:
        block = np.array(given, dtype=np.int64, order="C")
        for stage, (factor, ratio) in enumerate(self._forward):
            if block.ndim == 2 and 1 << stage == self.degree // self._width:
                block = self._across(block)
            upper, lower = self._halves(block, stage)
            product = _product(lower, factor, ratio, self.prime)
            np.subtract(upper, product, out=lower)
            upper += product
        reduce(block, self.prime)
        self._flatten(block, out)

    def _inverse_block(self, given: Ints, out: Ints) -> None:
        block = self._across(given.astype(np.int64, copy=False))
        for done, stage in enumerate(reversed(range(len(self._inverse))), 1):
            if block.ndim == 3 and 1 << stage < self.degree // self._width:
                self._flatten(block, out)
                block = out
            factor, ratio = self._inverse[stage]
            upper, lower = self._halves(block, stage)
            difference = upper - lower
            upper += lower
            lower[...] = _product(difference, factor, ratio, self.prime)
            if done % _STAGES_UNREDUCED == 0:
                reduce(block, self.prime)
        factor, ratio = self._unscale
        block = _product(block, factor, ratio, self.prime)
        reduce(block, self.prime)
        self._flatten(block, out)

    def _flatten(self, block: Ints, out: Ints) -> None:
        if block.ndim == 3:
            block = block.transpose(0, 2, 1)
        out.reshape(len(out), -1, self._width)[...] = block.reshape(len(out), -1, self._width)


def _product(a: Ints, factor: Ints, ratio: NDArray[np.float64], prime: int) -> Ints:
    """Return a x factor modulo the prime, not yet reduced (rule 3). `ratio` is factor / prime."""
    share = a.astype(np.float64)
    share *= ratio
    quotient = share.astype(np.int64)
    quotient *= prime
    out: Ints = a * factor
    out -= quotient
    return out


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
