"""Terms: typed constraints on how a workflow may run, and their meet (negotiation.md section 3).

Rules, in this order:
1. an absent term is no constraint;
2. `meet` is the stricter of two terms, field by field: commutative, associative, idempotent, never less strict than
   either side;
3. `meet` itself never fails: a contradiction stays visible as an empty set or an impossible number, and `meet_all`,
   which knows who said what, names the field and the organisations that clash;
4. a new term is one new row of `TABLE`.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from comity.wire import canonical, ids
from comity.wire.errors import ComityError, ErrorCode
from comity_policies.term_rows import (
    CountRow,
    DecimalRow,
    InstantRow,
    KeyedRow,
    OrderRow,
    Peers,
    PeersRow,
    Privacy,
    PrivacyRow,
    Row,
    SetRow,
    column,
    dataset_key,
    malformed,
    met,
    one_of,
)

__all__ = [
    "AGGREGATION",
    "PURPOSES",
    "TABLE",
    "Peers",
    "Privacy",
    "Terms",
    "conforms",
    "difference",
    "meet",
    "meet_all",
]

# The vocabulary of purposes. A consortium's own codes start with `x-`.
PURPOSES = (
    "research",
    "academic-research",
    "public-health",
    "care-quality",
    "statistics",
    "service-improvement",
    "product-development",
    "fraud-prevention",
    "security",
    "legal-obligation",
    "marketing",
    "advertising",
    "testing",
)
AGGREGATION = ("plain", "lead-key", "masked", "threshold")
ISOLATION = ("process", "sandbox", "container")
EGRESS_KINDS = ("aggregate", "model", "statistic", "record")
REVIEW_STAGES = ("agreement", "dispatch", "egress")
# Below three contributors a party subtracts its own part and holds the other's (secure-aggregation.md section 1).
SUMMED_PARTICIPANTS_MIN = 3
PARTIES_MAX = 64


def purpose(code: Any) -> str:
    """Return `code` if it is in the vocabulary or a consortium's own `x-` code. Raises `MALFORMED`."""
    if isinstance(code, str) and code.startswith("x-") and len(code) > len("x-"):
        return ids.name(code)
    if code not in PURPOSES:
        raise malformed(f"a purpose is one of {', '.join(PURPOSES)}, or a consortium's own that starts with x-")
    return str(code)


def org(value: Any) -> str:
    """Return `value` if it is an organisation id. Raises `MALFORMED`."""
    if not isinstance(value, str):
        raise malformed("an organisation id is text")
    return ids.org_id(value)


_ORGS = SetRow(org)

TABLE: dict[str, Row] = {
    "purposes": SetRow(purpose),
    "columns": KeyedRow(dataset_key, SetRow(column)),
    "min_cohort": KeyedRow(dataset_key, CountRow(larger=True)),
    "min_participants": CountRow(larger=True, high=PARTIES_MAX),
    "independent_peers": KeyedRow(org, PeersRow(_ORGS)),
    "aggregation": OrderRow(AGGREGATION),
    "release_quorum": CountRow(larger=True, high=PARTIES_MAX),
    "privacy": PrivacyRow(),
    "clip_norm": DecimalRow(6),
    "range": DecimalRow(9),
    "weight_max": CountRow(larger=False, low=1),
    "rounds": CountRow(larger=False),
    "uses": CountRow(larger=False),
    "releases": CountRow(larger=False),
    "egress_bytes": CountRow(larger=False),
    "not_after": InstantRow(),
    "retention_s": CountRow(larger=False),
    "isolation": OrderRow(ISOLATION),
    "attestation": OrderRow(("none", "required")),
    "egress": SetRow(one_of(EGRESS_KINDS)),
    "human_review": SetRow(one_of(REVIEW_STAGES), union=True),
    "round_recipients": _ORGS,
    "result_recipients": _ORGS,
    "min_copies": CountRow(larger=True, high=PARTIES_MAX),
}


