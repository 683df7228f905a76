"""Server-sent events, read line by line from whoever sends them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_client.transport import EVENT_BYTES_MAX, EventReader


@given(st.lists(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20)), max_size=6))
def test_every_event_arrives(sent: list[dict[str, object]]) -> None:
    lines = []
    for number, event in enumerate(sent):
        lines += [": alive", "", f"id: {number}", "event: x", f"data: {json.dumps(event)}", ""]
    reader = EventReader()
    heard = [reader.feed(line) for line in lines]
    assert [event for event in heard if event is not None] == sent


def test_an_event_may_have_several_lines() -> None:
    reader = EventReader()
    assert [reader.feed(line) for line in ("data: {", 'data:"a": 1}', "")] == [None, None, {"a": 1}]


@pytest.mark.parametrize("data", ["not json", "[1]", "1", "[" * 100_000])
def test_what_is_no_object_is_refused(data: str) -> None:
    reader = EventReader()
    reader.feed(f"data: {data}")
    with pytest.raises(ComityError) as caught:
        reader.feed("")
    assert caught.value.code is ErrorCode.MALFORMED


def test_an_event_is_bounded() -> None:
    reader, part = EventReader(), "data: " + "x" * 100_000
    for _ in range(EVENT_BYTES_MAX // 100_000):
        assert reader.feed(part) is None
    with pytest.raises(ComityError) as caught:
        reader.feed(part)
    assert caught.value.code is ErrorCode.TOO_LARGE
