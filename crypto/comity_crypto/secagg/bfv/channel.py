"""Frames between the pool and one worker process, on a socket that nobody else has.

Arrays and blobs are file descriptors beside the frames, so that bulk data never crosses the socket. Frame: u32 length
(big-endian), JSON.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

FRAME_BYTES_MAX = 1 << 20
FDS_MAX = CONTRIBUTORS_MAX + 2
SLOT_BYTES = 8
_LENGTH = struct.Struct(">I")

Json = dict[str, Any]


def send_frame(channel: socket.socket, frame: Json, fds: list[int] | None = None) -> None:
    """Send one frame with its file descriptors, which travel with the first byte."""
    data = json.dumps(frame).encode()
    if len(data) > FRAME_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a frame is too long", size_bytes=len(data))
    data = _LENGTH.pack(len(data)) + data
    sent = socket.send_fds(channel, [data], fds or [])
    channel.sendall(data[sent:])


def receive_frame(channel: socket.socket) -> tuple[Json, list[int]] | None:
    """Return the next frame and its descriptors, or nothing at the end of the socket. Raises `TOO_LARGE`."""
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, FDS_MAX)
    if not head:
        return None
    head += _exactly(channel, _LENGTH.size - len(head))
    (size_bytes,) = _LENGTH.unpack(head)
    if size_bytes > FRAME_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a frame is too long", size_bytes=size_bytes)
    frame: Json = json.loads(_exactly(channel, size_bytes))
    return frame, fds


def _exactly(channel: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        more = channel.recv(size_bytes - len(data))
        if not more:
            raise ComityError(ErrorCode.WORKER_DIED, "the worker's socket ended inside a frame")
        data += more
    return bytes(data)
