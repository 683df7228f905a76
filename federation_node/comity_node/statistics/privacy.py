"""An agreement's privacy budget, spent on its statistics in equal releases.

Rules:
1. The budget is for the whole agreement; it is cut into as many equal releases as the agreement has rounds, and every
   order costs one of them, whether its result leaves or not.
2. What so many releases have cost, by `dp-accounting`, is what the books say; one order costs the difference.
3. The noise of a release follows from terms and query alone: every party and the lead reckon the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from comity_crypto.noise import budget, mechanism
from comity_crypto.noise.mechanism import Share
from comity_node.statistics.questions import Part
from comity_policies.documents import Agreement

PRIVACY, NOISED = "privacy", "noised"


def limit_nano(agreement: Agreement) -> int | None:
    """Return the budget's epsilon in billionths, None without a budget."""
    terms = agreement.terms
    return budget.nano(terms["privacy"].epsilon) if "privacy" in terms else None


def cost_nano(agreement: Agreement, spent: Mapping[str, int]) -> dict[str, int]:
    """Return what the next release costs: billionths of epsilon, and one release. Raises `UNSUPPORTED`."""
    if "privacy" not in agreement.terms:
        return {}
    done, delta = spent.get(NOISED, 0), str(agreement.terms.to_json()["privacy"]["delta"])
    after = budget.cost_nano(_rho(agreement), done + 1, delta)
    return {PRIVACY: max(0, after - spent.get(PRIVACY, 0)), NOISED: 1}


def shares_of(agreement: Agreement, parts: tuple[Part, ...]) -> tuple[Share, ...]:
    """Return the noise that one party adds to each group of a question, none without a budget. Raises `UNSUPPORTED`."""
    if "privacy" not in agreement.terms:
        return ()
    alone = agreement.terms.get("aggregation", "plain") == "plain"
    honest = mechanism.HONEST_ALONE if alone else mechanism.HONEST_IN_A_SUM
    return mechanism.shares_of([each.group for each in parts], _rho(agreement), honest)


def _rho(agreement: Agreement) -> float:
    budgeted = agreement.terms.to_json()["privacy"]
    return budget.rho_of(budgeted["epsilon"], budgeted["delta"], max(1, agreement.limits["rounds"]))
