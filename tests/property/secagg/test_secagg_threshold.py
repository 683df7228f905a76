"""The collective key and its shares: exact for every quorum, nothing below it, strangers' bytes refused."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import params, residues, ring
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, LIMBS, Parameters
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX
from comity_crypto.secagg.threshold import keys, shares

N = AGG_Q16.ring_degree
SETS = list(params.PARAMETER_SETS.values())
RNG = np.random.default_rng(5)


@dataclass(frozen=True)
class Made:
    parameters: Parameters
    public: bytes
    shares: list[ring.Ints]
    parts: list[keys.Part]
    threshold: int

    def share(self, chunk: bytes, point: int, quorum: tuple[int, ...], seed: bytes | None = None) -> bytes:
        sharer = shares.Sharer(self.parameters, self.shares[point - 1], point, quorum, self.threshold, len(self.shares))
        return sharer.share([chunk], seed or os.urandom(32), 0)[0]

    def open(self, chunk: bytes, given_: list[bytes]) -> np.ndarray:
        return decrypter(self.parameters).decrypt(shares.fuse(self.parameters, chunk, given_))


@cache
def decrypter(parameters: Parameters) -> bfv.Decrypter:
    return bfv.Decrypter(parameters, bfv.make_key(parameters)[1])


@cache
def made(parameters: Parameters, n: int, threshold: int) -> Made:
    crs = keys.common_string("c" * 64, {f"org-{i}": os.urandom(32) for i in range(n)})
    common = keys.common_poly(parameters, crs, 0)
    parts = [keys.draw_part(parameters, os.urandom(32)) for _ in range(n)]
    public = keys.collective_key(parameters, common, [keys.public_share(parameters, common, part) for part in parts])
    if threshold == n:
        return Made(parameters, public, [keys.own_share(part.secret) for part in parts], parts, threshold)
    dealt = [keys.deal(parameters, part.secret, threshold, n, os.urandom(32)) for part in parts]
    gathered = [keys.gather(parameters, [row[place] for row in dealt]) for place in range(n)]
    return Made(parameters, public, gathered, parts, threshold)


def slots(parameters: Parameters) -> np.ndarray:
    return RNG.integers(0, parameters.plain_modulus, N).astype(np.uint64)


def summed(item: Made, count: int) -> tuple[bytes, list[int]]:
    encrypter = bfv.Encrypter(item.parameters, item.public)
    plain = [slots(item.parameters) for _ in range(count)]
    chunk = bfv.Adder(item.parameters).add([encrypter.encrypt(one) for one in plain])
    return chunk, [int(value) % item.parameters.plain_modulus for value in sum(one.astype(object) for one in plain)]


@pytest.mark.parametrize("parameters", SETS, ids=lambda item: item.name)
@pytest.mark.parametrize(("n", "threshold"), [(3, 3), (3, 2), (4, 3), (5, 3)])
def test_every_quorum_opens_the_exact_sum_and_one_less_nothing(parameters: Parameters, n: int, threshold: int) -> None:
    item = made(parameters, n, threshold)
    chunk, wanted = summed(item, n)
    for quorum in itertools.combinations(range(1, n + 1), threshold):
        given_ = [item.share(chunk, point, quorum) for point in quorum]
        assert item.open(chunk, given_).tolist() == wanted
        for left_out in range(threshold):
            fewer = given_[:left_out] + given_[left_out + 1 :]
            opened = item.open(chunk, fewer) if fewer else decrypter(parameters).decrypt(chunk)
            assert np.mean(opened == np.array(wanted, np.uint64)) < 0.001


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_shares_does_not_matter_and_a_changed_one_shows(seed: int) -> None:
    item, chance = made(AGG_Q16, 5, 3), random.Random(seed)
    chunk, wanted = summed(item, 3)
    quorum = tuple(sorted(chance.sample(range(1, 6), 3)))
    given_ = [item.share(chunk, point, quorum) for point in quorum]
    chance.shuffle(given_)
    assert item.open(chunk, given_).tolist() == wanted
    rows = residues.unpack_poly(given_[0], AGG_Q16, LIMBS).astype(np.int64)
    rows[chance.randrange(LIMBS), chance.randrange(N)] ^= 1 << 48
    rows %= np.array(AGG_Q16.data_primes)[:, None]
    spoiled = item.open(chunk, [residues.pack_poly(rows), *given_[1:]])
    assert np.mean(spoiled[: params.CHECK_SLOTS] == np.array(wanted[: params.CHECK_SLOTS])) < 1.0


def test_shares_of_fewer_than_a_quorum_are_independent_of_the_secret() -> None:
    """T - 1 points of a sharing are uniform: they complete, with some last point, to every secret."""
    part = keys.draw_part(AGG_Q16, os.urandom(32))
    dealt = keys.deal(AGG_Q16, part.secret, 3, 5, os.urandom(32))
    other = keys.draw_part(AGG_Q16, os.urandom(32))
    for limb, prime in enumerate(AGG_Q16.data_primes):
        for point in range(2):
            values = dealt[point].share[limb]
            assert abs(float(values.mean()) / prime - 0.5) < 0.03
            assert not np.array_equal(values, part.secret[limb])
        weights = ring.lagrange((1, 2, 3), prime)
        partial = ring.scale(dealt[0].share[limb], weights[1], prime)
        partial = ring.add(partial, ring.scale(dealt[1].share[limb], weights[2], prime), prime)
        missing = ring.subtract(other.secret[limb], partial, prime)
        third = ring.scale(missing, pow(weights[3], -1, prime), prime)
        total = ring.add(partial, ring.scale(third, weights[3], prime), prime)
        assert np.array_equal(total, other.secret[limb])


def test_parts_have_the_distributions_that_the_module_says() -> None:
    part = keys.draw_part(AGG_Q16, os.urandom(32))
    prime = AGG_Q16.primes[0]
    secret = ring.transform(N, prime).inverse(part.secret[:1])[0]
    error = ring.transform(N, prime).inverse(part.error[:1])[0]
    error = np.where(error > prime // 2, error - prime, error)
    for value in (0, 1, prime - 1):
        assert abs(float(np.mean(secret == value)) - 1 / 3) < 0.03
    assert abs(float(error.std()) - 10.5**0.5) < 0.2
    assert abs(float(error.mean())) < 0.2
    assert int(np.abs(error).max()) <= 21
    for limb, other in enumerate(AGG_Q16.primes):  # the same small numbers under every prime
        again = ring.transform(N, other).inverse(part.error[limb : limb + 1])[0]
        assert np.array_equal(np.where(again > other // 2, again - other, again), error)
    assert repr(part) == "Part()"


@pytest.mark.parametrize("parameters", SETS, ids=lambda item: item.name)
def test_smudging_has_full_granularity_and_is_one_integer_under_both_primes(parameters: Parameters) -> None:
    bits = {"agg-q16": 48, "agg-i32": 56}[parameters.name]
    assert shares.SMUDGING_BITS[parameters.name] == bits
    seed = os.urandom(32)
    noise = shares.smudging(parameters, seed, 3)
    assert -(1 << bits) <= int(noise.min()) < -(1 << (bits - 1))
    assert (1 << (bits - 1)) < int(noise.max()) < 1 << bits
    for bit in (0, 1, bits // 2):  # a double's noise would leave the low bits bare
        assert abs(float(np.mean(noise >> bit & 1)) - 0.5) < 0.03
    assert np.array_equal(noise, shares.smudging(parameters, seed, 3))
    assert not np.array_equal(noise, shares.smudging(parameters, seed, 4))
    item = made(parameters, 3, 3)
    chunk, _ = summed(item, 1)
    share = residues.unpack_poly(item.share(chunk, 1, (1, 2, 3), seed), parameters, LIMBS)
    for limb, prime in enumerate(parameters.data_primes):
        turn = ring.transform(N, prime)
        c1 = residues.unpack_chunk(chunk, parameters)[1, limb].astype(np.int64)
        bare = turn.inverse(ring.multiply(turn.forward(c1[None])[0], item.shares[0][limb], prime)[None])[0]
        left = ring.subtract(share[limb].astype(np.int64), bare, prime)
        assert np.array_equal(left, shares.smudging(parameters, seed, 0) % prime)


def test_without_noise_a_share_gives_its_key_away_and_with_it_not() -> None:
    item = made(AGG_Q16, 3, 3)
    chunk, _ = summed(item, 1)
    prime = AGG_Q16.primes[0]
    turn = ring.transform(N, prime)
    c1 = turn.forward(residues.unpack_chunk(chunk, AGG_Q16)[1, :1].astype(np.int64))[0]
    inverse = np.array([pow(int(value), -1, prime) for value in c1], np.int64)
    bare = ring.multiply(c1, item.shares[0][0], prime)
    assert np.array_equal(ring.multiply(bare, inverse, prime), item.shares[0][0]), (
        "division gives the weak variant's key"
    )
    ours = residues.unpack_poly(item.share(chunk, 1, (1, 2, 3)), AGG_Q16, LIMBS)[:1].astype(np.int64)
    found = ring.multiply(turn.forward(ours)[0], inverse, prime)
    assert np.mean(found == item.shares[0][0]) < 0.001


@pytest.mark.parametrize("parameters", SETS, ids=lambda item: item.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_fifty_shares_of_the_largest_noise_still_open(
    parameters: Parameters, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = CONTRIBUTORS_MAX
    top = (1 << shares.SMUDGING_BITS[parameters.name]) - (sign > 0)
    monkeypatch.setattr(shares, "smudging", lambda *_: np.full(N, sign * top, np.int64))
    item = made(parameters, n, n)
    chunk, wanted = summed(item, n)
    quorum = tuple(range(1, n + 1))
    assert item.open(chunk, [item.share(chunk, point, quorum) for point in quorum]).tolist() == wanted
    assert n * (1 << shares.SMUDGING_BITS[parameters.name]) < AGG_Q16.primes[0] ** 2 // (2 * parameters.plain_modulus)


@pytest.mark.parametrize(("n", "threshold"), [(3, 2), (4, 3), (7, 5), (10, 7)])
def test_a_dealer_whose_points_lie_on_no_polynomial_is_seen(n: int, threshold: int) -> None:
    part = keys.draw_part(AGG_Q16, os.urandom(32))
    dealt = keys.deal(AGG_Q16, part.secret, threshold, n, os.urandom(32))
    challenge = os.urandom(32)
    values = [keys.check_values(AGG_Q16, challenge, 1, item) for item in dealt]
    assert keys.on_one_polynomial(AGG_Q16, threshold, values)
    assert not keys.on_one_polynomial(AGG_Q16, threshold - 1, values), "the degree is T - 1, not less"
    for place in range(n):
        share = dealt[place].share.copy()
        share[1, 5] = (share[1, 5] + 1) % AGG_Q16.primes[1]
        spoiled = [*values]
        spoiled[place] = keys.check_values(AGG_Q16, challenge, 1, replace(dealt[place], share=share))
        assert not keys.on_one_polynomial(AGG_Q16, threshold, spoiled)
    again = keys.deal(AGG_Q16, part.secret, threshold, n, os.urandom(32))
    assert [keys.check_values(AGG_Q16, challenge, 1, item) for item in again] != values, "the added value hides them"


def test_common_polynomials_follow_from_all_nonces_and_differ_by_key() -> None:
    nonces = {f"org-{i}": bytes([i]) * 32 for i in range(3)}
    crs = keys.common_string("c" * 64, nonces)
    assert crs == keys.common_string("c" * 64, dict(reversed(nonces.items())))
    assert crs != keys.common_string("d" * 64, nonces)
    assert crs != keys.common_string("c" * 64, {**nonces, "org-1": bytes(32)})
    first = keys.common_poly(AGG_Q16, crs, 0)
    assert np.array_equal(first, keys.common_poly(AGG_Q16, crs, 0))
    for other in (keys.common_poly(AGG_Q16, crs, 1), keys.common_poly(AGG_I32, crs, 0)):
        assert not np.array_equal(first, other)
    for limb, prime in enumerate(AGG_Q16.primes):
        assert first[limb].shape == (N,)
        assert int(first[limb].max()) < prime


def hostile() -> list[bytes]:
    size = shares.share_bytes(AGG_Q16)
    over = np.zeros((LIMBS, N), np.uint64)
    over[1, N - 1] = AGG_Q16.primes[1]
    return [b"", b"\0", b"\xff" * size, bytes(size - 1), bytes(size + 1), residues.pack(over), bytes(3 * size)]


@pytest.mark.parametrize("data", hostile(), ids=["empty", "one", "ones", "short", "long", "prime", "twice"])
def test_strangers_shares_and_boxes_are_refused(data: bytes) -> None:
    item = made(AGG_Q16, 3, 2)
    chunk, _ = summed(item, 1)
    jobs = [
        lambda: shares.fuse(AGG_Q16, chunk, [data]),
        lambda: keys.unpack_dealt(AGG_Q16, data + bytes(16)),
        lambda: keys.unpack_dealt(AGG_Q16, data),
        lambda: item.share(data, 1, (1, 2)),
    ]
    for job in jobs:
        with pytest.raises(ComityError) as caught:
            job()
        assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


def test_boxes_come_back_as_they_were_and_no_value_beyond_its_prime() -> None:
    dealt = keys.deal(AGG_Q16, keys.draw_part(AGG_Q16, os.urandom(32)).secret, 2, 3, os.urandom(32))[1]
    data = keys.pack_dealt(dealt)
    assert len(data) == keys.dealt_bytes(AGG_Q16)
    back = keys.unpack_dealt(AGG_Q16, data)
    assert np.array_equal(back.share, dealt.share)
    assert back.blind == dealt.blind
    with pytest.raises(ComityError):
        keys.unpack_dealt(AGG_Q16, data[:-8] + AGG_Q16.primes[1].to_bytes(8, "little"))


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 102_400))
def test_no_bytes_crash_the_reader_of_shares(noise: bytes, place: int) -> None:
    good = bytes(shares.share_bytes(AGG_Q16))
    data = good[:place] + noise + good[place + len(noise) :]
    read = None
    with contextlib.suppress(ComityError):
        read = residues.unpack_poly(data, AGG_Q16, LIMBS)
    assert read is None or residues.pack(read) == data


@pytest.mark.parametrize(
    ("point", "quorum", "threshold"), [(1, (2, 3), 2), (1, (1,), 2), (1, (1, 9), 2), (1, (1, 2, 3), 2)]
)
def test_a_share_is_made_for_a_quorum_of_the_key_only(point: int, quorum: tuple[int, ...], threshold: int) -> None:
    with pytest.raises(ComityError):
        shares.Sharer(AGG_Q16, made(AGG_Q16, 3, 2).shares[0], point, quorum, threshold, 3)


def test_entropy_of_another_length_is_refused() -> None:
    part = keys.draw_part(AGG_Q16, os.urandom(32))
    for job in (
        lambda: keys.draw_part(AGG_Q16, b""),
        lambda: keys.deal(AGG_Q16, part.secret, 2, 3, b"short"),
        lambda: shares.smudging(AGG_Q16, b"", 0),
        lambda: keys.deal(AGG_Q16, part.secret, 3, 3, os.urandom(32)),
        lambda: keys.deal(AGG_Q16, part.secret, 1, 3, os.urandom(32)),
    ):
        with pytest.raises(ComityError):
            job()
