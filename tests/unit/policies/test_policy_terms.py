"""Terms: what is refused, what conflicts and whose conflict it is."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.terms import Terms, conforms, meet, meet_all


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"round": 1},
        {"rounds": -1},
        {"rounds": True},
        {"rounds": 1.0},
        {"rounds": "1"},
        {"rounds": 2**53},
        {"purposes": ["spam"]},
        {"purposes": ["research", "research"]},
        {"purposes": "research"},
        {"purposes": [["research"]]},
        {"columns": {"patients": ["a"]}},
        {"columns": {"hospital-a/patients": ["\n"]}},
        {"clip_norm": 0.5},
        {"clip_norm": "0"},
        {"clip_norm": "-1"},
        {"clip_norm": "1e3"},
        {"clip_norm": "01"},
        {"clip_norm": "0.1234567"},
        {"clip_norm": "NaN"},
        {"privacy": {"epsilon": "1"}},
        {"privacy": {"epsilon": "1", "delta": "1"}},
        {"aggregation": "none"},
        {"aggregation": ["plain"]},
        {"not_after": "2030-01-01"},
        {"not_after": 5},
        {"human_review": ["never"]},
        {"min_participants": 65},
        {"round_recipients": ["coordinator"]},
        {"independent_peers": {"hospital-a": {"count": 0, "among": []}}},
    ],
)
def test_odd_terms_are_refused(value: Any) -> None:
    with pytest.raises(ComityError) as caught:
        Terms.parse(value)
    assert caught.value.code == ErrorCode.MALFORMED


def test_people_may_write_shortly() -> None:
    terms = Terms.parse(
        {"clip_norm": "1.5", "purposes": ["x-own", "research"], "privacy": {"epsilon": 2, "delta": "0.1"}}
    )
    assert terms["clip_norm"] == Decimal("1.5")
    assert terms.to_json() == {
        "purposes": ["research", "x-own"],
        "privacy": {"epsilon": "2.0000", "delta": "0.100000000000"},
        "clip_norm": "1.500000",
    }


def test_terms_cannot_be_changed() -> None:
    terms = Terms.parse({"columns": {"hospital-a/patients": ["a"]}})
    with pytest.raises(TypeError):
        terms["columns"]["hospital-a/patients"] = frozenset("b")


def test_the_stricter_holds() -> None:
    a = Terms.parse({"rounds": 10, "aggregation": "lead-key", "min_cohort": {"a/x": 5}, "egress": ["model", "record"]})
    b = Terms.parse({"rounds": 20, "aggregation": "plain", "min_cohort": {"a/x": 9, "b/x": 1}, "egress": ["model"]})
    assert meet(a, b).to_json() == {
        "min_cohort": {"a/x": 9, "b/x": 1},
        "aggregation": "lead-key",
        "rounds": 10,
        "egress": ["model"],
    }
    assert conforms(a, b) == ["min_cohort", "egress"]
    assert conforms(b, a) == ["aggregation", "rounds"]


PARTIES = {"hospital-a": {}, "hospital-b": {}, "hospital-c": {}}


@pytest.mark.parametrize(
    ("terms", "field", "clash"),
    [
        ({"hospital-a": {"purposes": ["research"]}, "hospital-c": {"purposes": ["marketing"]}}, "purposes", "a,c"),
        ({"hospital-b": {"min_participants": 4}}, "min_participants", "b"),
        ({"hospital-b": {"release_quorum": 4}}, "release_quorum", "b"),
        ({"hospital-a": {"not_after": "2020-01-01T00:00:00Z"}}, "not_after", "a"),
        ({"hospital-a": {"rounds": 0}}, "rounds", "a"),
        ({"hospital-b": {"round_recipients": ["hospital-a", "hospital-b"]}}, "round_recipients", "b"),
        (
            {"hospital-a": {"columns": {"hospital-b/x": ["p"]}}, "hospital-b": {"columns": {"hospital-b/x": ["q"]}}},
            "columns",
            "a,b",
        ),
        (
            {"hospital-b": {"result_recipients": ["hospital-a"]}, "hospital-c": {"min_copies": 2}},
            "min_copies",
            "b,c",
        ),
        (
            {"hospital-a": {"independent_peers": {"hospital-a": {"count": 2, "among": ["hospital-a", "hospital-b"]}}}},
            "independent_peers",
            "a",
        ),
        (
            {
                "hospital-a": {"result_recipients": ["hospital-a", "hospital-b"]},
                "hospital-b": {"result_recipients": ["hospital-b", "hospital-c"]},
                "hospital-c": {"result_recipients": ["hospital-a", "hospital-c"]},
            },
            "result_recipients",
            "a,b,c",
        ),
    ],
)
def test_conflicts_are_named(terms: dict[str, Any], field: str, clash: str) -> None:
    by_org = {org: Terms.parse(value) for org, value in (PARTIES | terms).items()}
    with pytest.raises(ComityError) as caught:
        meet_all(by_org, now="2026-01-01T00:00:00Z")
    assert caught.value.code == ErrorCode.TERMS_CONFLICT
    wanted = ",".join(f"hospital-{letter}" for letter in clash.split(","))
    assert caught.value.facts == {"field": field, "organisations": wanted}


@pytest.mark.parametrize("profile", ["lead-key", "masked", "threshold"])
def test_a_sum_needs_three(profile: str) -> None:
    by_org = {"hospital-a": Terms.parse({"aggregation": profile}), "hospital-b": Terms()}
    with pytest.raises(ComityError, match="min_participants"):
        meet_all(by_org)
    assert meet_all({**by_org, "hospital-c": Terms()})["aggregation"] == profile
    assert meet_all({"hospital-a": Terms.parse({"aggregation": "plain"}), "hospital-b": Terms()})
