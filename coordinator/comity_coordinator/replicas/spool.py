"""The spool of a replica among others: what is not here is read at the replica that has it, while it is written there.

Rules
1. Nothing is shared but the wire: each replica has its own folder. What a reader here waits for is looked for here and
   at every other replica at once; the first that has a chunk is read to the end.
2. Who may read is judged by the replica that has the payload, by the same rule as for its own nodes.
3. Bounds are the spool's (`payloads.py`): readers that wait, and time in every wait. A replica that dies ends a read as
   any break does: the node resumes at what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from comity.v1 import replica_pb2
from comity.wire import pieces
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity.wire.ids import COORDINATOR, org_id
from comity_coordinator.transport.payloads import CHUNK_BYTES, Spool, SpoolLimits
from comity_coordinator.transport.spool_entry import Entry

STALL_S = 70.0

Chunk = bytes | memoryview
Channels = Callable[[], tuple[grpc.aio.Channel, ...]]


class SharedSpool(Spool):
    """The payloads here, and the way to those of other replicas. To be used in the event loop only."""

    def __init__(self, folder: Path, limits: SpoolLimits | None, channels: Channels) -> None:
        """`channels()` returns connections to the other living replicas."""
        super().__init__(folder, limits)
        self._channels = channels

    async def here(self, reader: str, digest: str, owner: str) -> Entry:
        """Wait for an entry of this replica. Raises `PAYLOAD_MISSING`, `BUSY`."""
        return await self._await_entry(reader, digest, owner)

    def read_here(self, reader: str, digest: str, offset_bytes: int, owner: str) -> AsyncGenerator[Chunk, None]:
        """Yield the chunks of an entry of this replica. Raises as `read`."""
        return super().read(reader, digest, offset_bytes, owner)

    async def read(self, org: str, digest: str, offset_bytes: int, owner: str = "") -> AsyncGenerator[Chunk, None]:
        """As `Spool.read`, wherever the payload is."""
        ways = [super().read(org, digest, offset_bytes, owner)]
        if self._readable(org, digest, owner) is None:
            asked = replica_pb2.FetchPayloadRequest(reader=org, digest=digest, offset_bytes=offset_bytes, owner=owner)
            ways += [_far(channel, asked) for channel in self._channels()]
        if len(ways) == 1:
            async for chunk in ways[0]:
                yield chunk
            return
        first, winner = await _fastest(ways)
        try:
            yield first
            async for chunk in winner:
                yield chunk
        finally:
            await winner.aclose()

    async def whole(self, reader: str, owner: str, digest: str) -> int:
        """As `Spool.whole`; a payload that is at another replica is brought here."""
        if self._readable(reader, digest, owner) is not None:
            return await super().whole(reader, owner, digest)
        waiting = asyncio.ensure_future(super().whole(reader, owner, digest))
        asked = replica_pb2.FetchPayloadRequest(reader=reader, digest=digest, owner=owner)
        bringing = [asyncio.ensure_future(self._bring(channel, asked)) for channel in self._channels()]
        try:
            return await waiting
        finally:
            waiting.cancel()
            for each in bringing:
                each.cancel()
            await asyncio.gather(*bringing, return_exceptions=True)

    async def _bring(self, channel: grpc.aio.Channel, asked: replica_pb2.FetchPayloadRequest) -> None:
        """Copy a payload from another replica, unless it comes here meanwhile."""
        call = _call(channel, asked)
        try:
            header = await _header(call)
            if org_id(header.owner) != asked.owner or asked.owner in self._entries.get(asked.digest, {}):
                return
            upload = self.begin(asked.owner, asked.digest, header.size_bytes, frozenset({COORDINATOR}), 0)
            while not upload.complete:
                async with asyncio.timeout(STALL_S):
                    chunk = await call.read()
                if chunk is grpc.aio.EOF:
                    return
                await upload.add(chunk)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        finally:
            call.cancel()


async def _fastest(ways: list[AsyncGenerator[Chunk, None]]) -> tuple[Chunk, AsyncGenerator[Chunk, None]]:
    """Return the first chunk that any of `ways` gives, and that way; end the others. Raises what the first one did."""
    tasks = {asyncio.ensure_future(anext(way)): way for way in ways}
    order = list(tasks)
    pending = set(order)
    winner: AsyncGenerator[Chunk, None] | None = None
    try:
        while pending:  # each way's waits are bounded
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if winner is None and task.exception() is None:
                    winner = tasks[task]
                    return task.result(), winner
        await order[0]
        raise ComityError(ErrorCode.PAYLOAD_MISSING)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*order, return_exceptions=True)
        for way in ways:
            if way is not winner:
                await way.aclose()


async def _far(channel: grpc.aio.Channel, asked: replica_pb2.FetchPayloadRequest) -> AsyncGenerator[Chunk, None]:
    """Yield the chunks of a payload of another replica. Raises as `Spool.read`, `UNAVAILABLE`."""
    call = _call(channel, asked)
    try:
        header = await _header(call)
        offset_bytes = asked.offset_bytes
        while offset_bytes < header.size_bytes:
            async with asyncio.timeout(STALL_S):
                chunk = await call.read()
            if not isinstance(chunk, bytes | memoryview):
                raise ComityError(ErrorCode.PAYLOAD_TRUNCATED, present_bytes=offset_bytes)
            if len(chunk) != min(CHUNK_BYTES, header.size_bytes - offset_bytes):
                raise ComityError(ErrorCode.MALFORMED, "a chunk of another size than announced")
            offset_bytes += len(chunk)
            yield chunk
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    except TimeoutError as error:
        raise ComityError(ErrorCode.TIMEOUT, "another replica stalled") from error
    finally:
        call.cancel()


def _call(channel: grpc.aio.Channel, asked: replica_pb2.FetchPayloadRequest) -> Any:
    return channel.unary_stream(
        "/comity.v1.ReplicaService/FetchPayload",
        request_serializer=replica_pb2.FetchPayloadRequest.SerializeToString,
        response_deserializer=_piece,
    )(asked)


async def _header(call: Any) -> replica_pb2.FetchPayloadResponse:
    async with asyncio.timeout(STALL_S):
        header = await call.read()
    if not isinstance(header, replica_pb2.FetchPayloadResponse):
        raise ComityError(ErrorCode.PAYLOAD_MISSING)
    return header


def _piece(message: bytes) -> memoryview | replica_pb2.FetchPayloadResponse | bytes:
    piece = pieces.read(message, pieces.DOWNLOAD_FIELD)
    if piece is not None:
        return piece
    found = replica_pb2.FetchPayloadResponse.FromString(message)
    return found.data if found.data else found
