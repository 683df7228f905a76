"""Terms explained: one entry a row, examples that hold, and a JSON Schema that says what `Terms.parse` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from comity.wire.errors import ComityError
from comity_policies import decisions, term_pages
from comity_policies.term_pages import EXPLAINED
from comity_policies.terms import TABLE, Terms, conforms

VALIDATOR = Draft202012Validator(term_pages.schema())


def _parses(value: Any) -> bool:
    try:
        Terms.parse(value)
    except ComityError:
        return False
    return True


def test_every_row_is_explained_in_order() -> None:
    assert list(EXPLAINED) == list(TABLE)
    assert all(each.says.endswith(".") for each in EXPLAINED.values())


@pytest.mark.parametrize("field", list(TABLE))
def test_examples_hold_and_their_meet_is_stricter(field: str) -> None:
    each = EXPLAINED[field]
    one, other = Terms.parse({field: each.example}), Terms.parse({field: each.other})
    assert one != other
    agreed = Terms.parse({field: term_pages.met(field)})
    assert conforms(agreed, one) == conforms(agreed, other) == []
    for value in (each.example, each.other, term_pages.met(field)):
        VALIDATOR.validate({field: value})


def test_the_published_schema_is_current() -> None:
    Draft202012Validator.check_schema(term_pages.schema())
    published = Path(decisions.__file__).parent / "schemas" / "terms.json"
    assert published.read_text() == term_pages.schema_text(), "write term_pages.schema_text() to it"


TEXTS = (
    "0 0.0 1 1.5 0.5 01 -1 1e3 0.0000000001 plain masked sandbox none required 2030-01-01T00:00:00Z 2030-01-01 "
    "research spam x-own x- model egress hospital-a coordinator Hospital a/b hospital-a/patients"
)
KEYS = ("hospital-a", "hospital-a/patients", "coordinator/x", "epsilon", "delta", "count", "among", "-")
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([2**53 - 1, 2**53, 10**15]),
    st.sampled_from([*TEXTS.split(" "), "", "x" * 129]),
)
NESTED = st.one_of(
    ODD,
    st.lists(ODD, max_size=2),
    st.dictionaries(
        st.sampled_from(KEYS),
        st.one_of(ODD, st.lists(ODD, max_size=2), st.fixed_dictionaries({"count": ODD, "among": st.lists(ODD)})),
        max_size=2,
    ),
    st.fixed_dictionaries({"epsilon": ODD, "delta": ODD}),
)


@given(st.sampled_from(list(TABLE)), NESTED)
def test_the_schema_says_what_the_reader_says(field: str, value: Any) -> None:
    assert VALIDATOR.is_valid({field: value}) == _parses({field: value}), (field, value)


@pytest.mark.parametrize("field", list(TABLE))
def test_every_odd_value_is_judged_alike(field: str) -> None:
    example = json.loads(json.dumps(EXPLAINED[field].example))
    near: list[Any] = [example, [example], {"hospital-a": example}, str(example)]
    if isinstance(example, list):
        near += [[], [*example, *example], [*example, 1], [None]]
    if isinstance(example, dict):
        near += [{}, {**example, "more": 1}, dict.fromkeys(example), {key: [] for key in example}]
        near += [{key: {**inner, "more": 1}} for key, inner in example.items() if isinstance(inner, dict)]
    if isinstance(example, int):
        near += [0, -1, example + 1, 2**53, True, str(example)]
    for value in near:
        assert VALIDATOR.is_valid({field: value}) == _parses({field: value}), (field, value)


def test_unknown_terms_are_refused_by_both() -> None:
    assert not VALIDATOR.is_valid({"mood": "good"})
    assert not _parses({"mood": "good"})
