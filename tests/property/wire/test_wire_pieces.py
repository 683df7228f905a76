"""Pieces against the protobuf runtime: the same messages, and nothing read that it would read otherwise."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comity.v1 import payload_pb2
from comity.wire import pieces
from comity.wire.pieces import DOWNLOAD_FIELD, UPLOAD_FIELD

SIZES = [1, 127, 128, 16_383, 16_384, 524_288, 2_097_152]


@pytest.mark.parametrize("size", SIZES)
def test_messages_are_those_of_the_runtime(size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    upload, download = pieces.write(data, UPLOAD_FIELD), pieces.write(memoryview(data), DOWNLOAD_FIELD)
    assert upload == payload_pb2.PutPayloadRequest(data=data).SerializeToString()
    assert download == payload_pb2.GetPayloadResponse(data=data).SerializeToString()
    assert pieces.read(upload, UPLOAD_FIELD) == data
    assert pieces.read(download, DOWNLOAD_FIELD) == data


def test_no_other_message_is_a_piece() -> None:
    header = payload_pb2.PutPayloadRequest(header=payload_pb2.PayloadHeader(digest="00", size_bytes=3))
    assert pieces.read(header.SerializeToString(), UPLOAD_FIELD) is None
    assert pieces.read(b"", UPLOAD_FIELD) is None
    assert pieces.read(pieces.write(b"abc", DOWNLOAD_FIELD), UPLOAD_FIELD) is None


@settings(max_examples=60)
@given(st.binary(max_size=40).map(lambda tail: b"\x12" + tail))
@example(b"\x12")
@example(b"\x12\x80")
@example(b"\x12\x81\x00a")
@example(b"\x12\x80\x80\x80\x80\x00")
@example(b"\x12\x01a\x12\x01b")
@example(b"\x12\xff\xff\xff\xff\x0f")
@example(b"\x12\x02a")
def test_what_is_read_is_what_the_runtime_reads(message: bytes) -> None:
    found = pieces.read(message, UPLOAD_FIELD)
    if found is None:
        return
    request = payload_pb2.PutPayloadRequest.FromString(message)
    assert request.WhichOneof("piece") == "data"
    assert request.data == found


@settings(max_examples=60)
@given(st.binary(max_size=40), st.data())
def test_a_cut_or_longer_message_is_left_to_the_runtime(data: bytes, draw: st.DataObject) -> None:
    message = pieces.write(data, UPLOAD_FIELD)
    assert pieces.read(message + b"\x12", UPLOAD_FIELD) is None
    assert pieces.read(message[: draw.draw(st.integers(0, len(message) - 1))], UPLOAD_FIELD) is None


def test_a_piece_has_a_bound() -> None:
    with mmap.mmap(-1, 1 << 28) as region, memoryview(region) as view, pytest.raises(ValueError, match="256 MiB"):
        pieces.write(view, UPLOAD_FIELD)
