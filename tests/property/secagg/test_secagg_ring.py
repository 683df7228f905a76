"""Arithmetic modulo a prime and the transform: against Python's integers, against SEAL, and without side effects."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import tenseal
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError
from comity_crypto.secagg.bfv import ring
from comity_crypto.secagg.bfv.params import AGG_Q16

N = AGG_Q16.ring_degree
PRIMES = AGG_Q16.primes
RNG = np.random.default_rng(7)


def polys(count: int, prime: int) -> ring.Ints:
    return RNG.integers(0, prime, (count, N))


@settings(max_examples=60)
@given(data=st.data(), prime=st.sampled_from([*PRIMES, 97, 65537]))
def test_arithmetic_is_pythons(data: st.DataObject, prime: int) -> None:
    edge = st.sampled_from([0, 1, 2, prime // 2, prime - 2, prime - 1]) | st.integers(0, prime - 1)
    a = data.draw(st.lists(edge, min_size=1, max_size=30))
    b = data.draw(st.lists(edge, min_size=len(a), max_size=len(a)))
    left, right = np.array(a, np.int64), np.array(b, np.int64)
    checks: list[tuple[ring.Ints, Callable[[int, int], int]]] = [
        (ring.multiply(left, right, prime), lambda x, y: x * y),
        (ring.multiply(left, right, prime, right / float(prime)), lambda x, y: x * y),
        (ring.add(left, right, prime), lambda x, y: x + y),
        (ring.subtract(left, right, prime), lambda x, y: x - y),
    ]
    for found, wanted in checks:
        assert found.tolist() == [wanted(x, y) % prime for x, y in zip(a, b, strict=True)]
    assert ring.scale(left, b[0], prime).tolist() == [x * b[0] % prime for x in a]
    assert left.tolist() == a


def test_products_at_the_edges_are_exact() -> None:
    for prime in PRIMES:
        top = np.arange(prime - 3000, prime, dtype=np.int64)
        grid = ring.multiply(top[:, None][:60], top[None], prime)
        wanted = top[:60, None].astype(object) * top[None].astype(object) % prime
        assert bool((grid.astype(object) == wanted).all())


@settings(max_examples=60)
@given(data=st.data(), prime=st.sampled_from([*PRIMES, 97]))
def test_whatever_lies_within_some_thousand_primes_is_reduced_exactly(data: st.DataObject, prime: int) -> None:
    near = st.builds(
        lambda factor, half, beside: factor * prime + half * (prime // 2) + beside,
        st.integers(-4000, 4000),
        st.integers(0, 1),
        st.integers(-3, 3),
    )
    given_ = data.draw(st.lists(near | st.integers(-4000 * prime, 4000 * prime), min_size=1, max_size=200))
    values = np.array(given_, np.int64)
    ring.reduce(values, prime)
    assert values.tolist() == [value % prime for value in given_]


@pytest.mark.parametrize("prime", PRIMES)
def test_the_transforms_are_exact_at_the_edges(prime: int) -> None:
    turn = ring.transform(N, prime)
    top: ring.Ints = np.full((3, N), prime - 1, np.int64)
    top[1, ::2], top[2, N // 2 :] = 0, 1
    transformed = turn.forward(top)
    assert np.array_equal(turn.inverse(transformed), top)
    assert 0 <= int(transformed.min()) <= int(transformed.max()) < prime
    found = turn.inverse(top)
    assert 0 <= int(found.min()) <= int(found.max()) < prime
    assert np.array_equal(turn.forward(found), top)


@pytest.mark.parametrize("prime", PRIMES)
@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_one_polynomial_is_copied_as_many_are(prime: int, count: int) -> None:
    """A single one was once changed in place (research/crypto.md section 8): every later use of it was wrong."""
    given_ = polys(count, prime)
    before = given_.copy()
    turn = ring.transform(N, prime)
    transformed = turn.forward(given_)
    assert np.array_equal(given_, before)
    kept = transformed.copy()
    back = turn.inverse(transformed)
    assert np.array_equal(transformed, kept)
    assert np.array_equal(back, given_)
    assert not np.shares_memory(back, transformed)
    for place in range(count):
        assert np.array_equal(turn.forward(given_[place : place + 1])[0], transformed[place])


def test_the_transform_multiplies_polynomials_modulo_x_to_the_n_plus_one() -> None:
    prime = 97  # 97 = 1 mod 2 x 16
    a, b = RNG.integers(0, prime, 16), RNG.integers(0, prime, 16)
    turn = ring.transform(16, prime)
    product = ring.multiply(turn.forward(a[None])[0], turn.forward(b[None])[0], prime)
    wanted = [0] * 16
    for i in range(16):
        for j in range(16):
            wanted[(i + j) % 16] += int(a[i] * b[j]) * (1 if i + j < 16 else -1)
    assert turn.inverse(product[None])[0].tolist() == [value % prime for value in wanted]


def test_the_transform_is_seals_own() -> None:
    """SEAL keeps s and (pk0, pk1) transformed: in its own order and root alone is pk0 + pk1 s that of an error."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, N, plain_modulus=AGG_Q16.plain_modulus, coeff_mod_bit_sizes=[50, 50, 50]
    )
    secret, public = context.secret_key().data, context.public_key().data.data()
    flat = secret.data()
    for limb, prime in enumerate(PRIMES):
        read = np.array([flat[limb * N + i] for i in range(N)], np.int64)
        small = ring.transform(N, prime).inverse(read[None])[0]
        assert set(small.tolist()) <= {0, 1, prime - 1}
        assert np.array_equal(ring.transform(N, prime).forward(small[None])[0], read)
        pk0, pk1 = (np.array([public[(poly * 3 + limb) * N + i] for i in range(N)], np.int64) for poly in range(2))
        error = ring.transform(N, prime).inverse(ring.add(pk0, ring.multiply(pk1, read, prime), prime)[None])[0]
        assert int(np.minimum(error, prime - error).max()) <= 21


