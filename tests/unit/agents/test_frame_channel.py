"""The channel of frames: round trips, and every way in which a peer can break the rules."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from pathlib import Path

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import AsyncChannel, Channel, pair


def frame(header: bytes, blob_bytes: int = 0, magic: bytes = b"CMF1", header_bytes: int | None = None) -> bytes:
    return struct.pack("!4sIQ", magic, len(header) if header_bytes is None else header_bytes, blob_bytes) + header


def with_fds(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


async def test_frames_and_blobs_arrive_in_order_between_the_blocking_and_the_asynchronous_end():
    ours, theirs = pair()
    node, app = AsyncChannel(ours), Channel(theirs)
    fd, size = memory.write_parts([b"blob"])
    app.send({"n": 1})
    app.send({"n": 2, "text": "é" * 4_000}, fd, size)
    os.close(fd)
    assert (await node.recv(1)).header == {"n": 1}
    second = await node.recv(1)
    assert second.header["n"] == 2
    assert second.size_bytes == 4
    await node.send({"back": True}, second.fd, second.size_bytes)
    second.close()
    answer = app.recv(1)
    with memory.mapped(answer.take(), answer.size_bytes) as view:
        assert bytes(view) == b"blob"
    node.close()
    with pytest.raises(ComityError) as caught:
        app.recv(1)
    assert caught.value.code is ErrorCode.WORKER_DIED
    app.close()


async def test_a_frame_larger_than_the_socket_buffer_is_sent_while_the_other_side_reads():
    ours, theirs = pair()
    node, other = AsyncChannel(ours), AsyncChannel(theirs)
    header = {"text": "x" * 900_000}
    sending = asyncio.create_task(node.send(header))
    assert (await other.recv(5)).header == header
    await sending
    node.close()
    other.close()


async def test_a_timeout_in_the_middle_of_a_frame_loses_nothing():
    ours, theirs = pair()
    node = AsyncChannel(ours)
    data = frame(b'{"n":1}')
    theirs.send(data[:9])
    with pytest.raises(ComityError) as caught:
        await node.recv(0.02)
    assert caught.value.code is ErrorCode.TIMEOUT
    theirs.send(data[9:])
    assert (await node.recv(1)).header == {"n": 1}
    node.close()
    theirs.close()


async def test_closing_wakes_the_task_that_waits():
    ours, theirs = pair()
    node = AsyncChannel(ours)
    waiting = asyncio.create_task(node.recv(None))
    await asyncio.sleep(0.01)
    node.close()
    with pytest.raises(ComityError) as caught:
        await waiting
    assert caught.value.code is ErrorCode.WORKER_DIED
    theirs.close()


BAD = {
    "other magic": (frame(b"{}", magic=b"HTTP"), ErrorCode.MALFORMED),
    "empty header": (frame(b""), ErrorCode.MALFORMED),
    "header too long": (frame(b"{}", header_bytes=1 << 30), ErrorCode.TOO_LARGE),
    "blob too large": (frame(b"{}", blob_bytes=1 << 20), ErrorCode.TOO_LARGE),
    "blob announced, none sent": (frame(b"{}", blob_bytes=5), ErrorCode.MALFORMED),
    "not JSON": (frame(b"\xff\xfe"), ErrorCode.MALFORMED),
    "not an object": (frame(b"[1]"), ErrorCode.MALFORMED),
    "not a number": (frame(b'{"a":NaN}'), ErrorCode.MALFORMED),
    "nested without end": (frame(b"[" * 100_000), ErrorCode.MALFORMED),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_frame_is_refused(name):
    data, code = BAD[name]
    ours, theirs = pair()
    node = AsyncChannel(ours)
    theirs.sendall(data)
    with pytest.raises(ComityError) as caught:
        await node.recv(1, header_bytes_max=200_000, blob_bytes_max=1000)
    assert caught.value.code is code
    node.close()
    theirs.close()


@pytest.mark.parametrize("count", [1, 2, 3, 20])
async def test_descriptors_that_were_not_announced_are_closed_and_refused(count):
    before = open_descriptors()
    ours, theirs = pair()
    node = AsyncChannel(ours)
    with_fds(theirs, frame(b"{}"), *([0] * count))
    with pytest.raises(ComityError) as caught:
        await node.recv(1)
    assert caught.value.code is ErrorCode.MALFORMED
    node.close()
    theirs.close()
    assert open_descriptors() == before


async def test_two_descriptors_for_one_blob_are_refused_and_closed():
    fd, size = memory.write_parts([b"blob"])
    before = open_descriptors()
    ours, theirs = pair()
    node = AsyncChannel(ours)
    with_fds(theirs, frame(b"{}", size), fd, fd)
    with pytest.raises(ComityError) as caught:
        await node.recv(1)
    assert caught.value.code is ErrorCode.MALFORMED
    node.close()
    theirs.close()
    assert open_descriptors() == before
    os.close(fd)


def test_a_header_beyond_the_bound_is_not_sent():
    ours, theirs = pair()
    with pytest.raises(ComityError) as caught:
        Channel(ours).send({"text": "x" * (1 << 20)})
    assert caught.value.code is ErrorCode.TOO_LARGE
    ours.close()
    theirs.close()


def test_the_prefix_is_the_documented_one():
    ours, theirs = pair()
    Channel(ours).send({"a": 1})
    data = theirs.recv(100)
    assert data[:4] == b"CMF1"
    assert struct.unpack("!IQ", data[4:16]) == (7, 0)
    assert json.loads(data[16:]) == {"a": 1}
    ours.close()
    theirs.close()
