"""Canonical bytes: the fast path and the RFC 8785 library agree, and what was written reads back."""

from __future__ import annotations

import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire import canonical
from comity.wire.errors import ComityError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-canonical.INTEGER_MAX, canonical.INTEGER_MAX) | TEXT
KEYS = st.text(st.characters(max_codepoint=127), max_size=8) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@given(VALUES)
@settings(max_examples=300)
def test_both_encoders_agree_and_it_reads_back(value: object) -> None:
    data = canonical.canonical(value)
    assert data == rfc8785.dumps(value)  # type: ignore[arg-type]
    assert canonical.parse(data) == value


@given(st.binary(max_size=200) | VALUES.map(lambda value: canonical.canonical(value)[:-1]))
@settings(max_examples=200)
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    try:
        value = canonical.parse(data)
    except ComityError:
        return
    assert canonical.canonical(value) == data


FEW = st.recursive(
    st.sampled_from([None, True, False, 0, 1, "1", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "ä"]), inner, max_size=2),
    max_leaves=3,
)


@given(FEW, FEW)
@settings(max_examples=300)
def test_values_are_the_same_where_their_bytes_are(value: object, other: object) -> None:
    assert canonical.same(value, other) == (canonical.canonical(value) == canonical.canonical(other))
