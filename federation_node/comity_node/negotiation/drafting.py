"""From a person's wish to a complete proposal: defaults filled in, the app bundled, the terms stated.

A proposer names what matters (app, purpose, dataset, partners); everything else has a default that a reader of the
proposal can see, because the proposal spells all of it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.bundle import AppBundle, build_app
from comity_policies.charter import Charter
from comity_policies.documents import AggregateStep, AppRef, DatasetAsk, IntersectStep, Proposal, Step, TrainStep
from comity_policies.terms import Terms, meet

DEADLINE_S_DEFAULT = 24 * 3600
REPLY_TIMEOUT_S_DEFAULT = 600
VALID_DAYS_DEFAULT = 30
STEP = "train"
# Refused by name where there are fewer than three parties: who wants to share updates says so (docs/adr/0018).
AGGREGATION_DEFAULT = "threshold"


@dataclass(frozen=True)
class TrainWish:
    """What a person asks for with `comity train`.

    Args:
        app: folder of a Flower app on this machine.
        purpose: a code of the vocabulary.
        dataset: name of the dataset at every organisation.
        columns: columns asked for; by default those of the proposer's own dataset of that name.
        partners: organisations required beside the proposer; by default all members.
        optional: organisations that may stay out.
        rounds: rounds of the strategy; by default the app's `num-server-rounds`.
        terms: further terms asked for, in their JSON form.
        accepts: which stricter terms are taken without another word: any, none, or within `bounds`.
        bounds: the strictest terms taken unasked, in their JSON form.
        persons: people of this organisation who will see the result.
        opened_by: required organisations that open each round's sum beside this one.
    """

    app: Path
    purpose: str
    dataset: str
    title: str = ""
    columns: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    minimum: int | None = None
    rounds: int | None = None
    run_config: dict[str, str | int | bool] = field(default_factory=dict)
    aggregation: str = AGGREGATION_DEFAULT
    terms: dict[str, Any] = field(default_factory=dict)
    deadline_s: int = DEADLINE_S_DEFAULT
    reply_timeout_s: int = REPLY_TIMEOUT_S_DEFAULT
    accepts: str = "any"
    bounds: dict[str, Any] = field(default_factory=dict)
    persons: tuple[str, ...] = ()
    opened_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Revision:
    """What a person changes in an own proposal: terms set, terms dropped, and what stands beside them.

    Args:
        terms: terms in their JSON form; each takes the place of the one before.
        without: terms that are asked for no more.
        deadline_s: how long answers are awaited, from now.
        minimum: the fewest organisations; None leaves it as it is.
        accepts: as in `TrainWish`; None leaves it, with its bounds.
        bounds: as in `TrainWish`.
    """

    terms: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    deadline_s: int = DEADLINE_S_DEFAULT
    minimum: int | None = None
    accepts: str | None = None
    bounds: dict[str, Any] = field(default_factory=dict)


def revised(before: Proposal, change: Revision, *, now: datetime) -> Proposal:
    """Return the next revision of `before`. Raises `MALFORMED`, which names the field."""
    unknown = sorted(set(change.without) - set(before.terms))
    if unknown:
        raise ComityError(ErrorCode.MALFORMED, f"the proposal has no term {unknown[0][:64]}")
    kept = {name: value for name, value in before.terms.to_json().items() if name not in change.without}
    terms = Terms.parse({**kept, **change.terms})
    accepts = before.accepts if change.accepts is None else change.accepts
    bounds = before.bounds if change.accepts is None and not change.bounds else Terms.parse(change.bounds)
    return replace(
        before,
        revision=before.revision + 1,
        terms=terms,
        steps=tuple(_shortened(step, terms) for step in before.steps),
        deadline=instants.to_text(now + timedelta(seconds=change.deadline_s)),
        minimum=before.minimum if change.minimum is None else change.minimum,
        accepts=accepts,
        bounds=bounds,
    )


def _shortened(step: Step, terms: Terms) -> Step:
    """Let a step ask for no more rounds than its terms permit."""
    rounds = int(terms.get("rounds", step.most_rounds))
    if rounds >= step.most_rounds or rounds < 1 or isinstance(step, IntersectStep):
        return step
    if isinstance(step, AggregateStep):
        return replace(step, rounds=rounds)
    assert isinstance(step, TrainStep), "there is no other kind"
    return replace(step, rounds=rounds, run_config={**step.run_config, "num-server-rounds": rounds})


def draft(
    wish: TrainWish, *, charter: Charter, me: str, own_columns: tuple[str, ...], now: datetime
) -> tuple[Proposal, AppBundle]:
    """Return the proposal that `wish` comes to and the app's bundle.

    Raises:
        ComityError: `APP_INVALID`, `MALFORMED` (which names the field), `NOT_A_MEMBER`.
    """
    bundle = build_app(wish.app)
    required = {me, *(wish.partners or set(charter.voters) - set(wish.optional))}
    asked = required | set(wish.optional)
    for org in asked:
        charter.check_active(org)
    rounds = wish.rounds or _configured_rounds(bundle)
    run_config = {**wish.run_config, "num-server-rounds": rounds}
    step = TrainStep(
        id=STEP,
        lead=me,
        app=AppRef(bundle.digest, bundle.size, bundle.name, bundle.publisher, bundle.version),
        rounds=rounds,
        run_config=run_config,
        reply_timeout_s=wish.reply_timeout_s,
        opened_by=wish.opened_by or None,
    )
    proposal = Proposal(
        proposal_id=ids.new_id("prop"),
        revision=1,
        consortium=charter.consortium,
        proposer=me,
        purpose=wish.purpose,
        title=wish.title or f"{bundle.name} on {wish.dataset}",
        steps=(step,),
        required=tuple(sorted(required)),
        optional=tuple(sorted(wish.optional)),
        minimum=wish.minimum or len(required),
        datasets=tuple(DatasetAsk(org, wish.dataset, wish.columns or own_columns) for org in sorted(asked)),
        terms=meet(charter.defaults, _asked_terms(wish, rounds, me, sorted(asked), now)),
        deadline=instants.to_text(now + timedelta(seconds=wish.deadline_s)),
        accepts=wish.accepts,
        bounds=Terms.parse(wish.bounds),
        persons=wish.persons,
    )
    return proposal, bundle


def _asked_terms(wish: TrainWish, rounds: int, me: str, asked: list[str], now: datetime) -> Terms:
    """State what a training needs, so that nobody has to guess what silence would mean."""
    plain: dict[str, Any] = {
        "purposes": [wish.purpose],
        "rounds": rounds,
        "uses": 1,
        "aggregation": wish.aggregation,
        "egress": ["model", "statistic"],
        "round_recipients": asked,
        "result_recipients": asked,
        "not_after": instants.to_text(now + timedelta(days=VALID_DAYS_DEFAULT)),
    }
    return meet(Terms.parse(plain), Terms.parse(wish.terms))


def _configured_rounds(bundle: AppBundle) -> int:
    rounds = bundle.config.get("num-server-rounds")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ComityError(
            ErrorCode.APP_INVALID, "name the rounds: --rounds N, or num-server-rounds in [tool.flwr.app.config]"
        )
    return rounds