class Terms(Mapping[str, Any]):
    """An immutable mapping of term to value.

    Values: `frozenset[str]` for sets, `int` for counts, `Decimal` for reals, `str` for ladders and instants, `Privacy`,
    and read-only mappings for keyed terms. Iteration follows `TABLE`.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        given = dict(values or {})
        self._values = {field: given.pop(field) for field in TABLE if field in given}
        if given:
            raise malformed(f"unknown term {str(sorted(given)[0])[:64]}")

    @classmethod
    def parse(cls, value: Any) -> Terms:
        """Read terms as a person or a policy may write them.

        Raises:
            ComityError: `MALFORMED`, naming the term, for unknown terms and for values outside the table.
        """
        if not isinstance(value, Mapping):
            raise malformed("terms are an object")
        parsed: dict[str, Any] = {}
        for field, item in value.items():
            row = TABLE.get(field) if isinstance(field, str) else None
            if row is None:
                raise malformed(f"unknown term {str(field)[:64]}")
            try:
                parsed[field] = row.parse(item)
            except ComityError as error:
                raise ComityError(error.code, f"term {field}: {error.detail}") from error
        return cls(parsed)

    def to_json(self) -> dict[str, Any]:
        """Return the one spelling: sorted sets, fixed scales."""
        return {field: TABLE[field].to_json(item) for field, item in self._values.items()}

    def __getitem__(self, field: str) -> Any:
        return self._values[field]

    def __contains__(self, field: object) -> bool:
        return field in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terms) and self._values == other._values

    def __hash__(self) -> int:
        return hash(canonical.canonical(self.to_json()))

    def __repr__(self) -> str:
        return f"Terms({self.to_json()!r})"


def meet(a: Terms, b: Terms) -> Terms:
    """Return the stricter of two terms, field by field. Never fails; see rule 3."""
    if a == b:  # most organisations ask for nothing beyond the proposal
        return a
    return Terms(
        {
            field: row.meet(a[field], b[field]) if field in a and field in b else a[field] if field in a else b[field]
            for field, row in TABLE.items()
            if field in a or field in b
        }
    )


def conforms(a: Terms, b: Terms) -> list[str]:
    """Return the fields in which `a` is weaker than `b`; empty means that `a` is at least as strict as `b`."""
    return [field for field, wanted in b.items() if not TABLE[field].conforms(a.get(field), wanted)]


def difference(asked: Terms, offered: Terms) -> list[dict[str, Any]]:
    """Return where `offered` goes beyond `asked`: rows of `field`, `asked` (None if absent) and `offered`, as JSON."""
    return [
        {
            "field": field,
            "asked": TABLE[field].to_json(asked[field]) if field in asked else None,
            "offered": TABLE[field].to_json(offered[field]),
        }
        for field in conforms(asked, offered)
    ]


def meet_all(
    terms_by_org: Mapping[str, Terms], *, parties: Collection[str] | None = None, now: str | None = None
) -> Terms:
    """Return the meet of everyone's terms.

    Args:
        terms_by_org: what each organisation asks for (the proposer's proposal under its own id).
        parties: who would take part, for terms that count participants; by default the keys of `terms_by_org`.
        now: an instant; an earlier `not_after` is then a contradiction.

    Raises:
        ComityError: `TERMS_CONFLICT` with the facts `field` and `organisations` (comma-separated, sorted).
    """
    named = frozenset(terms_by_org if parties is None else parties)
    total = _meet_of(terms_by_org.values())
    field = contradiction(total, named, now)
    if field is None:
        return total
    clash = ",".join(_clashing(terms_by_org, field, named, now))
    raise ComityError(ErrorCode.TERMS_CONFLICT, f"{clash} cannot agree on {field}", field=field, organisations=clash)


def _meet_of(every: Collection[Terms]) -> Terms:
    """Return what folding `meet` gives, a field at a time: fifty organisations name as many datasets."""
    said: dict[str, list[Any]] = {}
    for terms in every:
        for field, value in terms.items():
            said.setdefault(field, []).append(value)
    return Terms({field: met(TABLE[field], values) for field, values in said.items()})


def contradiction(terms: Terms, parties: Collection[str], now: str | None = None) -> str | None:
    """Return the first field that no run with these `parties` can satisfy, or None."""
    here = frozenset(parties)
    broken = {
        "purposes": "purposes" in terms and not terms["purposes"],
        "columns": any(not columns for columns in terms.get("columns", {}).values()),
        "min_participants": _participants_needed(terms) > len(here),
        "independent_peers": any(
            len((peers.among & here) - {asker}) < peers.count
            for asker, peers in terms.get("independent_peers", {}).items()
        ),
        "release_quorum": terms.get("release_quorum", 0) > len(here),
        "rounds": terms.get("rounds") == 0,
        "uses": terms.get("uses") == 0,
        "not_after": now is not None and terms.get("not_after", now) < now,
        # Training shows each round's model to its lead and its participants.
        "round_recipients": "round_recipients" in terms and not here <= terms["round_recipients"],
        "result_recipients": "result_recipients" in terms and not terms["result_recipients"],
        "min_copies": terms.get("min_copies", 0) > len(terms.get("result_recipients", here)),
    }
    return next((field for field, clash in broken.items() if clash), None)


def _participants_needed(terms: Terms) -> int:
    summed = terms.get("aggregation", "plain") != "plain"
    return max(int(terms.get("min_participants", 0)), SUMMED_PARTICIPANTS_MIN if summed else 0)


def _clashing(terms_by_org: Mapping[str, Terms], field: str, parties: Collection[str], now: str | None) -> list[str]:
    """Name the smallest group that already clashes: one, else a pair, else everyone who speaks of the field."""
    related = {field, "aggregation"} if field == "min_participants" else {field}
    if field == "min_copies":
        related.add("result_recipients")
    speakers = sorted(name for name, terms in terms_by_org.items() if related & set(terms))
    for size in (1, 2):
        for group in itertools.combinations(speakers, size):
            total = Terms()
            for name in group:
                total = meet(total, terms_by_org[name])
            if contradiction(total, parties, now) == field:
                return list(group)
    return speakers
