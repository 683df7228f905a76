"""What an agreement grants, what was spent of it, what is left: pure arithmetic.

An organisation's own node counts, for itself alone: `uses` (runs), `rounds` (orders to train or to count), `releases`
(results that leave, evaluations included), `egress_bytes` (their size before sealing), `privacy` (billionths of epsilon
that the noise of a statistic's rounds has cost). The limits are `Agreement.limits` and the budget.
Source: negotiation.md sections 1, 3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping

from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics import privacy
from comity_policies.documents import ROUND_WORDS, Agreement

USES, ROUNDS, RELEASES, EGRESS_BYTES = "uses", "rounds", "releases", "egress_bytes"
FIELDS = (USES, ROUNDS, RELEASES, EGRESS_BYTES, privacy.PRIVACY)


def limits(agreement: Agreement) -> dict[str, int]:
    """Return what an agreement grants, by field; a field that nothing limits is absent."""
    budget = privacy.limit_nano(agreement)
    return agreement.limits | ({} if budget is None else {privacy.PRIVACY: budget})


def left(agreement: Agreement, spent: Mapping[str, int]) -> dict[str, int]:
    """Return what is left of each limited field, never below 0."""
    return {field: max(0, limit - spent.get(field, 0)) for field, limit in limits(agreement).items()}


def cost_of_start(word: str, *, first_of_run: bool) -> dict[str, int]:
    """Return what starting an order costs; `word` is that of its message type."""
    cost = {RELEASES: 1}
    if word in ROUND_WORDS:
        cost[ROUNDS] = 1
    if first_of_run:
        cost[USES] = 1
    return cost


def cost_of_noise(agreement: Agreement, spent: Mapping[str, int]) -> dict[str, int]:
    """Return what an order's release costs of the privacy budget, nothing without one. Raises `UNSUPPORTED`.

    The first time it takes seconds (`noise/budget.py`): ask outside a transaction first.
    """
    return privacy.cost_nano(agreement, spent)


def check(agreement: Agreement, spent: Mapping[str, int], cost: Mapping[str, int]) -> None:
    """Refuse a cost beyond what is left. Raises `GRANT_EXHAUSTED` with the field."""
    for field, limit in limits(agreement).items():
        if spent.get(field, 0) + cost.get(field, 0) > limit:
            raise ComityError(ErrorCode.GRANT_EXHAUSTED, f"no {field} left", field=field, limit=limit)


def check_open(agreement: Agreement, spent: Mapping[str, int], now: str) -> None:
    """Refuse when bytes are used up or the agreement has expired. Raises `GRANT_EXHAUSTED`, `GRANT_EXPIRED`."""
    expires = agreement.terms.get("not_after")
    if expires is not None and now > expires:
        raise ComityError(ErrorCode.GRANT_EXPIRED, not_after=str(expires))
    check(agreement, spent, {EGRESS_BYTES: 1})
