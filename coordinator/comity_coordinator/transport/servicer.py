"""ExchangeService: one stream of one node, from Hello to its end.

Rules
1. The first frame is Hello, in time and of this protocol; the answer is Welcome, which binds the stream to the log's
   key: a coordinator that holds the log and not merely a certificate of the authority.
2. Whatever ends one half (reader, writer, committer, pump, lease, a newer stream) ends the stream, with its reason.
3. A node that says nothing for the lease is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from comity.v1 import exchange_pb2, exchange_pb2_grpc
from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.identity import Peer, current_peer
from comity_coordinator.transport.model import PROTOCOL, from_wire
from comity_coordinator.transport.session import Session
from comity_crypto.tokens import welcome_message

HELLO_TIMEOUT_S = 10.0


class ExchangeServicer(exchange_pb2_grpc.ExchangeServiceServicer):
    """Carries frames between gRPC and the hub.

    Args:
        hub: where messages go.
        certificate_digest: SHA-256 of this server's certificate (DER), 32 bytes.
        sign: signs with the log's key.
    """

    def __init__(self, hub: Hub, certificate_digest: bytes, sign: Callable[[bytes], bytes]) -> None:
        self._hub = hub
        self._certificate_digest = certificate_digest
        self._sign = sign

    # A coroutine that reads and writes: frames go out as bytes that were made once for all receivers.
    async def Connect(  # type: ignore[override]  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[exchange_pb2.ConnectRequest], context: Any
    ) -> None:
        """Serve one stream."""
        peer = current_peer()
        hello = await _hello(context)
        session = await self._hub.open(peer, hello.received_seq, reads_presence=hello.reads_presence)
        try:
            await context.write(self._welcome(peer, session))
            await self._serve(session, context)
        finally:
            self._hub.close(session)

    async def _serve(self, session: Session, context: Any) -> None:
        tasks = [
            asyncio.create_task(part)
            for part in (
                self._read(session, context),
                _write(session, context),
                self._hub.take_durable(session),
                self._hub.pump(session),
                self._heartbeat(session),
            )
        ]
        try:
            waiting: list[asyncio.Future[Any]] = [*tasks, session.ended]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if session.ended in done:
            raise session.ended.result()
        for ended in done:
            ended.result()

    async def _read(self, session: Session, context: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._hub.limits.lease_s) as lease:
                while (request := await context.read()) is not grpc.aio.EOF:
                    lease.reschedule(loop.time() + self._hub.limits.lease_s)
                    await self._take(session, request)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the node was silent for longer than its lease") from error

    async def _take(self, session: Session, request: exchange_pb2.ConnectRequest) -> None:
        match request.WhichOneof("frame"):
            case "envelope":
                try:
                    message = from_wire(request.envelope, session.org)
                except ComityError as error:
                    if request.envelope.seq:
                        raise  # its number stays open: nothing after it could be taken
                    await self._hub.check(session)
                    session.refuse(request.envelope.id[:128], error)
                    return
                await self._hub.receive(session, message)
            case "ack":
                await self._hub.check(session)
                session.acknowledged(request.ack.up_to_seq)
            case "heartbeat":
                await self._hub.check(session)
            case _:
                raise ComityError(ErrorCode.MALFORMED, "this frame has no place here")

    async def _heartbeat(self, session: Session) -> None:
        while True:
            await asyncio.sleep(self._hub.limits.heartbeat_s)
            await self._hub.check(session)
            session.quiet()
            beat = exchange_pb2.Heartbeat(at=instants.now_text())
            session.send_control(exchange_pb2.ConnectResponse(heartbeat=beat))

    def _welcome(self, peer: Peer, session: Session) -> bytes:
        welcome = exchange_pb2.Welcome(
            protocol=PROTOCOL,
            received_seq=session.received_seq,
            certificate_digest=self._certificate_digest,
            signature=self._sign(welcome_message(self._certificate_digest, peer.spiffe)),
            connected=sorted(self._hub.connected() - {peer.name}),
        )
        return exchange_pb2.ConnectResponse(welcome=welcome).SerializeToString()


async def _hello(context: Any) -> exchange_pb2.Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await context.read()
    except TimeoutError as error:
        raise ComityError(ErrorCode.TIMEOUT, "no Hello came") from error
    if first is grpc.aio.EOF or not first.HasField("hello"):
        raise ComityError(ErrorCode.MALFORMED, "the first frame is a Hello")
    if first.hello.protocol != PROTOCOL:
        raise ComityError(ErrorCode.UNSUPPORTED, "another protocol version", protocol=PROTOCOL)
    hello: exchange_pb2.Hello = first.hello
    return hello


async def _write(session: Session, context: Any) -> None:
    while True:
        await context.write(await session.queue.get())
