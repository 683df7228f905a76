"""Proposals, answers and agreements; orders, replies and receipts (`orders.py`) are re-exported from here.

The rules that all of them share stand at the head of `document.py`. Source: negotiation.md sections 1 to 4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.document import (
    Document,
    Part,
    choice_of,
    digest_of,
    instant_of,
    items_of,
    line_of,
    name_of,
    org_set,
)
from comity_policies.orders import MESSAGE_TYPES, OUTCOMES, ROUND_WORDS, OrderHeader, Receipt, ReplyHeader
from comity_policies.query import Query
from comity_policies.steps import AggregateStep, AppRef, IntersectStep, KeyColumn, Step, TrainStep
from comity_policies.term_rows import column, malformed, text_of, whole_number
from comity_policies.terms import PARTIES_MAX, Terms, conforms, meet, org, purpose

__all__ = [
    "DECISIONS",
    "GRANTS",
    "MESSAGE_TYPES",
    "OUTCOMES",
    "ROUND_WORDS",
    "SIGNING_S",
    "SIGNING_S_MAX",
    "AggregateStep",
    "Agreement",
    "Answer",
    "AppRef",
    "CounterAcceptance",
    "DatasetAsk",
    "Document",
    "IntersectStep",
    "KeyColumn",
    "OrderHeader",
    "Proposal",
    "Query",
    "Reason",
    "Receipt",
    "ReplyHeader",
    "Step",
    "TrainStep",
    "run_id",
    "takes",
]

STEPS_MAX = 16
DATASETS_MAX = 256
COLUMNS_MAX = 1024
PERSONS_MAX = 64
PERSON_CHARS_MAX = 128
REASONS_MAX = 64
DECISIONS = ("allow", "deny", "review")
# Which stricter terms the proposer takes without being asked: all of them, none, those within the proposal's bounds.
ACCEPTS = ("any", "none", "within")
# A party that is asked to sign at the deadline itself has this long; nobody signs later than the second after it.
SIGNING_S, SIGNING_S_MAX = 600, 3600
GRANTS = ("uses", "rounds", "releases", "egress_bytes")


@dataclass(frozen=True, slots=True)
class DatasetAsk(Document):
    """Columns of one organisation's dataset that a proposal asks for."""

    org: str
    dataset: str
    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        columns = [column(each) for each in items_of(self.columns, COLUMNS_MAX)]
        # No columns could be read as all columns, also those that are added later.
        if not columns or len(set(columns)) != len(columns):
            raise malformed("the columns asked for are named, each once")
        self._fix(org=org(self.org), dataset=name_of(self.dataset), columns=tuple(sorted(columns)))

    @property
    def key(self) -> str:
        """`<organisation>/<dataset>`, as in keyed terms."""
        return f"{self.org}/{self.dataset}"


@dataclass(frozen=True, slots=True)
class Proposal(Document):
    """One workflow asked of required and optional organisations. Immutable: a change is a new revision.

    `accepts` and `bounds` say how far the proposer takes stricter terms without being asked (`takes`). `persons` are
    people, as the proposer's own node knows them, who will see the result: its word, for policies to judge.
    """

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {
        "steps": (Step, STEPS_MAX),
        "datasets": (DatasetAsk, DATASETS_MAX),
    }

    proposal_id: str
    revision: int
    consortium: str
    proposer: str
    purpose: str
    title: str
    steps: tuple[Step, ...]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    minimum: int
    datasets: tuple[DatasetAsk, ...]
    terms: Terms
    deadline: str
    uses: int = 1
    start: str = "auto"
    accepts: str = "any"
    bounds: Terms = field(default_factory=Terms)
    persons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name_of(self.proposal_id)
        whole_number(self.revision, 1, 10_000)
        org(self.consortium)
        org(self.proposer)
        purpose(self.purpose)
        line_of(self.title)
        whole_number(self.uses, 1, 10_000)
        choice_of(self.start, ("auto", "manual"))
        choice_of(self.accepts, ACCEPTS)
        if (self.accepts == "within") != bool(self.bounds):
            raise malformed("bounds go with accepts within, and with nothing else")
        self._fix(
            steps=tuple(items_of(self.steps, STEPS_MAX)),
            datasets=tuple(sorted(items_of(self.datasets, DATASETS_MAX), key=lambda ask: ask.key)),
            required=org_set(self.required),
            optional=org_set(self.optional),
            deadline=instant_of(self.deadline),
            persons=tuple(sorted({line_of(each, PERSON_CHARS_MAX) for each in items_of(self.persons, PERSONS_MAX)})),
        )
        self._check_people()
        if not self.steps or len({step.id for step in self.steps}) != len(self.steps):
            raise malformed("a proposal has at least one step, and every step its own id")

    def _check_people(self) -> None:
        if not self.required or set(self.required) & set(self.optional):
            raise malformed("at least one organisation is required, and none is both required and optional")
        if len(self.asked) > PARTIES_MAX:
            raise malformed(f"at most {PARTIES_MAX} organisations take part")
        whole_number(self.minimum, 1, len(self.asked))
        # An optional lead could leave the agreement without its lead.
        if any(step.lead not in self.required for step in self.steps):
            raise malformed("the lead of every step is a required organisation")
        # So could an optional opener, and a stranger takes no part in the round whose sum it would open.
        if any(not set(step.openers) <= set(self.required) for step in self.steps):
            raise malformed("who opens sums beside the lead is a required organisation")
        keys = [ask.key for ask in self.datasets]
        if len(set(keys)) != len(keys) or any(ask.org not in self.asked for ask in self.datasets):
            raise malformed("each dataset is asked for once, of an organisation that takes part")
        for step in self.steps:
            if isinstance(step, AggregateStep):
                self._check_query(step.query)
            elif isinstance(step, IntersectStep):
                self._check_keys(step)

    def _check_query(self, query: Query) -> None:
        """A statistic is over one dataset of each organisation, and reads only what is asked for."""
        if sorted(ask.org for ask in self.datasets) != list(self.asked):
            raise malformed("a statistic is over one dataset of each organisation")
        if any(not query.names <= set(ask.columns) for ask in self.datasets):
            raise malformed("a statistic reads only columns that the proposal asks for")

    def _check_keys(self, step: IntersectStep) -> None:
        """An intersection stands alone, has exactly two parties, both required, and reads only what is asked for."""
        if len(self.steps) != 1:
            raise malformed("an intersection is the only step of its proposal")
        columns = {ask.key: ask.columns for ask in self.datasets}
        if self.required != tuple(sorted({step.lead, step.partner})) or self.optional:
            raise malformed("an intersection has two parties, both required")
        if any(each.column not in columns.get(f"{each.org}/{each.dataset}", ()) for each in step.keys):
            raise malformed("an intersection reads only columns that the proposal asks for")

    @property
    def asked(self) -> tuple[str, ...]:
        """All required and optional organisations, sorted."""
        return tuple(sorted({*self.required, *self.optional}))

    @property
    def app(self) -> AppRef | None:
        """The app that the proposal brings, None if none of its steps runs one."""
        return next((step.app for step in self.steps if isinstance(step, TrainStep)), None)

    def takes(self, offered: Terms) -> bool:
        """Tell whether the proposer takes the terms that an organisation offers without being asked."""
        return takes(self.terms, self.accepts, self.bounds, offered)

    def step(self, step_id: str) -> Step:
        """Return the step called `step_id`. Raises `ORDER_MISMATCH`."""
        for each in self.steps:
            if each.id == step_id:
                return each
        raise ComityError(ErrorCode.ORDER_MISMATCH, "the agreement has no such step")


