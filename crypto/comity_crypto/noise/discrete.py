"""Exact sampling of the discrete Gaussian: integers and uniform draws only, no floating point.

Rules:
1. Every branch depends on uniform integers from the operating system's generator alone; probabilities are fractions. So
   no low-order bit of a float tells anything about what the noise was added to (Mironov, CCS 2012).
2. Loops end with probability 1 and are bounded: a generator that does not let them end is refused, not waited for.

Source: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020 (arXiv:2004.00010),
algorithms 1 to 3.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from fractions import Fraction
from math import isqrt

from comity.wire.errors import ComityError, ErrorCode

# Draws for one number. Fewer than 20 are expected, so that this many happen by a broken generator only.
TRIES_MAX = 100_000

# Returns a uniform integer from 0 to below its argument.
Below = Callable[[int], int]


def discrete_gaussian(variance: Fraction, below: Below = secrets.randbelow) -> int:
    """Return an integer y with probability proportional to exp(-y^2 / (2 variance)).

    Args:
        variance: the parameter sigma^2 > 0; the distribution's own variance is at most that, and from 1 on within
            one part in a million of it.
        below: a source of uniform integers.

    Raises:
        ComityError: `INTERNAL` if the generator does not let it end.
    """
    if variance <= 0:
        raise ComityError(ErrorCode.INTERNAL, "noise has a positive variance")
    scale = isqrt(variance.numerator // variance.denominator) + 1
    for _ in range(TRIES_MAX):
        candidate = _discrete_laplace(scale, below)
        distance = abs(candidate) - variance / scale
        if _bernoulli_exp(distance * distance / (2 * variance), below):
            return candidate
    raise _endless()


def _discrete_laplace(scale: int, below: Below) -> int:
    """Return an integer y with probability proportional to exp(-|y| / scale)."""
    for _ in range(TRIES_MAX):
        rest = below(scale)
        if not _bernoulli_exp(Fraction(rest, scale), below):
            continue
        whole = _geometric(below)
        size = rest + scale * whole
        negative = below(2) == 1
        if not (negative and size == 0):
            return -size if negative else size
    raise _endless()


def _geometric(below: Below) -> int:
    """Return how often in a row an event of probability 1/e happens."""
    for count in range(TRIES_MAX):
        if not _bernoulli_exp(Fraction(1), below):
            return count
    raise _endless()


def _bernoulli_exp(exponent: Fraction, below: Below) -> bool:
    """Return True with probability exp(-exponent), for exponent >= 0."""
    for _ in range(min(exponent.numerator // exponent.denominator, TRIES_MAX)):
        if not _bernoulli_exp_small(Fraction(1), below):
            return False
    return _bernoulli_exp_small(exponent - exponent.numerator // exponent.denominator, below)


def _bernoulli_exp_small(exponent: Fraction, below: Below) -> bool:
    """Return True with probability exp(-exponent), for exponent from 0 to 1: von Neumann's alternating series."""
    for count in range(1, TRIES_MAX):
        # An event of probability exponent / count.
        if below(exponent.denominator * count) >= exponent.numerator:
            return count % 2 == 1
    raise _endless()


def _endless() -> ComityError:
    return ComityError(ErrorCode.INTERNAL, "the random generator does not behave like one")
