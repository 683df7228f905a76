"""The meet of terms is a meet: commutative, associative, idempotent, never less strict than either side."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_policies.terms import (
    AGGREGATION,
    EGRESS_KINDS,
    PURPOSES,
    TABLE,
    Terms,
    conforms,
    contradiction,
    meet,
    meet_all,
)

ORGS = ["hospital-a", "hospital-b", "hospital-c"]
DATASETS = [f"{org}/patients" for org in ORGS]


def _some(items: Any) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(sorted(items)), unique=True, max_size=4)


def _decimal(places: int) -> st.SearchStrategy[str]:
    return st.decimals(Decimal(1) / 10**places, 900, places=places).map(lambda value: format(value, "f"))


COUNT = st.integers(0, 50)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "purposes": _some(PURPOSES[:4]),
    "columns": st.dictionaries(st.sampled_from(DATASETS), _some("abcd")),
    "min_cohort": st.dictionaries(st.sampled_from(DATASETS), COUNT),
    "min_participants": COUNT,
    "independent_peers": st.dictionaries(
        st.sampled_from(ORGS), st.fixed_dictionaries({"count": st.integers(1, 3), "among": _some(ORGS)})
    ),
    "aggregation": st.sampled_from(AGGREGATION),
    "release_quorum": COUNT,
    "privacy": st.fixed_dictionaries(
        {"epsilon": _decimal(4), "delta": st.decimals("0.000001", "0.9", places=6).map(lambda value: f"{value:f}")}
    ),
    "clip_norm": _decimal(6),
    "range": _decimal(9),
    "weight_max": st.integers(1, 50),
    **dict.fromkeys(("rounds", "uses", "releases", "egress_bytes", "retention_s", "min_copies"), COUNT),
    "not_after": st.datetimes().map(lambda moment: f"20{moment:%y-%m-%dT%H:%M:%SZ}"),
    "isolation": st.sampled_from(("process", "sandbox", "container")),
    "attestation": st.sampled_from(("none", "required")),
    "egress": _some(EGRESS_KINDS),
    "human_review": _some(("agreement", "dispatch", "egress")),
    "round_recipients": _some(ORGS),
    "result_recipients": _some(ORGS),
}
TERMS = st.fixed_dictionaries({}, optional=VALUES).map(Terms.parse)


def test_every_row_is_exercised() -> None:
    assert VALUES.keys() == TABLE.keys()


@given(TERMS, TERMS)
def test_meet_is_commutative_and_never_weaker(a: Terms, b: Terms) -> None:
    both = meet(a, b)
    assert both == meet(b, a)
    assert conforms(both, a) == []
    assert conforms(both, b) == []


@given(TERMS, TERMS, TERMS)
def test_meet_is_associative(a: Terms, b: Terms, c: Terms) -> None:
    assert meet(meet(a, b), c) == meet(a, meet(b, c))


@given(TERMS)
def test_meet_is_idempotent_and_absence_is_neutral(a: Terms) -> None:
    assert meet(a, a) == a
    assert meet(a, Terms()) == a
    assert conforms(a, a) == []
    assert conforms(a, Terms()) == []


@given(TERMS, TERMS)
def test_conforming_is_what_the_meet_does_not_change(a: Terms, b: Terms) -> None:
    """`a` is as strict as `b` in a field exactly if the meet with `b` asks no more than `a` does."""
    weaker = conforms(a, b)
    for field in b:
        more = meet(Terms({field: a[field]}) if field in a else Terms(), Terms({field: b[field]}))
        mine = Terms({field: a[field]}) if field in a else Terms()
        assert (field in weaker) == (conforms(mine, more) != [])


@given(TERMS)
def test_json_has_one_spelling(a: Terms) -> None:
    again = Terms.parse(a.to_json())
    assert again == a
    assert again.to_json() == a.to_json()
    assert hash(again) == hash(a)


@given(st.dictionaries(st.sampled_from(ORGS), TERMS, min_size=1))
def test_meet_of_all_is_the_meet_or_names_a_clash(by_org: dict[str, Terms]) -> None:
    total = Terms()
    for terms in by_org.values():
        total = meet(total, terms)
    field = contradiction(total, by_org)
    if field is None:
        assert meet_all(by_org) == total
        return
    with pytest.raises(ComityError) as caught:
        meet_all(by_org)
    assert caught.value.code == ErrorCode.TERMS_CONFLICT
    assert caught.value.facts["field"] == field
    named = str(caught.value.facts["organisations"]).split(",")
    assert set(named) <= set(by_org)
    assert named