@dataclass(frozen=True, slots=True)
class Reason(Document):
    """Why a policy decided: the rule, a code for programs, a sentence for people."""

    rule: str
    code: str
    message: str

    def __post_init__(self) -> None:
        line_of(self.rule, 128)
        line_of(self.code, 64)
        text_of(self.message, 500)


@dataclass(frozen=True, slots=True)
class Answer(Document):
    """One organisation's decision on one proposal revision, with the terms it asks for."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"reasons": (Reason, REASONS_MAX)}

    proposal_digest: str
    decision: str
    reasons: tuple[Reason, ...]
    terms: Terms
    bundle_digest: str
    input_digest: str
    engine: str

    def __post_init__(self) -> None:
        for each in (self.proposal_digest, self.bundle_digest, self.input_digest):
            digest_of(each)
        choice_of(self.decision, DECISIONS)
        line_of(self.engine, 64)
        self._fix(reasons=tuple(items_of(self.reasons, REASONS_MAX)))


@dataclass(frozen=True, slots=True)
class CounterAcceptance(Document):
    """The proposer's word that it takes the stricter terms in one organisation's answer (digest of its statement)."""

    proposal_id: str
    proposal: str
    org: str
    answer: str

    def __post_init__(self) -> None:
        name_of(self.proposal_id)
        org(self.org)
        for each in (self.proposal, self.answer):
            digest_of(each)


@dataclass(frozen=True, slots=True)
class Agreement(Document):
    """A proposal revision, its parties and the meet of all their terms; every party signs the digest."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"proposal": (Proposal, None)}

    agreement_id: str
    consortium: str
    charter_digest: str
    proposal: Proposal
    parties: tuple[str, ...]
    terms: Terms

    def __post_init__(self) -> None:
        name_of(self.agreement_id)
        digest_of(self.charter_digest)
        self._fix(parties=org_set(self.parties))
        proposal, parties = self.proposal, set(self.parties)
        if self.consortium != proposal.consortium:
            raise _unsound("it belongs to another consortium than its proposal")
        if not set(proposal.required) <= parties <= set(proposal.asked):
            raise _unsound("its parties are not the required organisations and some of the optional ones")
        if len(parties) < proposal.minimum:
            raise _unsound("it has fewer parties than the proposal's minimum")
        weaker = conforms(self.terms, proposal.terms)
        if weaker:
            raise _unsound(f"its terms are weaker than the proposal's in {weaker[0]}")

    @property
    def limits(self) -> dict[str, int]:
        """What this grants at most to any one party, by grant; a grant that nothing limits is absent.

        Uses and rounds are always limited, by the proposal. Source: negotiation.md sections 1 and 3.
        """
        terms, proposal = self.terms, self.proposal
        limits = {name: int(terms[name]) for name in GRANTS if name in terms}
        asked = {"uses": proposal.uses, "rounds": proposal.uses * sum(step.most_rounds for step in proposal.steps)}
        return limits | {name: min(limit, limits.get(name, limit)) for name, limit in asked.items()}


def takes(asked: Terms, accepts: str, bounds: Terms, offered: Terms) -> bool:
    """Tell whether whoever asked for `asked` takes `offered` without another word (negotiation.md section 4).

    Terms that the proposal meets already are no counter-offer. `bounds` are the strictest that `within` takes: offers
    that are each within them are within them together, since `meet` is a lattice's.
    """
    if accepts == "any" or not conforms(asked, offered):
        return True
    return accepts == "within" and not conforms(meet(asked, bounds), offered)


def run_id(agreement_digest: str, use: int) -> str:
    """Return the id of the `use`-th run (from 1) of an agreement."""
    return "run-" + hashlib.sha256(f"{agreement_digest}/{use}".encode()).hexdigest()[:26]


def _unsound(detail: str) -> ComityError:
    return ComityError(ErrorCode.AGREEMENT_INVALID, detail)
