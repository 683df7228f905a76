"""Numbers in limbs: totals are exact, and sums of limbs show nothing but the total."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.params import AGG_Q16, CHECK_SLOTS
from comity_crypto.secagg.frame.limbs import Cut
from comity_crypto.secagg.frame.replies import NUMBER_BITS, WEIGHT_ONE
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked.words import CONTENT_START, WORD_BOUND

# Two sets of three parties' numbers with one total. Low parts carry into 2^20, the weak limb, in the first set only.
CARRYING = ((1 << 20) - 1, 1 << 19, (1 << 19) + 1)
QUIET = (1 << 21, 0, 0)
WEAK = Cut(limb_bits=20, places=5, moved_bits=0)
CUTS = pytest.mark.parametrize("cut", [encoder.NUMBERS, masked_encoder.NUMBERS], ids=["agg-q16", "masked"])


def key(*salt: int) -> bytes:
    return hashlib.sha256(bytes(str(salt), "ascii")).digest()


def summed(cut: Cut, numbers: tuple[int, ...], salt: int) -> NDArray[np.int64]:
    return np.sum([cut.limbs([each], key(salt, place)) for place, each in enumerate(numbers)], axis=0)


def at_borders(cut: Cut, sums: NDArray[np.int64], total: int, parties: int) -> list[int]:
    """Recover what crossed each border from opened sums; fails if they are no function of it and of the total."""
    base, moved, crossed = 1 << cut.limb_bits, 1 << cut.moved_bits, 0
    found = []
    for place, limb in enumerate(sums.tolist()):
        last = place == cut.places - 1
        digit = total >> (cut.limb_bits * place) if last else (total >> (cut.limb_bits * place)) % base
        rest = limb - digit - (parties * moved if place else 0) + crossed
        if last:
            assert rest == 0
            break
        crossed, odd = divmod(rest, base)
        assert odd == 0
        found.append(crossed)
    return found


@CUTS
@pytest.mark.parametrize("parties", [1, 2, 3, 50])
def test_totals_are_exact_up_to_the_largest_numbers(cut: Cut, parties: int) -> None:
    assert cut.number_max >= WEIGHT_ONE * ((1 << NUMBER_BITS) - 1)
    numbers = [0, cut.number_max, WEIGHT_ONE * ((1 << NUMBER_BITS) - 1), 12_345_678_901_234_567_890]
    contributions = [cut.limbs(numbers, key(party)) for party in range(parties)]
    assert all(0 <= int(each.min()) <= int(each.max()) <= cut.limb_max for each in contributions)
    assert cut.totals(np.sum(contributions, axis=0), parties) == [parties * each for each in numbers]
    assert np.array_equal(contributions[0], cut.limbs(numbers, key(0))), "the same again for the same order"


def test_limbs_have_room_for_fifty() -> None:
    assert 50 * encoder.NUMBERS.limb_max < AGG_Q16.plain_modulus
    assert masked_encoder.NUMBERS.limb_max < WORD_BOUND


@CUTS
def test_numbers_and_sums_out_of_range_are_refused(cut: Cut) -> None:
    for number in (-1, cut.number_max + 1):
        with pytest.raises(ComityError) as caught:
            cut.limbs([number], key(0))
        assert caught.value.code is ErrorCode.TOO_LARGE
    good = cut.limbs([5], key(0))
    high, low, more = good.copy(), good.copy(), good.copy()
    high[0], low[0], more[-1] = cut.limb_max + 1, -1, cut.limb_max
    for bad in (high, low, more, good[:-1], np.zeros(cut.places, np.int64)):
        with pytest.raises(ComityError) as caught:
            cut.totals(bad, 1)
        assert caught.value.code is ErrorCode.SUM_MISMATCH


def test_plain_limbs_show_what_was_carried() -> None:
    """The weak variant: two sets with one total are told apart by one look."""
    carrying, quiet = (summed(WEAK, numbers, 0) for numbers in (CARRYING, QUIET))
    assert WEAK.totals(carrying, 3) == WEAK.totals(quiet, 3)
    assert carrying.tolist() != quiet.tolist()
    assert at_borders(WEAK, carrying, sum(CARRYING), 3)[0] == 2
    assert at_borders(WEAK, quiet, sum(QUIET), 3)[0] == 0


@CUTS
def test_opened_sums_are_a_function_of_the_total_and_of_blurred_carries(cut: Cut) -> None:
    """What `at_borders` recovers is all that the sums hold beside the total; it spreads over three uniform draws."""
    count, size = 300, 1 << cut.moved_bits
    for numbers in (CARRYING, QUIET):
        borders = np.array([at_borders(cut, summed(cut, numbers, salt), sum(numbers), 3) for salt in range(count)])
        assert 0 <= borders.min() <= borders.max() <= 3 * (size - 1) + 2
        error = size * (3 / 12) ** 0.5 / count**0.5
        assert np.abs(borders.mean(axis=0) - 1.5 * size).max() < 6 * error
        assert np.abs(borders.std(axis=0) / (size * (3 / 12) ** 0.5) - 1).max() < 0.25
        correlations = [np.corrcoef(one, other)[0, 1] for one, other in pairwise(borders.T)]
        assert max(map(abs, correlations)) < 6 / count**0.5


@pytest.mark.parametrize("parties", [2, 3, 10, 50])
def test_the_distance_of_two_sets_with_one_total_is_within_the_bound(parties: int) -> None:
    """By computing the distribution of a sum of uniform draws, and how far a carry moves it."""
    size = 1 << 7
    draws = np.ones(1)
    for _ in range(parties):
        draws = np.convolve(draws, np.full(size, 1 / size))
    for carried in range(parties):
        moved, still = np.pad(draws, (carried, 0)), np.pad(draws, (0, carried))
        assert np.abs(moved - still).sum() / 2 <= carried / size + 1e-12


def opened(name: str, numbers: tuple[int, ...], salt: int) -> NDArray[Any]:
    """Return the summed limbs that the lead sees of three parties' replies of one number, all of full weight."""
    total = None
    for place, number in enumerate(numbers):
        arguments = ({}, {}, WEIGHT_ONE, 1.0, 1.0, key(salt, place))
        if name == "agg-q16":
            limbs = encoder.encode(*arguments, numbers=[number]).slots[0, CHECK_SLOTS + 1 :][: encoder.NUMBERS.places]
        else:
            limbs = masked_encoder.encode(*arguments, numbers=[number]).words[CONTENT_START + 1 :]
        total = limbs.astype(np.int64) + (0 if total is None else total)
    return np.asarray(total)


@pytest.mark.parametrize("name", ["agg-q16", "masked"])
def test_replies_with_one_total_look_alike_to_the_lead(name: str) -> None:
    """Carries of plain limbs would be the same each time; here no place tells which set it was."""
    sets = [np.array([opened(name, numbers, salt) for salt in range(100)]) for numbers in (CARRYING, QUIET)]
    spread = np.maximum(sets[0].std(axis=0), sets[1].std(axis=0))
    cut = encoder.NUMBERS if name == "agg-q16" else masked_encoder.NUMBERS
    assert spread.min() > (1 << cut.moved_bits) / 4
    assert (np.abs(sets[0].mean(axis=0) - sets[1].mean(axis=0)) < 6 * spread * (2 / 100) ** 0.5).all()
