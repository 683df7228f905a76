"""Steps by kind and the text of queries: one spelling, strict, bounded; a training keeps its bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import query_text
from comity_policies.decisions import Stage, example
from comity_policies.documents import AggregateStep, DatasetAsk, IntersectStep, KeyColumn, Proposal, Query, TrainStep
from comity_policies.query import Column
from comity_policies.terms import Terms

MEAN = query_text.parse("mean(age in 0..120) where smoker = 1")
ASK = AggregateStep("ask", "hospital-a", MEAN, 1, 60)
KEYS = (KeyColumn("hospital-b", "patients", "id"), KeyColumn("hospital-a", "patients", "id"))
MEET = IntersectStep("meet", "hospital-a", "hospital-b", KEYS, "cardinality", 60)


def proposed(**changes: Any) -> Proposal:
    columns = ("age", "id", "smoker")
    return Proposal(
        proposal_id="prop-1",
        revision=1,
        consortium="hospitals",
        proposer="hospital-a",
        purpose="research",
        title="Ages",
        steps=changes.pop("steps", (ASK,)),
        required=("hospital-a", "hospital-b"),
        optional=changes.pop("optional", ()),
        minimum=2,
        datasets=changes.pop("datasets", tuple(DatasetAsk(f"hospital-{each}", "patients", columns) for each in "ab")),
        terms=Terms(),
        deadline="2030-01-01T00:00:00Z",
    )


def test_a_training_keeps_the_bytes_of_the_first_release() -> None:
    value = example(Stage.PROPOSAL)["proposal"]
    read = Proposal.from_json(value)
    assert isinstance(read.steps[0], TrainStep)
    assert read.app is not None
    assert read.to_json() == value
    # The digest of these bytes as release 0.3 computed it.
    assert read.digest == "48de0d50ca18380265dcd7e99f492b67ada8b40de5236ceb632a460b4d4858ae"


@pytest.mark.parametrize("step", [ASK, MEET])
def test_a_proposal_of_any_kind_is_read_as_it_was_written(step: Any) -> None:
    proposal = proposed(steps=(step,))
    again = Proposal.from_json(proposal.to_json())
    assert again == proposal
    assert again.steps[0] == step
    assert again.app is None
    assert again.steps[0].most_rounds == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"datasets": (DatasetAsk("hospital-a", "patients", ("age", "smoker")),)}, "one dataset of each"),
        ({"datasets": tuple(DatasetAsk(f"hospital-{x}", "patients", ("age",)) for x in "ab")}, "reads only columns"),
        ({"steps": (MEET,), "optional": ("hospital-c",)}, "two parties"),
        ({"steps": (MEET, replace(MEET, id="again"))}, "only step"),
        ({"steps": (replace(MEET, keys=tuple(replace(k, column="name") for k in KEYS)),)}, "reads only columns"),
    ],
)
def test_a_step_reads_what_its_proposal_asks_for(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ComityError, match=named) as caught:
        proposed(**changes)
    assert caught.value.code == ErrorCode.MALFORMED


@pytest.mark.parametrize(
    "change",
    [{"kind": "dump"}, {"kind": None}, {"app": None}, {"rounds": 2}, {"query": {"measure": "count"}}],
)
def test_a_strange_step_is_refused(change: dict[str, Any]) -> None:
    value = proposed().to_json()
    value["steps"][0] |= change
    with pytest.raises(ComityError) as caught:
        Proposal.from_json(value)
    assert caught.value.code == ErrorCode.MALFORMED


NAMES = st.sampled_from(["age", "bmi", "a b", "it's", "where", "in"])
WHOLE = st.integers(-1000, 1000)
WORDS = st.sampled_from(["f", "m", "1", "x y", "o'k"])


@st.composite
def queries(draw: st.DrawFn) -> Query:
    kind = draw(st.sampled_from(["count", "sum", "variance", "quantiles", "histogram", "table"]))
    low, width = draw(WHOLE), draw(st.integers(1, 500))
    tests = [
        {
            "column": draw(NAMES),
            "op": draw(st.sampled_from(["=", "<=", "!="])),
            "value": str(draw(WHOLE)),
            "number": True,
        }
        for _ in range(draw(st.integers(0, 3)))
    ]
    column: dict[str, Any] = {"name": draw(NAMES), "low": str(low), "high": str(low + width)}
    body: dict[str, Any] = {"measure": kind, "columns": [column], "decimals": draw(st.integers(0, 6)), "where": tests}
    body |= {"edges": [], "probabilities": ["0.25", "0.5"] if kind == "quantiles" else []}
    if kind == "count":
        body |= {"columns": [], "decimals": 0}
    if kind == "histogram":
        body |= {"columns": [{"name": column["name"]}], "edges": [str(low), str(low + width)]}
    if kind == "table":
        values = draw(st.lists(WORDS, min_size=1, unique=True))
        body |= {"decimals": 0, "columns": [{"name": name, "values": values} for name in ("p", "q q")]}
    return Query.from_json(body)


@settings(max_examples=60)
@given(queries())
def test_the_text_of_a_query_means_that_query(query: Query) -> None:
    assert query_text.parse(query.text) == query


@settings(max_examples=60)
@given(st.text(st.sampled_from("count mean(age i0.5:;,'=<>where)äß\n"), max_size=60))
def test_any_text_is_a_query_or_refused(text: str) -> None:
    try:
        query_text.parse(text)
    except ComityError as error:
        assert error.code == ErrorCode.MALFORMED  # noqa: PT017 - both ways are right


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mean(age)", "say the range of age"),
        ("mean(age in 5..1)", "smaller to the larger"),
        ("mean(age in 0..1e9)", "has no place"),
        ("sum(age in 0..99999999999)", "coarser step"),
        ("median(age in 0..9 by 0.5)", "1 0.1 0.01"),
        ("quantiles(age in 0..9: 0.5, 0.5)", "rising"),
        ("quantiles(age in 0..9: 1)", "between 0 and 1"),
        ("histogram(age: 3, 2)", "rising"),
        ("table(a: 1; a: 2)", "2 different columns"),
        ("table(a: 1, 1; b: 2)", "each once"),
        ("count where a < x", "= and != only"),
        ("count where a = 1 or b = 2", "where, and or the end"),
        ("drop", "one of count, sum"),
        ("count" + " " * 20_000, "at most 16384"),
        ("mean(age in 0..9) where " + " and ".join(["a = 1"] * 9), "at most 8"),
        ("table(" + ";".join(f"{n}:" + ",".join(map(str, range(64))) for n in "ab") + ")", "at most 1024 cells"),
    ],
)
def test_a_query_is_refused_with_the_reason(text: str, named: str) -> None:
    with pytest.raises(ComityError, match=named) as caught:
        query_text.parse(text)
    assert caught.value.code == ErrorCode.MALFORMED


def test_ranges_are_given_beside_the_text_too() -> None:
    name, ends = query_text.read_range("age=-5..120.5")
    assert query_text.parse("mean(age)", {name: ends}).columns == (Column("age", "-5", "120.5"),)
    with pytest.raises(ComityError, match="COLUMN=LOW"):
        query_text.read_range("age")
