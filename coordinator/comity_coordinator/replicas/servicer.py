"""ReplicaService: what other replicas hand to this one, and what they read from its spool.

Rules
1. A caller is a replica by its certificate, and says the same name in its Hello.
2. Frames are offered to streams without waiting; who had no room is named to the replica that sent the frame. What
   waits for the caller is bounded: a caller that does not read loses its stream.
3. A hint is no proof of anything: it only has the database looked at sooner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from comity.v1 import exchange_pb2, replica_pb2, replica_pb2_grpc
from comity.wire import pieces
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR, org_id, sha256_hex
from comity_coordinator.replicas.link import BEAT_S, OPEN_TIMEOUT_S, PROTOCOL, SILENCE_S, WRITE_TIMEOUT_S
from comity_coordinator.replicas.service import Replicas
from comity_coordinator.replicas.spool import SharedSpool
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.identity import current_peer
from comity_coordinator.transport.model import from_wire
from comity_coordinator.transport.session import HubLimits, SendQueue
from comity_crypto.tokens import welcome_message

ORGS_AT_ONCE_MAX = 4_096


class ReplicaServicer(replica_pb2_grpc.ReplicaServiceServicer):
    """Serves the other replicas."""

    def __init__(
        self,
        hub: Hub,
        replicas: Replicas,
        spool: SharedSpool,
        certificate_digest: bytes,
        sign: Callable[[bytes], bytes],
    ) -> None:
        """`certificate_digest` is SHA-256 of this server's certificate (DER); `sign` signs with the log's key."""
        self._hub = hub
        self._replicas = replicas
        self._spool = spool
        self._certificate_digest = certificate_digest
        self._sign = sign

    # A coroutine that reads and writes, as `ExchangeServicer.Connect`.
    async def Carry(  # type: ignore[override]  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[replica_pb2.CarryRequest], context: Any
    ) -> None:
        """Serve one stream of another replica."""
        peer = current_peer()
        hello = await _hello(context)
        if hello.replica != peer.name:
            raise ComityError(ErrorCode.FORBIDDEN, "the Hello names another replica than the certificate")
        signature = self._sign(welcome_message(self._certificate_digest, peer.spiffe))
        welcome = replica_pb2.ReplicaWelcome(
            protocol=PROTOCOL, certificate_digest=self._certificate_digest, signature=signature
        )
        await context.write(replica_pb2.CarryResponse(welcome=welcome))
        queue = SendQueue(HubLimits())
        full = self._replicas.listen(queue)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(work) for work in (self._read(context, queue), _write(context, queue))
        ]
        tasks.append(asyncio.create_task(full.wait()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._replicas.unlisten(queue)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, context: Any, queue: SendQueue) -> None:
        peer = current_peer()
        while True:
            async with asyncio.timeout(SILENCE_S):
                request = await context.read()
            if request is grpc.aio.EOF:
                return
            peer.check_dates()
            what = request.WhichOneof("frame")
            if what == "handed":
                await self._handed(request.handed, queue)
            elif what == "hint":
                if len(request.hint.subjects) > ORGS_AT_ONCE_MAX:
                    raise ComityError(ErrorCode.MALFORMED, "too many subjects")
                self._replicas.hinted(request.hint.kind, tuple(request.hint.subjects), request.hint.body)

    async def _handed(self, handed: replica_pb2.Handed, queue: SendQueue) -> None:
        if len(handed.orgs) > ORGS_AT_ONCE_MAX:
            raise ComityError(ErrorCode.MALFORMED, "too many receivers")
        envelope = exchange_pb2.ConnectResponse.FromString(handed.frame).envelope
        if handed.observe:
            self._hub.show(from_wire(envelope, org_id(handed.sender)))
        full = await self._hub.deliver(handed.frame, handed.orgs, handed.sender, envelope.kind)
        if full and handed.sender:
            told = replica_pb2.NotTaken(id=envelope.id, sender=handed.sender, orgs=full)
            queue.control(replica_pb2.CarryResponse(not_taken=told).SerializeToString())

    async def FetchPayload(  # type: ignore[override]  # noqa: N802 - gRPC's name
        self, request: replica_pb2.FetchPayloadRequest, context: Any
    ) -> None:
        """Send a payload that is in this replica's own spool, or on its way into it."""
        reader = request.reader if request.reader == COORDINATOR else str(org_id(request.reader))
        entry = await self._spool.here(reader, sha256_hex(request.digest), request.owner)
        header = replica_pb2.FetchPayloadResponse(owner=entry.owner, size_bytes=entry.size_bytes)
        await context.write(header)
        async with aclosing(self._spool.read_here(reader, request.digest, request.offset_bytes, entry.owner)) as chunks:
            async for chunk in chunks:
                await context.write(pieces.write(chunk, pieces.DOWNLOAD_FIELD))


async def _hello(context: Any) -> replica_pb2.ReplicaHello:
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            first = await context.read()
    except TimeoutError as error:
        raise ComityError(ErrorCode.TIMEOUT, "no Hello came") from error
    if first is grpc.aio.EOF or not first.HasField("hello"):
        raise ComityError(ErrorCode.MALFORMED, "the first frame is a Hello")
    if first.hello.protocol != PROTOCOL:
        raise ComityError(ErrorCode.UNSUPPORTED, "another protocol version", protocol=PROTOCOL)
    hello: replica_pb2.ReplicaHello = first.hello
    return hello


async def _write(context: Any, queue: SendQueue) -> None:
    beat = replica_pb2.CarryResponse(beat=replica_pb2.ReplicaBeat()).SerializeToString()
    while True:
        try:
            async with asyncio.timeout(BEAT_S):
                frame = await queue.get()
        except TimeoutError:
            frame = beat
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await context.write(frame)
