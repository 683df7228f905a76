"""A privacy budget (epsilon, delta) as so many equal releases, and what a number of them has cost.

Rules:
1. The arithmetic of privacy is `dp-accounting`'s: composition and conversion of zero-concentrated losses. This module
   only asks it, and searches for the largest loss that fits.
2. Costs are billionths of epsilon, rounded up: the books never say less than was lost.

`dp-accounting` brings scipy: it is imported when the first budget is reckoned with.
"""

from __future__ import annotations

import math
from decimal import Decimal
from functools import lru_cache

from comity.wire.errors import ComityError, ErrorCode

NANO = 10**9
RELEASES_MAX = 100_000
_SEARCH_STEPS = 60


def nano(epsilon: Decimal | str) -> int:
    """Return an epsilon as billionths, rounded down: a limit."""
    return int(Decimal(epsilon) * NANO)


@lru_cache(maxsize=1024)
def cost_nano(rho: float, releases: int, delta: str) -> int:
    """Return the epsilon at `delta` of so many releases of `rho` each, in billionths."""
    return 0 if releases == 0 else math.ceil(_epsilon(rho, releases, float(delta)) * NANO)


@lru_cache(maxsize=256)
def rho_of(epsilon: str, delta: str, releases: int) -> float:
    """Return the largest loss of one release, so that `releases` of them stay within (epsilon, delta).

    Raises:
        ComityError: `UNSUPPORTED` if the budget is no budget (epsilon or delta 0), or too small for any release.
    """
    limit, chance = nano(epsilon), float(delta)
    if limit <= 0 or not 0 < chance < 1 or not 1 <= releases <= RELEASES_MAX:
        raise ComityError(ErrorCode.UNSUPPORTED, "noise needs an epsilon and a delta above 0", field="privacy")
    low, high = 0.0, float(epsilon)
    while cost_nano(high, releases, delta) <= limit:
        high *= 2  # bounded: the cost grows with rho without end
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        if cost_nano(middle, releases, delta) <= limit:
            low = middle
        else:
            high = middle
    if low <= 0:
        raise ComityError(ErrorCode.UNSUPPORTED, "the budget is too small for a release", field="privacy")
    return low


def _epsilon(rho: float, releases: int, delta: float) -> float:
    # Imported here: 60 MB that only agreements with a budget pay for.
    from dp_accounting import dp_event  # type: ignore[import-untyped]
    from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]

    accountant = RdpAccountant()
    accountant.compose(dp_event.ZCDpEvent(rho=rho), releases)
    return float(accountant.get_epsilon(delta))
