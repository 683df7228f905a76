"""The wire's small parts: canonical bytes, identifiers, instants, the catalogue."""

from __future__ import annotations

import sys
import time
import uuid
from datetime import UTC, datetime

import grpc
import pytest

from comity.wire import canonical, ids, instants
from comity.wire.catalog import CATALOG
from comity.wire.errors import DETAIL_CHARS_MAX, ComityError, ErrorCode


def code_of(excinfo: pytest.ExceptionInfo[ComityError]) -> ErrorCode:
    return excinfo.value.code


def test_every_code_has_a_row_with_a_real_status() -> None:
    assert set(CATALOG) == set(ErrorCode)
    for code, row in CATALOG.items():
        assert row.grpc in grpc.StatusCode.__members__, code
        assert 400 <= row.http <= 599, code
        assert row.sentence.endswith("."), code


def test_canonical_is_sorted_and_has_one_spelling() -> None:
    assert canonical.canonical({"b": 1, "a": [True, None, "é"]}) == '{"a":[true,null,"é"],"b":1}'.encode()
    assert canonical.parse(b'{"a":1}') == {"a": 1}
    for other in (b'{ "a":1}', b'{"a":1.0}', b'{"a":1,"a":1}', b"{", b'{"b":1,"a":2}'):
        with pytest.raises(ComityError) as error:
            canonical.parse(other)
        assert code_of(error) is ErrorCode.MALFORMED


@pytest.mark.parametrize("value", [1.5, {1: 2}, 2**53, object(), b"bytes", float("nan")])
def test_what_has_no_canonical_form(value: object) -> None:
    with pytest.raises(ComityError) as error:
        canonical.canonical({"x": value})
    assert code_of(error) is ErrorCode.MALFORMED


def test_depth_and_size_are_bounded() -> None:
    deep: object = 1
    for _ in range(canonical.DEPTH_MAX + 2):
        deep = [deep]
    with pytest.raises(ComityError):
        canonical.canonical(deep)
    with pytest.raises(ComityError) as error:
        canonical.parse(b'"' + b"a" * 100 + b'"', max_bytes=50)
    assert code_of(error) is ErrorCode.TOO_LARGE


def test_deep_hostile_json_is_refused_not_crashed_on() -> None:
    """Also when a library has raised the recursion limit beyond what the stack bears, as py_ecc does."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        for hostile in (b"[" * 200_000 + b"]" * 200_000, b'{"a":' * 100_000, b"[" * 500_000):
            with pytest.raises(ComityError) as error:
                canonical.parse(hostile)
            assert code_of(error) is ErrorCode.MALFORMED
    finally:
        sys.setrecursionlimit(limit)


def test_brackets_in_text_are_not_nesting() -> None:
    value = {"text": "[{" * 1000 + '"\\'}
    assert canonical.parse(canonical.canonical(value)) == value


@pytest.mark.parametrize("text", ["", "A", "a_b", "-a", "a-", "a" * 64, "coordinator", "a/b", "a.b", "é"])
def test_bad_organisation_ids(text: str) -> None:
    with pytest.raises(ComityError):
        ids.org_id(text)


def test_spiffe_round_trip() -> None:
    assert ids.parse_spiffe(ids.spiffe_org("net", "clinic-a")) == ("net", "org", "clinic-a")
    assert ids.parse_spiffe(ids.spiffe_join("net", "tok-1")) == ("net", "join", "tok-1")
    assert ids.parse_spiffe(ids.spiffe_coordinator("net")) == ("net", "coordinator", "")
    assert ids.parse_spiffe(ids.spiffe_replica("net", "b")) == ("net", "coordinator", "b")


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://net/org",
        "spiffe://net/org/a/b",
        "spiffe://net/coordinator/x/y",
        "https://net/org/a",
        "spiffe://NET/org/a",
    ],
)
def test_bad_spiffe(uri: str) -> None:
    with pytest.raises(ComityError) as error:
        ids.parse_spiffe(uri)
    assert code_of(error) is ErrorCode.FORBIDDEN


def test_ids_sort_by_time_and_differ() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = [ids.new_id("prop") for _ in range(100)]
    after_ms = time.time_ns() // 1_000_000
    assert len({item[17:] for item in made}) == 100  # what is drawn
    assert [item[:17] for item in made] == sorted(item[:17] for item in made)
    for item in made:
        prefix, _, form = item.partition("-")
        as_uuid = uuid.UUID(form)
        assert (prefix, len(form), as_uuid.version, as_uuid.variant) == ("prop", 32, 7, uuid.RFC_4122)
        assert before_ms <= as_uuid.int >> 80 <= after_ms
    assert len({item[-16] for item in made}) == 4  # two of its four bits are the variant's
    earlier = f"prop-{before_ms - 1:012x}" + "f" * 14  # the form of earlier versions
    assert min([earlier, *made]) == earlier


def test_instants_round_trip_and_refuse() -> None:
    moment = datetime(2026, 11, 22, 12, 0, 1, 999, tzinfo=UTC)
    assert instants.parse(instants.to_text(moment)) == moment.replace(microsecond=0)
    for bad in ("2026-11-22", "2026-11-22T12:00:00+00:00", "", "2026-13-01T00:00:00Z"):
        with pytest.raises(ComityError):
            instants.parse(bad)


def test_an_error_crosses_the_wire_and_garbage_becomes_internal() -> None:
    error = ComityError(ErrorCode.TOO_LARGE, "x" * 1000, size_bytes=3)
    back = ComityError.from_json(error.to_json())
    assert (back.code, len(back.detail), back.facts) == (ErrorCode.TOO_LARGE, DETAIL_CHARS_MAX, {"size_bytes": 3})
    for garbage in (None, [], {"code": "NO_SUCH"}, {"facts": 3}, {"code": 5, "facts": {"code": 1, "detail": 2}}):
        assert ComityError.from_json(garbage).code is ErrorCode.INTERNAL


def test_every_error_has_canonical_bytes() -> None:
    """A fact from a stranger must not make the refusal itself fail."""
    error = ComityError(ErrorCode.TOO_LARGE, size_bytes=2**64, name="x" * 1000)
    plain = error.to_json()
    assert plain["facts"] == {"size_bytes": str(2**64), "name": "x" * 200}
    assert ComityError.from_json(canonical.parse(canonical.canonical(plain))).facts == plain["facts"]
