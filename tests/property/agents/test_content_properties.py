"""Any content survives the codec; no damaged blob does anything but come back whole or be refused."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import INTEGER_MAX, INTEGER_MIN, Content, Record, array_entry, read_blob

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
integers = st.integers(INTEGER_MIN, INTEGER_MAX)
numbers = st.one_of(integers, st.floats())
metric_values = st.one_of(numbers, st.lists(integers, max_size=4), st.lists(st.floats(), max_size=4))
config_values = st.one_of(metric_values, names, st.binary(max_size=70), st.booleans(), st.lists(st.binary(max_size=9)))
dtypes = st.sampled_from(["float32", "float64", "int8", "uint16", "bool", "complex64"])


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    data = draw(st.binary(min_size=math.prod(shape), max_size=math.prod(shape)))
    return np.frombuffer(data, np.uint8).reshape(shape).astype(draw(dtypes))


@st.composite
def contents(draw):
    records = []
    for name in draw(st.lists(names, unique=True, max_size=4)):
        keys = draw(st.lists(names, unique=True, max_size=3))
        kind = draw(st.sampled_from(["array", "metric", "config"]))
        if kind == "array":
            items = tuple(array_entry(key, draw(arrays())) for key in keys)
        else:
            items = tuple((key, draw(metric_values if kind == "metric" else config_values)) for key in keys)
        records.append(Record(name, kind, items))
    return Content(tuple(records))


def blob(content: Content) -> bytes:
    return b"".join(bytes(part) for part in content.parts())


@given(contents())
def test_reading_what_was_written_gives_the_same_bytes(content):
    data = blob(content)
    again = read_blob(data)
    assert blob(again) == data
    assert again.shapes() == content.shapes()
    assert [record.name for record in again.records] == [record.name for record in content.records]
    for one, other in zip(again.arrays, content.arrays, strict=True):
        assert np.array_equal(one, other)


@given(contents(), st.data())
def test_a_damaged_blob_is_refused_or_still_one_content(content, data):
    whole = bytearray(blob(content))
    position = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "grow"])):
        case "flip":
            whole[position] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del whole[position:]
        case _:
            whole.insert(position, data.draw(st.integers(0, 255)))
    try:
        read_blob(whole).parts()
    except ComityError as error:
        assert error.code is ErrorCode.REPLY_SHAPE  # noqa: PT017 - acceptance is allowed too


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    try:
        read_blob(noise)
    except ComityError as error:
        assert error.code is ErrorCode.REPLY_SHAPE  # noqa: PT017 - acceptance is allowed too
