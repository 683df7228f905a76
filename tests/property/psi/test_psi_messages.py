"""Messages of an intersection from strangers: refused by name unless they are exactly what they have to be."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import ITEMS_MAX, PADDED_MIN
from comity_crypto.psi.messages import HEADER_BYTES, POINT_BYTES, Kind, Message, ascending, message_of, points_of
from comity_crypto.psi.worker_main import _job

NOISE = random.Random(5)
REFUSALS = {ErrorCode.MALFORMED, ErrorCode.TOO_LARGE}
MUTATIONS = 4_000


def _points(count, sign=b"\x02"):
    return [sign + NOISE.randbytes(POINT_BYTES - 1) for _ in range(count)]


def _samples():
    masked, other = ascending(_points(PADDED_MIN)), ascending(_points(288, b"\x03"))
    return [
        Message(Kind.ASK),
        Message(Kind.MASKED, masked),
        Message(Kind.COMPARE, masked, other),
        Message(Kind.COUNT, count=17),
        Message(Kind.MATCHED, b"".join(_points(PADDED_MIN)), count=3),
    ]


SAMPLES = _samples()


def _refused(data, *kinds):
    with pytest.raises(ComityError) as caught:
        message_of(data, *(kinds or tuple(Kind)))
    assert caught.value.code in REFUSALS
    return caught.value


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.kind.name)
def test_there_and_back(message):
    assert message_of(message.to_bytes(), message.kind) == message
    _refused(message.to_bytes(), *(kind for kind in Kind if kind is not message.kind))
    assert "\\x" not in repr(message)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.kind.name)
def test_mutations_by_the_thousand(message):
    """What passes after all differs from the message inside its points or its count only, in a size that is padded."""
    whole, codes = message.to_bytes(), set()
    for _ in range(MUTATIONS // len(SAMPLES)):
        data, change = bytearray(whole), NOISE.randrange(4)
        if change == 0:
            data[NOISE.randrange(len(data))] ^= 1 << NOISE.randrange(8)
        elif change == 1:
            data = data[: NOISE.randrange(len(data))]
        elif change == 2:
            data += NOISE.randbytes(NOISE.randrange(1, 80))
        else:
            data[NOISE.randrange(HEADER_BYTES)] = NOISE.randrange(256)
        try:
            found = message_of(bytes(data), *Kind)
        except ComityError as error:
            codes.add(error.code)
            continue
        assert found.to_bytes() == bytes(data)
        assert len(data) == len(whole)
    assert codes == {ErrorCode.MALFORMED}


@given(st.binary(max_size=200))
def test_noise(data):
    _refused(data)
    _refused(b"CPSI\x01" + data)


def test_what_order_would_tell_or_hide_is_refused():
    points = sorted(_points(PADDED_MIN))
    swapped, twice = [points[1], points[0], *points[2:]], [points[0], points[0], *points[2:]]
    for wrong in (swapped, twice):
        assert _refused(Message(Kind.MASKED, b"".join(wrong)).to_bytes()).code is ErrorCode.MALFORMED
        _refused(Message(Kind.COMPARE, b"".join(points), b"".join(wrong)).to_bytes())
    message_of(Message(Kind.MATCHED, b"".join(swapped)).to_bytes(), Kind.MATCHED)
    _refused(Message(Kind.MATCHED, b"".join(twice)).to_bytes())


def test_sizes_that_nobody_pads_to_and_counts_out_of_range():
    _refused(Message(Kind.MASKED, ascending(_points(PADDED_MIN - 1))).to_bytes())
    _refused(Message(Kind.MASKED, ascending(_points(PADDED_MIN + 1))).to_bytes())
    _refused(Message(Kind.MATCHED, b"".join(_points(PADDED_MIN)), count=PADDED_MIN + 1).to_bytes())
    _refused(Message(Kind.COUNT, count=ITEMS_MAX + 1).to_bytes())
    _refused(Message(Kind.MASKED, ascending(_points(PADDED_MIN)), count=1).to_bytes())
    _refused(Message(Kind.MASKED, ascending(_points(PADDED_MIN, b"\x04"))).to_bytes())
    _refused(Message(Kind.ASK, ascending(_points(PADDED_MIN))).to_bytes())


def test_a_header_that_promises_much_costs_nothing(monkeypatch):
    """The size is compared before anything is made of it, and so is the limit."""
    huge = b"CPSI\x01\x02\x00\x00" + ITEMS_MAX.to_bytes(4, "big") + bytes(8)
    _refused(huge)
    monkeypatch.setattr("comity_crypto.psi.messages.MESSAGE_BYTES_MAX", 100)
    assert _refused(bytes(101)).code is ErrorCode.TOO_LARGE


def test_the_library_refuses_what_is_no_point():
    """By the thousand, in this very process: a crash of the native code would end it."""
    remask = _job("remask", bytes(31) + b"\x05")
    (good,) = _job("mask", bytes(31) + b"\x07")([bytes(32)])
    assert len(remask([good])[0]) == POINT_BYTES
    refused = 0
    for _ in range(2_000):
        size = NOISE.choice((0, 1, 32, POINT_BYTES, POINT_BYTES, POINT_BYTES, 65, 4_000))
        data = (NOISE.choice((b"\x02", b"\x03", b"\x04", b"\x00", b"\xff")) + NOISE.randbytes(size))[:size]
        try:
            (point,) = remask([data])
        except RuntimeError:
            refused += 1
            continue
        assert len(data) in (POINT_BYTES, 65)
        assert points_of(point) == [point]
    assert 1_000 < refused < 2_000
