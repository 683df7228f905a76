"""How large every contributor's share of the noise is, so that the honest ones alone reach the budget.

Rules (secure-aggregation.md section 3):
1. Each contributor adds an independent discrete Gaussian to each integer before it is masked; the shares of `honest`
   contributors are enough, whatever all others do. More of them, honest too, only add noise. So a contributor that is
   lost or lies never takes the noise below what the budget asks for.
2. Under a sum that nobody opens alone `honest` is 2: one honest contributor beside the one that is protected. Where
   the lead sees each contribution (`plain`) it is 1: each contributor protects itself.
3. A release consists of groups of integers; what one record can change in a group is its L2 sensitivity. Every group
   gets the same part of the release's loss.
4. Numbers are rounded towards more noise, and noise below `VARIANCE_MIN` is not used: the sum of a few discrete
   Gaussians is close enough to one only if each is wide enough.

The loss of a sum of `honest` shares of variance s^2 on d integers of L2 sensitivity D is
(D / (sqrt(honest) s) + t sqrt(d))^2 / 2 in zero-concentrated differential privacy, with
t = 10 * sum over k = 1 .. honest - 1 of exp(-2 pi^2 s^2 k / (k + 1)).
Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021 (arXiv:2102.06387), theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from comity.wire.errors import ComityError, ErrorCode

HONEST_IN_A_SUM, HONEST_ALONE = 2, 1
VARIANCE_MIN = 4
# sigma^2 of a share; beyond it no statistic is left.
VARIANCE_MAX = 1 << 150
GROUPS_MAX = 16
_STEPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Group:
    """Integers that are released together: how many, and the L2 norm of what one record can change in them."""

    size: int
    sensitivity: int


@dataclass(frozen=True, slots=True)
class Share:
    """What one contributor adds to each integer of a group: a discrete Gaussian with this sigma^2."""

    group: Group
    variance: Fraction


def shares_of(groups: Sequence[Group], rho: float, honest: int) -> tuple[Share, ...]:
    """Return every group's share, so that one release costs at most `rho` (zero-concentrated privacy).

    Raises:
        ComityError: `UNSUPPORTED` if so little may be lost that no noise is large enough.
    """
    if not 0 < len(groups) <= GROUPS_MAX or not rho > 0 or honest < 1:
        raise ComityError(ErrorCode.INTERNAL, "a release has groups, a loss and an honest contributor")
    made = []
    for group in groups:
        part = rho / len(groups)
        # Start from a single Gaussian; the correction for the sum only matters for narrow noise.
        needed = max(float(VARIANCE_MIN), group.sensitivity**2 / (2 * part * honest))
        for _ in range(64):
            if loss(group, needed, honest) <= part:
                break
            needed *= 1 + 2**-20
        else:
            raise ComityError(ErrorCode.UNSUPPORTED, "no noise is large enough for this budget", field="privacy")
        if needed > VARIANCE_MAX:
            raise ComityError(ErrorCode.UNSUPPORTED, "no statistic is left under this budget", field="privacy")
        made.append(Share(group, Fraction(math.ceil(needed * _STEPS), _STEPS)))
    return tuple(made)


def loss(group: Group, variance: float, honest: int) -> float:
    """Return what a release of one group loses when `honest` contributors add noise of this sigma^2."""
    alone = group.sensitivity / math.sqrt(honest * variance)
    return (alone + excess(variance, honest) * math.sqrt(group.size)) ** 2 / 2


def excess(variance: float, honest: int) -> float:
    """Return how far the sum of discrete Gaussians is from one of them (the theorem's tau)."""
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, honest))
