"""A channel of frames between a node and the process of an app, over one UNIX socket pair.

Rules:
1. A frame is `CMF1`, header length (u32), blob length (u64), both big-endian, then the header: one JSON object.
   If the blob length is not 0, exactly one descriptor of a sealed blob (`memory.py`) rides on the frame's first byte.
2. Blobs never pass through the socket. The sender keeps its own descriptor; the receiver owns the one it gets.
3. The peer is hostile (an app's code shares its process): sizes are bounded before memory is taken, descriptors beyond
   the one announced are closed and refused, a blob counts only after `memory.adopt`.
4. After a `MALFORMED` or `TOO_LARGE` from `recv` the channel is useless: close it and end the peer.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory

_PREFIX = struct.Struct("!4sIQ")
_MAGIC = b"CMF1"
HEADER_BYTES_MAX = 1 << 20
BLOB_BYTES_MAX = 1 << 36
# Room for more descriptors than allowed, so that too many are seen and closed, not silently cut off by the kernel.
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_READ_BYTES = 1 << 16


@dataclass(slots=True)
class Frame:
    """One frame: its header, and the blob's descriptor (owned by the holder) with its size, or None and 0."""

    header: dict[str, Any]
    fd: int | None = None
    size_bytes: int = 0

    def close(self) -> None:
        """Close the blob's descriptor, if there is one."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def take(self) -> int:
        """Hand the blob's descriptor to the caller, who closes it. Raises `MALFORMED` if the frame carries none."""
        if self.fd is None:
            raise ComityError(ErrorCode.MALFORMED, "the frame carries no blob")
        fd, self.fd = self.fd, None
        return fd


def pair() -> tuple[socket.socket, socket.socket]:
    """Return (ours, theirs): a connected pair; neither end is inherited unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class _Assembler:
    """Puts one frame together from pieces of any size; `wanted` bytes are to be read next, never beyond the frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._header_bytes = -1
        self._blob_bytes = 0

    @property
    def wanted(self) -> int:
        target = _PREFIX.size if self._header_bytes < 0 else self._header_bytes
        return min(target - len(self._buffer), _READ_BYTES)

    def feed(self, data: bytes, fds: list[int], header_bytes_max: int, blob_bytes_max: int) -> Frame | None:
        """Take the next bytes and descriptors; returns a complete frame. Closes all descriptors on refusal."""
        self._fds += fds
        try:
            return self._feed(data, header_bytes_max, blob_bytes_max)
        except BaseException:  # whatever happened, no descriptor stays open
            self.close()
            raise

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _feed(self, data: bytes, header_bytes_max: int, blob_bytes_max: int) -> Frame | None:
        if len(self._fds) > 1:
            raise ComityError(ErrorCode.MALFORMED, "more than one descriptor in a frame")
        self._buffer += data
        if self._header_bytes < 0:
            if len(self._buffer) < _PREFIX.size:
                return None
            self._prefix(header_bytes_max, blob_bytes_max)
        if len(self._buffer) < self._header_bytes:
            return None
        return self._complete(blob_bytes_max)

    def _prefix(self, header_bytes_max: int, blob_bytes_max: int) -> None:
        magic, header_bytes, blob_bytes = _PREFIX.unpack(self._buffer)
        if magic != _MAGIC or header_bytes < 2:
            raise ComityError(ErrorCode.MALFORMED, "not a frame")
        if header_bytes > header_bytes_max:
            raise ComityError(
                ErrorCode.TOO_LARGE, "frame header", size_bytes=header_bytes, limit_bytes=header_bytes_max
            )
        if blob_bytes > blob_bytes_max:
            raise ComityError(ErrorCode.TOO_LARGE, "blob", size_bytes=blob_bytes, limit_bytes=blob_bytes_max)
        self._header_bytes, self._blob_bytes = header_bytes, blob_bytes
        self._buffer.clear()

    def _complete(self, blob_bytes_max: int) -> Frame:
        header = _parse_header(bytes(self._buffer))
        if len(self._fds) != (1 if self._blob_bytes else 0):
            raise ComityError(ErrorCode.MALFORMED, "the frame's blob is missing or was not announced")
        frame = Frame(header)
        if self._blob_bytes:
            fd = self._fds.pop()
            frame = Frame(header, memory.adopt(fd, self._blob_bytes, blob_bytes_max), self._blob_bytes)
        self._buffer.clear()
        self._header_bytes, self._blob_bytes = -1, 0
        return frame