def test_uniform_values_are_below_the_prime_repeatable_and_of_their_own_nonce() -> None:
    key = os.urandom(32)
    for prime in (*PRIMES, 97):
        first = ring.uniform(key, (1, 2), 4096, prime)
        assert np.array_equal(first, ring.uniform(key, (1, 2), 4096, prime))
        assert not np.array_equal(first, ring.uniform(key, (1, 3), 4096, prime))
        assert int(first.min()) >= 0
        assert int(first.max()) < prime
        assert abs(float(first.mean()) / prime - 0.5) < 0.03


@settings(max_examples=40)
@given(data=st.data())
def test_weights_give_the_value_at_zero(data: st.DataObject) -> None:
    prime = data.draw(st.sampled_from(PRIMES))
    points = tuple(data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=20, unique=True)))
    coefficients = data.draw(st.lists(st.integers(0, prime - 1), min_size=1, max_size=len(points)))
    values = {point: sum(c * point**power for power, c in enumerate(coefficients)) for point in points}
    weights = ring.lagrange(points, prime)
    assert sum(weights[point] * values[point] for point in points) % prime == coefficients[0]


@pytest.mark.parametrize("points", [(0, 1), (1, 1), (-1, 2)])
def test_points_that_interpolate_nothing_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(ComityError):
        ring.lagrange(points, PRIMES[0])


@pytest.mark.parametrize(
    "job",
    [
        lambda: ring.Transform(N, (1 << 50) + 1),
        lambda: ring.transform(N, PRIMES[0]).forward(np.zeros((1, 5), np.int64)),
        lambda: ring.transform(N, PRIMES[0]).inverse(np.zeros(N, np.int64)),
    ],
    ids=["prime", "length", "shape"],
)
def test_what_the_ring_cannot_do_is_refused(job: Callable[[], object]) -> None:
    with pytest.raises(ComityError):
        job()
