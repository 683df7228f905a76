"""Noise: exactly distributed, as large as the budget asks for, charged as dp-accounting says."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.noise import budget, mechanism
from comity_crypto.noise.discrete import discrete_gaussian
from comity_crypto.noise.mechanism import Group


def drawn(variance: Fraction, count: int) -> list[int]:
    below = random.Random(7).randrange
    return [discrete_gaussian(variance, below) for _ in range(count)]


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(4), Fraction(123_457, 7)])
def test_each_integer_has_its_probability(variance: Fraction) -> None:
    count = 4_000
    found = drawn(variance, count)
    reach = range(-60 * math.isqrt(int(variance) + 1), 60 * math.isqrt(int(variance) + 1) + 1)
    weights = {y: math.exp(-y * y / (2 * float(variance))) for y in reach}
    total = sum(weights.values())
    second = sum(y * y * weight for y, weight in weights.items()) / total
    # Five standard errors of a mean and of a second moment (a Gaussian's fourth is three times the square).
    assert abs(sum(found)) / count < 5 * math.sqrt(second / count)
    assert abs(sum(y * y for y in found) / count / second - 1) < 5 * math.sqrt(2.5 / count)
    if variance < 10:
        for y in (-1, 0, 1):
            p = weights[y] / total
            assert abs(found.count(y) / count - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_a_generator_that_says_one_thing_only_ends_in_an_error() -> None:
    with pytest.raises(ComityError) as caught:
        discrete_gaussian(Fraction(4), lambda size: 0)
    assert caught.value.code == ErrorCode.INTERNAL


@pytest.mark.parametrize(
    ("epsilon", "delta", "releases"), [("1", "0.000001", 1), ("4", "0.00001", 6), ("0.1", "0.01", 3)]
)
def test_the_budget_is_used_up_by_exactly_its_releases(epsilon: str, delta: str, releases: int) -> None:
    rho = budget.rho_of(epsilon, delta, releases)
    accountant = RdpAccountant()
    accountant.compose(dp_event.ZCDpEvent(rho=rho), releases)
    assert accountant.get_epsilon(float(delta)) == pytest.approx(float(epsilon), rel=1e-6)
    costs = [budget.cost_nano(rho, number, delta) for number in range(releases + 2)]
    assert costs == sorted(set(costs))
    assert costs[releases] <= budget.nano(epsilon) < costs[releases + 1]


def test_noise_fits_a_gaussian_of_the_same_size() -> None:
    """One integer of sensitivity 1, two honest: together they are as wide as the analytic Gaussian's loss asks for."""
    rho = budget.rho_of("1", "0.000001", 1)
    (share,) = mechanism.shares_of([Group(1, 1)], rho, mechanism.HONEST_IN_A_SUM)
    accountant = RdpAccountant()
    accountant.compose(dp_event.GaussianDpEvent(math.sqrt(2 * float(share.variance))))
    assert accountant.get_epsilon(1e-6) == pytest.approx(1.0, rel=1e-4)
    (alone,) = mechanism.shares_of([Group(1, 1)], rho, mechanism.HONEST_ALONE)
    assert alone.variance == pytest.approx(2 * share.variance, rel=1e-4)


def test_groups_share_the_loss_and_narrow_noise_is_widened() -> None:
    rho = 0.5
    shares = mechanism.shares_of([Group(1, 1), Group(100, 50)], rho, 2)
    assert sum(mechanism.loss(each.group, float(each.variance), 2) for each in shares) <= rho
    assert shares[1].variance == pytest.approx(2500 * shares[0].variance, rel=1e-6) or shares[0].variance == 4
    (narrow,) = mechanism.shares_of([Group(1_000, 1)], 50.0, 2)
    assert narrow.variance == mechanism.VARIANCE_MIN
    assert mechanism.excess(float(narrow.variance), 2) < 1e-15


@pytest.mark.parametrize(("epsilon", "delta"), [("0", "0.01"), ("1", "0")])
def test_a_budget_that_is_none_is_refused_by_name(epsilon: str, delta: str) -> None:
    with pytest.raises(ComityError) as caught:
        budget.rho_of(epsilon, delta, 1)
    assert (caught.value.code, caught.value.facts["field"]) == (ErrorCode.UNSUPPORTED, "privacy")