class Channel:
    """The blocking end, for the process of an app. One thread at a time may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._assembler = _Assembler()

    def send(self, header: dict[str, Any], blob_fd: int | None = None, blob_size: int = 0) -> None:
        """Send one frame; the caller keeps `blob_fd` and may close it at once. Raises `OSError` if the peer is gone."""
        self._sock.settimeout(None)  # a node that does not read is a node that is dead: then the socket breaks
        data, ancillary = _frame_bytes(header, blob_fd, blob_size)
        sent = self._sock.sendmsg([data], ancillary)
        if sent < len(data):
            self._sock.sendall(memoryview(data)[sent:])

    def recv(
        self,
        timeout_s: float | None,
        header_bytes_max: int = HEADER_BYTES_MAX,
        blob_bytes_max: int = BLOB_BYTES_MAX,
    ) -> Frame:
        """Return the next frame; None waits until the peer closes.

        Raises:
            ComityError: `TIMEOUT`; `WORKER_DIED` at the end of the stream; `MALFORMED` and `TOO_LARGE` for a bad frame.
        """
        while True:  # bounded: each turn takes at least one byte of a bounded frame, times out, or ends
            self._sock.settimeout(timeout_s)
            try:
                data, fds = _recv_some(self._sock, self._assembler.wanted)
            except (TimeoutError, BlockingIOError) as error:  # the latter with a timeout of 0
                raise ComityError(ErrorCode.TIMEOUT, "no frame in time") from error
            frame = self._assembler.feed(data, fds, header_bytes_max, blob_bytes_max)
            if frame is not None:
                return frame

    def close(self) -> None:
        """Close the socket and every descriptor of an unfinished frame."""
        self._assembler.close()
        self._sock.close()


class AsyncChannel:
    """The node's end, on the running event loop. One task at a time may send, one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._assembler = _Assembler()
        self._waiting: set[asyncio.Future[None]] = set()

    async def send(self, header: dict[str, Any], blob_fd: int | None = None, blob_size: int = 0) -> None:
        """Send one frame; the caller keeps `blob_fd` and bounds the time. Raises `WORKER_DIED` if the peer is gone."""
        data, ancillary = _frame_bytes(header, blob_fd, blob_size)
        view = memoryview(data)
        while view.nbytes:  # bounded by the frame's length
            try:
                sent = self._sock.sendmsg([view], ancillary)
            except (BlockingIOError, InterruptedError):
                await self._ready(write=True)
                continue
            except OSError as error:
                raise ComityError(ErrorCode.WORKER_DIED, "the channel is closed") from error
            view, ancillary = view[sent:], []

    async def recv(
        self,
        timeout_s: float | None,
        header_bytes_max: int = HEADER_BYTES_MAX,
        blob_bytes_max: int = BLOB_BYTES_MAX,
    ) -> Frame:
        """Return the next frame; errors as `Channel.recv`. A timeout in the middle of a frame loses nothing."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:  # bounded as in `Channel.recv`
                    try:
                        data, fds = _recv_some(self._sock, self._assembler.wanted)
                    except (BlockingIOError, InterruptedError):
                        await self._ready(write=False)
                        continue
                    frame = self._assembler.feed(data, fds, header_bytes_max, blob_bytes_max)
                    if frame is not None:
                        return frame
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "no frame in time") from error

    def close(self) -> None:
        """Close the socket; a task that waits in `send` or `recv` gets `WORKER_DIED`."""
        fd = self._sock.fileno()
        if fd >= 0 and self._waiting:
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
        self._assembler.close()
        self._sock.close()
        for ready in self._waiting:
            if not ready.done():
                ready.set_exception(ComityError(ErrorCode.WORKER_DIED, "the channel is closed"))

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        fd = self._sock.fileno()
        if fd < 0:
            raise ComityError(ErrorCode.WORKER_DIED, "the channel is closed")
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        add(fd, _resolve, ready)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if self._sock.fileno() >= 0:
                remove(fd)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _frame_bytes(
    header: dict[str, Any], blob_fd: int | None, blob_size: int
) -> tuple[bytes, list[tuple[int, int, array.array[int]]]]:
    if (blob_fd is None) != (blob_size == 0):
        raise ValueError("a blob has a descriptor and a size")
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > HEADER_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "frame header", size_bytes=len(text), limit_bytes=HEADER_BYTES_MAX)
    ancillary = []
    if blob_fd is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [blob_fd]))]
    return _PREFIX.pack(_MAGIC, len(text), blob_size) + text, ancillary


def _recv_some(sock: socket.socket, wanted_bytes: int) -> tuple[bytes, list[int]]:
    """Read once; descriptors are collected even from a message that is then refused."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(wanted_bytes, _ANCILLARY_BYTES, _CLOEXEC)
    except (BlockingIOError, InterruptedError, TimeoutError):
        raise
    except OSError as error:
        raise ComityError(ErrorCode.WORKER_DIED, "the channel is closed") from error
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_CTRUNC or not data:
        for fd in fds:
            os.close(fd)
        if not data:
            raise ComityError(ErrorCode.WORKER_DIED, "the other side closed the channel")
        raise ComityError(ErrorCode.MALFORMED, "more descriptors than a frame may carry")
    return data, list(fds)


def _parse_header(data: bytes) -> dict[str, Any]:
    canonical.check_nesting(data)
    try:
        header = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ComityError(ErrorCode.MALFORMED, "the frame's header is not JSON") from error
    if not isinstance(header, dict):
        raise ComityError(ErrorCode.MALFORMED, "the frame's header is not an object")
    return header


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
