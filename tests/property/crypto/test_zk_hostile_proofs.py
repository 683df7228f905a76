"""Proofs from strangers: every part altered, and thousands of hostile bytes: refused, never a crash or a hang."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.zk import bulletproofs, claims, group, independent, pedersen, schnorr
from comity_crypto.zk.binding import Binding

HERE = Binding("ab" * 32, "cd" * 32, "hospital-a")
HALVINGS = bulletproofs.halvings_of(32, 1)
POINTS = 4 + 2 * HALVINGS


@cache
def proven():
    return claims.prove_at_least(180, 20, HERE)


def refused(call, *args):
    with pytest.raises(ComityError) as caught:
        call(*args)
    assert caught.value.code is ErrorCode.CLAIM_UNPROVEN, caught.value


def pieces():
    proof = proven().proof
    points = [proof[at : at + 48] for at in range(0, POINTS * 48, 48)]
    numbers = [proof[at : at + 32] for at in range(POINTS * 48, len(proof), 32)]
    return points, numbers


@pytest.mark.parametrize("place", range(POINTS))
def test_no_point_can_be_exchanged(place):
    points, numbers = pieces()
    other = group.encode_point(group.hash_to_group("stranger"))
    negated = bytes([points[place][0] ^ 0x20]) + points[place][1:]
    for put in (other, negated, points[(place + 1) % POINTS], bytes([0xC0]) + bytes(47)):
        altered = b"".join([*points[:place], put, *points[place + 1 :], *numbers])
        refused(claims.verify_at_least, proven().commitment, 20, altered, HERE)


@pytest.mark.parametrize("place", range(5))
def test_no_number_can_be_exchanged(place):
    points, numbers = pieces()
    value = int.from_bytes(numbers[place], "big")
    puts = [(value + 1) % group.ORDER, -value % group.ORDER, 0, value + group.ORDER]
    for put in [each.to_bytes(32, "big") for each in puts if each < 1 << 256]:
        altered = b"".join([*points, *numbers[:place], put, *numbers[place + 1 :]])
        refused(claims.verify_at_least, proven().commitment, 20, altered, HERE)


def test_altered_proofs_do_not_pass_the_independent_verifier_either():
    points, numbers = pieces()
    for place in (0, 3, POINTS - 1):
        altered = b"".join([*points[:place], points[place - 1], *points[place + 1 :], *numbers])
        refused(independent.verify_at_least, proven().commitment, 20, altered, HERE)
    for place in range(5):
        put = ((int.from_bytes(numbers[place], "big") + 1) % group.ORDER).to_bytes(32, "big")
        altered = b"".join([*points, *numbers[:place], put, *numbers[place + 1 :]])
        refused(independent.verify_at_least, proven().commitment, 20, altered, HERE)


@given(st.data())
def test_any_changed_byte_is_noticed(data):
    proof, commitment = proven().proof, proven().commitment
    both = bytearray(commitment + proof)
    both[data.draw(st.integers(0, len(both) - 1))] ^= data.draw(st.integers(1, 255))
    refused(claims.verify_at_least, bytes(both[:48]), 20, bytes(both[48:]), HERE)


@given(st.binary(max_size=48), st.binary(max_size=900))
def test_any_bytes_are_refused(commitment, proof):
    refused(claims.verify_at_least, commitment, 20, proof, HERE)
    refused(claims.verify_between, [commitment], 0, 9, proof, HERE)
    refused(schnorr.verify_same, commitment, commitment[::-1], proof[:80], HERE)
    refused(pedersen.verify_sum, [commitment], 1, 2)


def test_thousands_of_hostile_proofs_are_refused():
    """Of the right size, with true parts among the false ones, so that they get past the first look."""
    chance = random.Random(2024)
    good, commitment = proven().proof, proven().commitment
    (one, of_one), (two, of_two) = pedersen.commit(7), pedersen.commit(7)
    made = schnorr.prove_same(one, two, of_one, of_two, HERE)
    for _ in range(3000):
        hostile = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at, size = chance.randrange(len(good)), chance.choice((1, 4, 32, 48, 200))
            hostile[at : at + size] = chance.choice((chance.randbytes(size), bytes(size), b"\xff" * size))
        cut = bytes(hostile[: chance.choice((len(good), len(good), len(good) - 1, len(good) + 1))])
        if cut != good:
            refused(claims.verify_at_least, commitment, 20, cut, HERE)
    for _ in range(1000):
        hostile = bytearray(made)
        hostile[chance.randrange(80)] ^= chance.randint(1, 255)
        refused(schnorr.verify_same, one, two, bytes(hostile), HERE)


@given(st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=4), st.integers(0, 1000), st.integers(0, 1000))
def test_true_claims_pass_whatever_the_numbers(values, below, above):
    low, high = min(values) - below, max(values) + above
    made = [pedersen.commit(value) for value in values]
    commitments, openings = [each for each, _ in made], [each for _, each in made]
    proof = claims.prove_between(commitments, openings, low, high, HERE)
    claims.verify_between(commitments, low, high, proof, HERE)
    pedersen.verify_sum(commitments, sum(values), sum(each.blinding for each in openings))


def test_scalars_that_are_zero_crash_nothing():
    refused(claims.verify_at_least, proven().commitment, 20, proven().proof[: POINTS * 48] + bytes(160), HERE)
    refused(independent.verify_at_least, proven().commitment, 20, proven().proof[: POINTS * 48] + bytes(160), HERE)


def reads(call, *args):
    try:
        call(*args)
    except ComityError as error:
        return error.code is not ErrorCode.CLAIM_UNPROVEN  # anything else is a crash in disguise
    return True


def differing_points(count, seed):
    """Points that only one of the two implementations reads, out of `count` hostile ones."""
    chance, good = random.Random(seed), group.encode_point(group.hash_to_group("someone"))
    for _ in range(count):
        hostile = bytearray(chance.choice((good, chance.randbytes(48), proven().commitment)))
        for _ in range(chance.randint(0, 3)):
            hostile[chance.randrange(48)] ^= 1 << chance.randrange(8)
        hostile[0] = chance.choice((hostile[0], hostile[0] | 0x80, hostile[0] ^ 0x20, 0xC0))
        point = bytes(hostile[: chance.choice((48, 48, 48, 47))])
        if reads(group.decode_point, point) != reads(independent._point, point):
            yield point


def test_both_implementations_read_the_same_points():
    assert list(differing_points(120, 3)) == []


@pytest.mark.slow
def test_both_implementations_read_the_same_of_thousands_of_points():
    assert list(differing_points(4_000, 4)) == []


@pytest.mark.slow
def test_thousands_of_hostile_comparisons_and_sums_are_refused_by_both():
    chance = random.Random(8)
    (one, of_one), (two, of_two) = pedersen.commit(7), pedersen.commit(7)
    made = schnorr.prove_same(one, two, of_one, of_two, HERE)
    blinding = of_one.blinding + of_two.blinding
    pedersen.verify_sum([one, two], 14, blinding)
    for number in range(2_000):
        parts = [bytearray(each) for each in (one, two, made)]
        altered = chance.choice(parts)
        altered[chance.randrange(len(altered))] ^= chance.randint(1, 255)
        first, second, proof = (bytes(each) for each in parts)
        refused(schnorr.verify_same, first, second, proof, HERE)
        off = chance.choice((1, -1, 1 << 64, group.ORDER))
        refused(pedersen.verify_sum, [one, two], 14 + off, blinding)
        refused(pedersen.verify_sum, [one, two], 14, blinding + chance.randrange(1, 1 << 200))
        if number % 40 == 0:
            refused(independent.verify_same, first, second, proof, HERE)
            refused(independent.verify_sum, [one, two], 14 + off, blinding)
