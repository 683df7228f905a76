"""The steps of a proposal, by kind: what the parties do together.

Rules:
1. every kind has an `id`, the `lead` that sees what comes together, the most `rounds` and a `reply_timeout_s`;
2. only `train` brings an app; a reader of steps asks for the kind, never for the app's field;
3. bytes of a `train` step are those of the first release.

Source: training.md section 1, secure-aggregation.md sections 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from comity_crypto.psi.identifiers import NORMALISATIONS
from comity_policies.document import Document, Part, choice_of, digest_of, items_of, line_of, name_of, org_set
from comity_policies.orders import ROUNDS_MAX
from comity_policies.query import Query
from comity_policies.term_rows import column, malformed, text_of, whole_number
from comity_policies.terms import org

REPLY_TIMEOUT_S_MAX = 7 * 24 * 3600
RUN_CONFIG_ITEMS_MAX = 128
RUN_CONFIG_TEXT_MAX = 4096
APP_BYTES_MAX = 64 << 20
TRAIN, AGGREGATE, INTERSECT = "train", "aggregate", "intersect"
KINDS = (TRAIN, AGGREGATE, INTERSECT)
# What the receiver of an intersection gets: how many keys both have, or which of its own rows they are.
MODES = ("cardinality", "ids")


@dataclass(frozen=True, slots=True)
class AppRef(Part):
    """A Flower app by the digest of its deterministic zip."""

    digest: str
    size_bytes: int
    name: str
    publisher: str
    version: str

    def __post_init__(self) -> None:
        digest_of(self.digest)
        whole_number(self.size_bytes, 1, APP_BYTES_MAX)
        for each in (self.name, self.publisher, self.version):
            line_of(each, 128)


class Step(Document):
    """Any step; read by its `kind`."""

    __slots__ = ()

    id: str
    lead: str
    reply_timeout_s: int
    kind: str

    @classmethod
    def _read(cls, value: Any) -> Self:
        if cls is not Step:
            return super()._read(value)
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _CLASSES:
            raise malformed(f"a step's kind is one of {', '.join(KINDS)}")
        return cast("Self", _CLASSES[str(kind)]._read(value))

    @property
    def most_rounds(self) -> int:
        """The most rounds that it takes; both orders of an intersection belong to one."""
        return int(getattr(self, "rounds", 1))

    @property
    def openers(self) -> tuple[str, ...]:
        """Who opens each round's sum, sorted: the lead, and whom the step names beside it."""
        beside: tuple[str, ...] | None = getattr(self, "opened_by", None)
        return tuple(sorted({self.lead, *(beside or ())}))

    def _check_step(self, kind: str) -> None:
        name_of(self.id)
        choice_of(self.kind, (kind,))
        org(self.lead)
        whole_number(self.reply_timeout_s, 1, REPLY_TIMEOUT_S_MAX)


@dataclass(frozen=True, slots=True)
class TrainStep(Step):
    """One federated training: `lead` runs the ServerApp, all parties its ClientApp.

    `opened_by` names who opens each round's sum beside the lead, each for itself; absent where the lead alone does.
    """

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"app": (AppRef, None)}
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"opened_by"})

    id: str
    lead: str
    app: AppRef
    rounds: int
    run_config: dict[str, str | int | bool]
    reply_timeout_s: int
    kind: str = TRAIN
    opened_by: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_step(TRAIN)
        whole_number(self.rounds, 1, ROUNDS_MAX)
        if self.opened_by is not None:
            self._fix(opened_by=org_set(self.opened_by))
            if not self.opened_by or self.lead in self.opened_by:
                raise malformed("opened_by names organisations beside the lead, or is absent")
        if not isinstance(self.run_config, dict) or len(self.run_config) > RUN_CONFIG_ITEMS_MAX:
            raise malformed(f"run_config is an object of at most {RUN_CONFIG_ITEMS_MAX} items")
        for key, item in self.run_config.items():
            line_of(key, 128)
            if isinstance(item, str):
                text_of(item, RUN_CONFIG_TEXT_MAX)
            elif not isinstance(item, int):
                raise malformed("run_config holds texts, whole numbers and booleans; write a real as text")
        self._fix(run_config=dict(self.run_config))


@dataclass(frozen=True, slots=True)
class AggregateStep(Step):
    """One statistic over the datasets of the proposal, one of each party; `lead` combines the parties' numbers.

    `rounds` are the most questions that the lead asks: one, or for quantiles the refinements.
    """

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"query": (Query, None)}

    id: str
    lead: str
    query: Query
    rounds: int
    reply_timeout_s: int
    kind: str = AGGREGATE

    def __post_init__(self) -> None:
        self._check_step(AGGREGATE)
        whole_number(self.rounds, 1, ROUNDS_MAX)
        if self.rounds != 1 and self.query.measure != "quantiles":
            raise malformed("only quantiles are refined over rounds")


@dataclass(frozen=True, slots=True)
class KeyColumn(Part):
    """The column whose values two datasets have in common."""

    org: str
    dataset: str
    column: str

    def __post_init__(self) -> None:
        org(self.org)
        name_of(self.dataset)
        column(self.column)


@dataclass(frozen=True, slots=True)
class IntersectStep(Step):
    """Private set intersection of two datasets: `lead` receives the result, `partner` learns how many are common.

    `normalise` says how both write an identifier before it is compared (`comity_crypto.psi.identifiers`).
    """

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {"keys": (KeyColumn, 2)}

    id: str
    lead: str
    partner: str
    keys: tuple[KeyColumn, ...]
    mode: str
    reply_timeout_s: int
    kind: str = INTERSECT
    normalise: tuple[str, ...] = NORMALISATIONS

    def __post_init__(self) -> None:
        self._check_step(INTERSECT)
        org(self.partner)
        rules = tuple(choice_of(each, NORMALISATIONS) for each in items_of(self.normalise, len(NORMALISATIONS)))
        if len(set(rules)) != len(rules):
            raise malformed("a way of writing identifiers is named once")
        choice_of(self.mode, MODES)
        keys = tuple(sorted(items_of(self.keys, 2), key=lambda each: str(each.org)))
        if self.partner == self.lead or {each.org for each in keys} != {self.lead, self.partner}:
            raise malformed("an intersection is of two organisations, each with its key column")
        self._fix(keys=keys, normalise=tuple(sorted(rules)))


_CLASSES: dict[str, type[Step]] = {TRAIN: TrainStep, AGGREGATE: AggregateStep, INTERSECT: IntersectStep}
