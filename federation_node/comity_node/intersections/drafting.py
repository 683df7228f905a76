"""From a person's wish to a complete proposal of an intersection: every default is spelt out for its readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from comity.wire import ids, instants
from comity_crypto.psi.identifiers import NORMALISATIONS
from comity_policies.charter import Charter
from comity_policies.documents import DatasetAsk, IntersectStep, KeyColumn, Proposal
from comity_policies.terms import Terms, meet

DEADLINE_S_DEFAULT = 24 * 3600
REPLY_TIMEOUT_S_DEFAULT = 1800
VALID_DAYS_DEFAULT = 30
STEP = "intersect"


@dataclass(frozen=True)
class IntersectWish:
    """What a person asks for with `comity intersect`.

    Args:
        purpose: a code of the vocabulary.
        dataset: own dataset; `column` holds its identifiers.
        partner: the other organisation, with `partner_dataset` and `partner_column`.
        mode: `cardinality`, or `ids`: which of the own records.
        normalise: how both write an identifier before it is compared.
        terms: further terms asked for, in their JSON form.
        uses: how many runs; each one may be of other records.
        accepts: which stricter terms are taken without another word: any, none, or within `bounds`.
        bounds: the strictest terms taken unasked, in their JSON form.
        persons: people of this organisation who will see the result.
    """

    purpose: str
    dataset: str
    column: str
    partner: str
    partner_dataset: str
    partner_column: str
    mode: str = "cardinality"
    normalise: tuple[str, ...] = NORMALISATIONS
    title: str = ""
    terms: dict[str, Any] = field(default_factory=dict)
    uses: int = 1
    deadline_s: int = DEADLINE_S_DEFAULT
    reply_timeout_s: int = REPLY_TIMEOUT_S_DEFAULT
    accepts: str = "any"
    bounds: dict[str, Any] = field(default_factory=dict)
    persons: tuple[str, ...] = ()


def draft(wish: IntersectWish, *, charter: Charter, me: str, now: datetime) -> Proposal:
    """Return the proposal that `wish` comes to. Raises `MALFORMED`, which names the field, `NOT_A_MEMBER`."""
    for org in (me, wish.partner):
        charter.check_active(org)
    mine = KeyColumn(me, wish.dataset, wish.column)
    theirs = KeyColumn(wish.partner, wish.partner_dataset, wish.partner_column)
    step = IntersectStep(
        id=STEP,
        lead=me,
        partner=wish.partner,
        keys=(mine, theirs),
        mode=wish.mode,
        reply_timeout_s=wish.reply_timeout_s,
        normalise=wish.normalise,
    )
    both = tuple(sorted((me, wish.partner)))
    return Proposal(
        proposal_id=ids.new_id("prop"),
        revision=1,
        consortium=charter.consortium,
        proposer=me,
        purpose=wish.purpose,
        title=wish.title or f"records in common of {wish.dataset} and {wish.partner}/{wish.partner_dataset}",
        steps=(step,),
        required=both,
        optional=(),
        minimum=len(both),
        datasets=tuple(DatasetAsk(key.org, key.dataset, (key.column,)) for key in (mine, theirs)),
        terms=meet(charter.defaults, _asked_terms(wish, both, now)),
        deadline=instants.to_text(now + timedelta(seconds=wish.deadline_s)),
        uses=wish.uses,
        accepts=wish.accepts,
        bounds=Terms.parse(wish.bounds),
        persons=wish.persons,
    )


def _asked_terms(wish: IntersectWish, both: tuple[str, ...], now: datetime) -> Terms:
    """State what an intersection needs: the partner learns the count before the lead, so both are recipients."""
    plain: dict[str, Any] = {
        "purposes": [wish.purpose],
        "uses": wish.uses,
        "aggregation": "plain",
        "egress": ["statistic", "record"] if wish.mode == "ids" else ["statistic"],
        "round_recipients": list(both),
        "result_recipients": list(both),
        "not_after": instants.to_text(now + timedelta(days=VALID_DAYS_DEFAULT)),
    }
    return meet(Terms.parse(plain), Terms.parse(wish.terms))
