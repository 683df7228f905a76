"""What each term means, for people and for other programs: the page docs/terms.md and the published JSON Schema.

Rules: one entry for each row of `TABLE`, in its order (a test compares them); every example is a value that
`Terms.parse` takes and the schema permits; the schema permits nothing that `Terms.parse` refuses for its form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from comity_policies.term_rows import KEYS_MAX, SET_SIZE_MAX
from comity_policies.terms import (
    AGGREGATION,
    EGRESS_KINDS,
    ISOLATION,
    PARTIES_MAX,
    PURPOSES,
    REVIEW_STAGES,
    TABLE,
    Terms,
    meet,
)

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ORG = {"type": "string", "pattern": f"^(?!coordinator$){_LABEL}$"}
_DATASET_KEY = {"type": "string", "pattern": f"^(?!coordinator/){_LABEL}/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}$"}
_PURPOSE = {"anyOf": [{"enum": list(PURPOSES)}, {"type": "string", "pattern": "^x-[A-Za-z0-9._-]{1,126}$"}]}
_COLUMN = {"type": "string", "minLength": 1, "maxLength": 128}
_INTEGER_MAX = 2**53 - 1
_DELTA = {"type": "string", "pattern": r"^0\.(?!0*$)[0-9]{1,12}$"}
_ORGS: dict[str, Any] = {"type": "array", "items": _ORG, "uniqueItems": True, "maxItems": SET_SIZE_MAX}


def _set(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "uniqueItems": True, "maxItems": SET_SIZE_MAX}


def _count(low: int = 0, high: int = _INTEGER_MAX) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


def _decimal(scale: int) -> dict[str, Any]:
    form = rf"^(?!0(?:\.0*)?$)(?:0|[1-9][0-9]{{0,14}})(?:\.[0-9]{{1,{scale}}})?$"
    return {"anyOf": [{"type": "string", "pattern": form}, {"type": "integer", "minimum": 1, "maximum": 10**15 - 1}]}


def _keyed(key: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": key, "additionalProperties": inner, "maxProperties": KEYS_MAX}


def _exactly(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": sorted(fields), "properties": fields, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Explained:
    """One term: what it says, an example, what another party might ask, and its form."""

    says: str
    example: Any
    other: Any
    form: dict[str, Any]


EXPLAINED: dict[str, Explained] = {
    "purposes": Explained(
        "What the results may be used for: codes of the published vocabulary, or a consortium's own that start with "
        "`x-`. The meet is what everybody permits; nothing left is a conflict.",
        ["research", "public-health"],
        ["research", "statistics"],
        _set(_PURPOSE),
    ),
    "columns": Explained(
        "Which columns of a dataset may be read, by `organisation/dataset`. The run gets a copy that has no others.",
        {"hospital-b/patients": ["age", "diagnosis"]},
        {"hospital-b/patients": ["age"]},
        _keyed(_DATASET_KEY, _set(_COLUMN)),
    ),
    "min_cohort": Explained(
        "How many records must stand behind any number that leaves, by `organisation/dataset`. Receipts prove it "
        "without saying how many there are.",
        {"hospital-b/patients": 20},
        {"hospital-b/patients": 50},
        _keyed(_DATASET_KEY, _count()),
    ),
    "min_participants": Explained(
        "How many organisations must be in every aggregate. Summed updates need at least three: of two, each could "
        "subtract its own.",
        3,
        5,
        _count(high=PARTIES_MAX),
    ),
    "independent_peers": Explained(
        "For one party, how many of the organisations that it trusts not to collude must take part. Members of one "
        "legal owner count once.",
        {"hospital-b": {"count": 1, "among": ["hospital-c", "hospital-d"]}},
        {"hospital-b": {"count": 2, "among": ["hospital-c", "hospital-d"]}},
        _keyed(_ORG, _exactly(count=_count(1, SET_SIZE_MAX), among=_ORGS)),
    ),
    "aggregation": Explained(
        f"How updates are combined, the weakest first: {', '.join(f'`{each}`' for each in AGGREGATION)}. `plain` shows "
        "each update to the lead; the others show it a sum only.",
        "plain",
        "lead-key",
        {"enum": list(AGGREGATION)},
    ),
    "release_quorum": Explained(
        "How many organisations must give their share before a sum is opened, under `threshold`; more than half of the "
        "parties at the least. Where nobody names it: everybody of three, two thirds of more.",
        2,
        3,
        _count(high=PARTIES_MAX),
    ),
    "privacy": Explained(
        "The differential-privacy budget of the whole agreement: epsilon, and a delta below 1. Real numbers are text.",
        {"epsilon": "4", "delta": "0.00001"},
        {"epsilon": "2", "delta": "0.00001"},
        _exactly(epsilon=_decimal(4), delta=_DELTA),
    ),
    "clip_norm": Explained(
        "The largest L2 norm of one organisation's update; a larger one is scaled down.", "1.5", "1", _decimal(6)
    ),
    "range": Explained("The largest absolute value of one coordinate of an update.", "4", "0.5", _decimal(9)),
    "weight_max": Explained(
        "The largest weight that one organisation's update may have in a sum, so that none drowns the others.",
        1000,
        500,
        _count(1),
    ),
    "rounds": Explained("How many training rounds all runs together may have.", 20, 10, _count()),
    "uses": Explained("How many times the agreement may be run.", 3, 1, _count()),
    "releases": Explained(
        "How many results may leave, evaluations included: every number that leaves says something.",
        40,
        25,
        _count(),
    ),
    "egress_bytes": Explained(
        "How many bytes of results may leave one organisation altogether.", 10_000_000, 1_000_000, _count()
    ),
    "not_after": Explained(
        "When the agreement ends: an instant in UTC. One that has passed is a conflict.",
        "2030-12-31T00:00:00Z",
        "2030-06-30T00:00:00Z",
        {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
    ),
    "retention_s": Explained(
        "For how many seconds after a run's end each party may keep its results, the sums that it opened and the "
        "numbers in its events; then its node deletes them and says so in the ledger. Without it they are kept.",
        2_592_000,
        86_400,
        _count(),
    ),
    "isolation": Explained(
        f"How foreign code is run, the weakest first: {', '.join(f'`{each}`' for each in ISOLATION)}.",
        "process",
        "sandbox",
        {"enum": list(ISOLATION)},
    ),
    "attestation": Explained(
        "Whether nodes must prove by hardware what they run.", "none", "required", {"enum": ["none", "required"]}
    ),
    "egress": Explained(
        "Which kinds of results may leave; the node measures the kind, whatever the app calls it.",
        ["model", "statistic"],
        ["statistic"],
        _set({"enum": list(EGRESS_KINDS)}),
    ),
    "human_review": Explained(
        "Where a person of each organisation has to look: before it signs the agreement, before an order, before a "
        "result leaves. What anybody asks for, everybody does.",
        ["agreement"],
        ["egress"],
        _set({"enum": list(REVIEW_STAGES)}),
    ),
    "round_recipients": Explained(
        "Who may see the global model of each round. Training shows it to the lead and all participants, so they have "
        "to be among them. It permits and does not deliver: the lead opens a round's sum, and under `threshold` also "
        "those whom the step's `opened_by` names within this term.",
        ["hospital-a", "hospital-b", "hospital-c"],
        ["hospital-a", "hospital-b"],
        _ORGS,
    ),
    "result_recipients": Explained(
        "Who may get the final result; it is sealed to them.", ["hospital-a", "hospital-b"], ["hospital-a"], _ORGS
    ),
    "min_copies": Explained(
        "How many recipients keep the sealed result and hand it out again by its digest.",
        1,
        2,
        _count(high=PARTIES_MAX),
    ),
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of terms."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://comity.example/schemas/terms.json",
        "title": "Terms: constraints on how a workflow may run; an absent term is no constraint",
        "type": "object",
        "properties": {field: {"description": each.says, **each.form} for field, each in EXPLAINED.items()},
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the published file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def met(field: str) -> Any:
    """Return what two parties agree on who ask for a term's two examples."""
    each = EXPLAINED[field]
    return meet(Terms.parse({field: each.example}), Terms.parse({field: each.other})).to_json()[field]


def page() -> str:
    """Return docs/terms.md without its head."""
    parts = []
    for field in TABLE:
        each = EXPLAINED[field]
        parts += [
            f"## {field}",
            "",
            each.says,
            "",
            "| one asks | another asks | agreed |",
            "|---|---|---|",
            f"| {_code(each.example)} | {_code(each.other)} | {_code(met(field))} |",
            "",
        ]
    return "\n".join(parts)


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"
