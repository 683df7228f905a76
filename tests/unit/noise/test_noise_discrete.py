"""Noise: exactly distributed, as large as the budget asks for, charged as dp-accounting says."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from dp_accounting import dp_event
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from dp_accounting.rdp import RdpAccountant

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.noise import budget, mechanism
from comity_crypto.noise.discrete import discrete_gaussian
from comity_crypto.noise.mechanism import Group
from comity_node.statistics import vectors


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


PI = Decimal("3.14159265358979323846264338327950288419716939937510582")


def sum_of_two(variance: Decimal, reach: int) -> dict[int, Decimal]:
    """Return the distribution of a sum of two discrete Gaussians of this sigma^2, from -reach to reach.

    j^2 + (y - j)^2 = 2 (j - y/2)^2 + y^2/2, so the probability of y is exp(-y^2 / (4 sigma^2)) times what depends on
    the parity of y alone: a discrete Gaussian but for that factor.
    """
    parities = [sum((-((j - Decimal(odd) / 2) ** 2) / variance).exp() for j in range(-40, 41)) for odd in (0, 1)]
    weights = {y: (-(Decimal(y) ** 2) / (4 * variance)).exp() * parities[y % 2] for y in range(-reach, reach + 1)}
    total = sum(weights.values())
    return {y: weight / total for y, weight in weights.items()}


def divergence(variance: Decimal, shift: int, order: int) -> Decimal:
    """Return the Renyi divergence between the sum of two and the same sum, `shift` further."""
    law = sum_of_two(variance, 90 + order * shift)
    inner = range(shift - max(law), max(law) + 1)
    return sum(law[y] * (law[y] / law[y - shift]) ** (order - 1) for y in inner).ln() / (order - 1)


def test_the_theorem_bounds_the_computed_divergence_of_a_sum_of_two() -> None:
    """Theorem 1 for one integer, by 50 digits; for several `loss` follows: sqrt(sum (a + t)^2) <= |a| + t sqrt(d).

    Narrow noise shows that the theorem's tau is needed: there the sum is worse than one Gaussian of its size.
    """
    worse = []
    with localcontext() as context:
        context.prec = 50
        for variance in (Decimal("0.25"), Decimal(mechanism.VARIANCE_MIN), Decimal(9)):
            tau = 10 * (-(PI**2) * variance).exp()
            assert float(tau) == pytest.approx(mechanism.excess(float(variance), 2), rel=1e-12)
            for shift, order in [(1, 2), (1, 8), (2, 3), (3, 16)]:
                one = Decimal(order) * shift**2 / (4 * variance)
                found = divergence(variance, shift, order)
                assert found <= Decimal(order) * (shift / (2 * variance).sqrt() + tau) ** 2 / 2
                if variance < mechanism.VARIANCE_MIN:
                    worse.append(found - one)
                else:
                    assert abs(found - one) < Decimal(10) ** -30, "nothing that a budget could tell"
    assert max(worse) > Decimal("0.1")


def test_what_the_sum_adds_is_what_the_decision_says() -> None:
    """ADR-0020: tau below 10^-16, and tau sqrt(d) below 10^-14, for the narrowest noise and the largest vector."""
    tau = mechanism.excess(mechanism.VARIANCE_MIN, mechanism.HONEST_IN_A_SUM)
    assert tau < 1e-16
    assert tau * math.sqrt(vectors.INTEGERS_MAX) < 1e-14


@pytest.mark.parametrize(("epsilon", "delta", "releases"), [("1", "0.000001", 1), ("4", "0.00001", 6)])
def test_dp_accountings_own_discrete_gaussian_stays_within_the_budget(epsilon: str, delta: str, releases: int) -> None:
    """Its privacy loss distributions know nothing of concentrated privacy, which may only claim more than they find."""
    rho = budget.rho_of(epsilon, delta, releases)
    (share,) = mechanism.shares_of([Group(1, 3)], rho, mechanism.HONEST_IN_A_SUM)
    one = from_discrete_gaussian_mechanism(
        math.sqrt(2 * float(share.variance)), sensitivity=3, value_discretization_interval=1e-3
    )
    spent = one.self_compose(releases).get_epsilon_for_delta(float(delta))
    assert 0.7 * float(epsilon) < spent <= float(epsilon)


@pytest.mark.parametrize(("epsilon", "delta"), [("0", "0.01"), ("1", "0")])
def test_a_budget_that_is_none_is_refused_by_name(epsilon: str, delta: str) -> None:
    with pytest.raises(ComityError) as caught:
        budget.rho_of(epsilon, delta, 1)
    assert (caught.value.code, caught.value.facts["field"]) == (ErrorCode.UNSUPPORTED, "privacy")
