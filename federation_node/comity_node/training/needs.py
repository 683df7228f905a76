"""Who has to look at an order or a result, and why: what is left of a judgement to check (6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from comity_policies.decisions import Decision, ReviewNeed, Stage
from comity_policies.documents import Reason
from comity_policies.terms import Terms

# Only in receipts of orders that a person was asked about.
PERSON_AGREED = "person_agreed"
ONE_REVIEWER = ReviewNeed()
TERM_ASKS = Reason("terms.human_review", "HUMAN_REVIEW", "the terms ask for a person")


@dataclass(frozen=True, slots=True)
class Need:
    """Who has to look, and why."""

    review: ReviewNeed
    reasons: tuple[Reason, ...]


def need_of(terms: Terms, stage: Stage, decisions: Sequence[Decision], looks: ReviewNeed) -> Need | None:
    """Return who has to look because the policy or the terms say so, None if nobody has to.

    Several decisions about one order are one question to people, as strict as the strictest of them. Where a term alone
    asks, `looks` says who.
    """
    asked = [decision for decision in decisions if decision.decision == "review"]
    if asked:
        needs = [decision.review for decision in asked]
        reasons = dict.fromkeys(reason for decision in asked for reason in decision.reasons)
        return Need(reduce(lambda one, other: one.stricter(other), needs), tuple(reasons))
    return Need(looks, (TERM_ASKS,)) if str(stage) in terms.get("human_review", ()) else None
