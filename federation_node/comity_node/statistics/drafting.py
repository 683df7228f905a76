"""From a person's question to a complete proposal of a statistic: every default is spelt out for its readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics.questions import WINDOW_CELLS, whole_window
from comity_policies import query_text
from comity_policies.charter import Charter
from comity_policies.documents import AggregateStep, DatasetAsk, Proposal, Query
from comity_policies.terms import Terms, meet

DEADLINE_S_DEFAULT = 24 * 3600
REPLY_TIMEOUT_S_DEFAULT = 600
VALID_DAYS_DEFAULT = 30
# Each round of a budget is a release: fewer are less noise.
ROUNDS_WITH_BUDGET = 2
STEP = "ask"


@dataclass(frozen=True)
class StatisticWish:
    """What a person asks for with `comity aggregate`.

    Args:
        purpose: a code of the vocabulary.
        query: the text of a query, or a query as JSON.
        datasets: names: `NAME` at every organisation that is not named in an `ORGANISATION/NAME`.
        aggregation: the profile to sum under.
        ranges: column -> (low, high), where the text gives none.
        partners: organisations required beside the proposer; by default all members.
        optional: organisations that may stay out.
        minimum: the fewest that take part; by default all required.
        rounds: the most refinements of a quantile; by default as many as the range needs, under a budget two.
        terms: further terms asked for, in their JSON form.
        uses: how many runs; each one may be of other records.
        accepts: which stricter terms are taken without another word: any, none, or within `bounds`.
        bounds: the strictest terms taken unasked, in their JSON form.
        persons: people of this organisation who will see the result.
    """

    purpose: str
    query: str | dict[str, Any]
    datasets: tuple[str, ...]
    aggregation: str
    ranges: dict[str, tuple[str, str]] = field(default_factory=dict)
    title: str = ""
    partners: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    minimum: int | None = None
    rounds: int | None = None
    terms: dict[str, Any] = field(default_factory=dict)
    uses: int = 1
    deadline_s: int = DEADLINE_S_DEFAULT
    reply_timeout_s: int = REPLY_TIMEOUT_S_DEFAULT
    accepts: str = "any"
    bounds: dict[str, Any] = field(default_factory=dict)
    persons: tuple[str, ...] = ()


def draft(wish: StatisticWish, *, charter: Charter, me: str, own_columns: tuple[str, ...], now: datetime) -> Proposal:
    """Return the proposal that `wish` comes to.

    Args:
        own_columns: of the proposer's own dataset; a query that reads no column is of all of its records.

    Raises:
        ComityError: `MALFORMED`, which names the field or the character; `NOT_A_MEMBER`.
    """
    query = Query.from_json(wish.query) if isinstance(wish.query, dict) else query_text.parse(wish.query, wish.ranges)
    required = {me, *(wish.partners or set(charter.voters) - set(wish.optional))}
    asked = sorted(required | set(wish.optional))
    for org in asked:
        charter.check_active(org)
    minimum = wish.minimum or len(required)
    terms = meet(charter.defaults, _asked_terms(wish, minimum, asked, now))
    columns = tuple(sorted(query.names)) or own_columns[:1]
    rounds = _rounds(query, wish.rounds, "privacy" in terms)
    terms = meet(terms, Terms.parse({"rounds": rounds * wish.uses}))
    return Proposal(
        proposal_id=ids.new_id("prop"),
        revision=1,
        consortium=charter.consortium,
        proposer=me,
        purpose=wish.purpose,
        title=wish.title or query.text[:200],
        steps=(AggregateStep(STEP, me, query, rounds, wish.reply_timeout_s),),
        required=tuple(sorted(required)),
        optional=tuple(sorted(wish.optional)),
        minimum=minimum,
        datasets=tuple(DatasetAsk(org, _dataset_of(org, wish.datasets), columns) for org in asked),
        terms=terms,
        deadline=instants.to_text(now + timedelta(seconds=wish.deadline_s)),
        uses=wish.uses,
        accepts=wish.accepts,
        bounds=Terms.parse(wish.bounds),
        persons=wish.persons,
    )


def _dataset_of(org: str, datasets: tuple[str, ...]) -> str:
    named = dict(each.partition("/")[::2] for each in datasets if "/" in each)
    common = [each for each in datasets if "/" not in each]
    found = named.get(org) or (common[0] if len(common) == 1 else None)
    if found is None:
        raise ComityError(ErrorCode.MALFORMED, f"which dataset of {org}? --dataset NAME, or --dataset {org}/NAME")
    return found


def _rounds(query: Query, wished: int | None, private: bool) -> int:
    if query.measure != "quantiles":
        return 1
    if wished is not None:
        return wished
    whole = whole_window(query)
    needed, reach = 1, WINDOW_CELLS
    while reach < whole.high - whole.low:  # bounded: a range has at most 2^32 steps
        needed, reach = needed + 1, reach * WINDOW_CELLS
    return min(needed, ROUNDS_WITH_BUDGET) if private else needed


def _asked_terms(wish: StatisticWish, minimum: int, asked: list[str], now: datetime) -> Terms:
    """State what a statistic needs, so that nobody has to guess what silence would mean."""
    plain: dict[str, Any] = {
        "purposes": [wish.purpose],
        "uses": wish.uses,
        "aggregation": wish.aggregation,
        "min_participants": minimum,
        "egress": ["statistic"],
        "round_recipients": asked,
        "result_recipients": asked,
        "not_after": instants.to_text(now + timedelta(days=VALID_DAYS_DEFAULT)),
    }
    # What is asked for by name takes the place of a default.
    return Terms.parse({**plain, **wish.terms})
