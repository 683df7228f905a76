"""Messages of masked sums from strangers: exact fields, bounded counts, exact lengths, or `MALFORMED`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.boxes import BOX_KEY_BYTES, SEED_BOX_BYTES, BoxKey, seal
from comity_crypto.secagg.masked import messages
from comity_crypto.secagg.masked.keys import (
    DEAL_BOX_BYTES,
    REVEAL_BOX_BYTES,
    Place,
    Revelation,
    RoundSecret,
    pair_key,
)

QUIET = settings(max_examples=60, deadline=None)
H, ORGS = "a" * 64, ("org-a", "org-b", "org-c")


def pairs(size: int) -> tuple[tuple[str, bytes], ...]:
    return tuple((org, bytes(size)) for org in ORGS)


HASHES = tuple((org, H) for org in ORGS)
GOOD: list[Any] = [
    messages.MaskedOffer("agr", "run", "s", 1, 0, "org-a", ORGS, 3, H, H, 1, bytes(BOX_KEY_BYTES), 100),
    messages.MaskedReady(H, H, H, H, bytes(BOX_KEY_BYTES), bytes(BOX_KEY_BYTES), H),
    messages.RoundBoxes(H, H, pairs(SEED_BOX_BYTES)),
    messages.MaskedKeys(H, H, pairs(SEED_BOX_BYTES), pairs(DEAL_BOX_BYTES), HASHES, HASHES),
    messages.MaskedKeys(H, H, (), pairs(DEAL_BOX_BYTES), HASHES, HASHES),
    messages.MaskedNotice(H, H, H, H, 464, ()),
    messages.MaskedNotice(H, H, H, H, 464, ("org-b",)),
    messages.NoticeSignature(H, H, H),
    messages.Reveal(H, H, bytes(REVEAL_BOX_BYTES)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message.KIND)
def test_a_message_survives_its_json(message: Any) -> None:
    assert messages.parse_masked(message.KIND, message.to_json()) == message


@QUIET
@given(
    message=st.sampled_from(GOOD), place=st.integers(0, 20), value=JSON, other=st.sampled_from(["gone", "more", "set"])
)
def test_a_hostile_field_is_refused_or_means_something_else(message: Any, place: int, value: Any, other: str) -> None:
    body = message.to_json()
    name = sorted(body)[place % len(body)]
    if other == "gone":
        del body[name]
    else:
        body[name + ("x" if other == "more" else "")] = value
    found, codes = None, (ErrorCode.MALFORMED, ErrorCode.PARTICIPANTS_TOO_FEW)
    try:
        found = type(message).from_json(body)
    except ComityError as error:
        found = error.code
    assert found in codes or (other == "set" and type(found) is type(message))


@QUIET
@given(value=JSON)
def test_any_body_of_any_kind_is_refused(value: Any) -> None:
    for kind in messages.MASKED_BODIES:
        with pytest.raises(ComityError) as caught:
            messages.parse_masked(kind, value)
        assert caught.value.code is ErrorCode.MALFORMED
    with pytest.raises(ComityError) as caught:
        messages.parse_masked("secagg.linear-digest", value)
    assert caught.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(
    "orgs", [["org-b", "org-a"], ["org-a", "org-a"], [f"org-{i:03d}" for i in range(51)], ["../x"]]
)
def test_lists_of_the_dropped_are_sorted_bounded_and_named_once(orgs: list[str]) -> None:
    body = messages.MaskedNotice(H, H, H, H, 464, ()).to_json() | {"dropped": orgs}
    with pytest.raises(ComityError):
        messages.MaskedNotice.from_json(body)


@QUIET
@given(data=st.binary(max_size=1300), flip=st.integers(0, SEED_BOX_BYTES - 1))
def test_boxes_of_strangers_do_not_open(data: bytes, flip: int) -> None:
    key, info = BoxKey(), Place(H, H).info("pair", "org-a", "org-b")
    box = bytearray(seal(key.public, bytes(32), info))
    assert key.open(bytes(box), info, 32) == bytes(32)
    box[flip] ^= 1
    for hostile, where in ((data, info), (bytes(box), info), (seal(key.public, bytes(32), info), info + b"x")):
        with pytest.raises(ComityError) as caught:
            key.open(hostile, where, 32)
        assert caught.value.code is ErrorCode.SEAL_BROKEN
    with pytest.raises(ComityError):
        seal(data, bytes(32), info)


@QUIET
@given(data=st.binary(max_size=60), size=st.integers(0, 4000))
def test_what_is_revealed_is_read_strictly(data: bytes, size: int) -> None:
    others = ORGS[1:]
    good = Revelation(bytes(32), {org: bytes([7]) * 66 for org in others}).to_bytes(others)
    assert Revelation.from_bytes(good, others).to_bytes(others) == good
    for hostile in (data, good[: size % len(good)], good[:-1] + b"\x01", good + data + b"\x00"):
        with pytest.raises(ComityError) as caught:
            Revelation.from_bytes(hostile, others)
        assert caught.value.code is ErrorCode.BAD_SHARE


def test_keys_follow_from_their_root_and_are_not_shown() -> None:
    root = os.urandom(32)
    assert pair_key(root).public == pair_key(root).public != pair_key(bytes(32)).public
    secret = RoundSecret(os.urandom)
    assert secret.secret.hex() not in repr(secret)
    assert "held" in repr(secret)
    assert "held" in repr(secret.box_key)
