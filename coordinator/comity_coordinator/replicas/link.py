"""The stream from this replica to another one: what its nodes are to get goes out, who they are comes in.

Rules
1. One link for each living replica, dialled again with growing pauses while it lives; a link that is down has nobody
   connected behind it, and takes nothing.
2. What goes out waits in a bounded queue in which no sender gets more than its share; without room it is refused, as on
   a node's own stream. Every write and every silence has a bound.
3. The other side proves itself by the authority's certificate and by the log's key (its Welcome), this side by its
   certificate `spiffe://<consortium>/coordinator/<replica>`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import structlog

from comity.v1 import replica_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity.wire.ids import org_id
from comity_coordinator.replicas.store import Row
from comity_coordinator.transport.session import HubLimits, SendQueue
from comity_crypto.ed25519 import verify_ed25519
from comity_crypto.tokens import welcome_message

PROTOCOL = 1
MESSAGE_BYTES_MAX = 4 << 20
ORGS_MAX = 65_536
BEAT_S = 1.0
SILENCE_S = 4.0
WRITE_TIMEOUT_S = 4.0
OPEN_TIMEOUT_S = 5.0
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 2.0
# A certificate is made for each connection and holds for a week; the connection is renewed long before.
RENEW_AFTER_S = 86_400.0
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]

log = structlog.get_logger("comity.replicas")


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Who this replica is to others. `issue()` returns (key PEM, certificate PEM), made anew."""

    name: str
    boot: str
    spiffe: str
    authority_pem: bytes
    log_key: bytes
    issue: Callable[[], tuple[bytes, bytes]]

    def dial(self, address: str) -> grpc.aio.Channel:
        """Return a connection of its own to a replica at `address` (host:port)."""
        key_pem, certificate_pem = self.issue()
        credentials = grpc.ssl_channel_credentials(self.authority_pem, key_pem, certificate_pem)
        return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a link calls, in the event loop: streams that opened and ended there, frames that were not taken, and when
    the other side has reached the database."""

    changed: Callable[[str, frozenset[str], frozenset[str]], None]
    not_taken: Callable[[str, str, list[str]], None]
    reached: Callable[[str], None]


@dataclass(slots=True)
class _State:
    orgs: set[str] = field(default_factory=set)
    up: bool = False


class PeerLink:
    """One link. `run` it as a task; `close` ends its connections."""

    def __init__(self, row: Row, me: Identity, heard: Heard) -> None:
        self.row = row
        self._me = me
        self._heard = heard
        self._state = _State()
        self._queue = SendQueue(HubLimits())
        self._payloads: grpc.aio.Channel | None = None

    @property
    def up(self) -> bool:
        """Whether the other side answers."""
        return self._state.up

    @property
    def orgs(self) -> frozenset[str]:
        """Organisations whose stream is open there."""
        return frozenset(self._state.orgs)

    def has(self, org: str) -> bool:
        """Whether the stream of `org` is open there."""
        return org in self._state.orgs

    def offer(self, request: replica_pb2.CarryRequest, sender: str = "") -> bool:
        """Send a frame if there is room for it, for a member's frame within its sender's share; say whether."""
        return self._state.up and self._queue.offer(request.SerializeToString(), sender)

    def payloads(self) -> grpc.aio.Channel:
        """Return the connection for sealed payloads: bulk never stands before a message."""
        if self._payloads is None:
            self._payloads = self._me.dial(self.row.address)
        return self._payloads

    async def run(self) -> None:
        """Keep the stream open until cancelled."""
        pause_s = BACKOFF_FIRST_S
        try:
            while True:
                was_up = await self._once()
                pause_s = BACKOFF_FIRST_S if was_up else min(BACKOFF_MAX_S, 2 * pause_s)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        finally:
            channel, self._payloads = self._payloads, None
            if channel is not None:
                await channel.close()

    async def _once(self) -> bool:
        """Connect and serve until it ends; returns whether it was up."""
        was_up = False
        channel = self._me.dial(self.row.address)
        try:
            call = channel.stream_stream(
                "/comity.v1.ReplicaService/Carry",
                request_serializer=_bytes,
                response_deserializer=replica_pb2.CarryResponse.FromString,
            )()
            await self._greet(call)
            was_up = self._state.up = True
            log.info("replica.linked", replica=self.row.name)
            await self._serve(call)
        except ComityError as error:
            log.info("replica.unlinked", replica=self.row.name, was_up=was_up, error=str(error))
        finally:
            self._down()
            await channel.close()
        return was_up

    async def _greet(self, call: Any) -> None:
        hello = replica_pb2.ReplicaHello(protocol=PROTOCOL, replica=self._me.name, boot=self._me.boot)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await call.write(replica_pb2.CarryRequest(hello=hello).SerializeToString())
                response = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError, TimeoutError) as error:
            raise _ended(error) from error
        if response is grpc.aio.EOF or response.WhichOneof("frame") != "welcome":
            raise ComityError(ErrorCode.MALFORMED, "a replica's first frame is its Welcome")
        welcome = response.welcome
        if welcome.protocol != PROTOCOL or len(welcome.certificate_digest) != 32:
            raise ComityError(ErrorCode.UNSUPPORTED, "another protocol version", protocol=welcome.protocol)
        signed = welcome_message(welcome.certificate_digest, self._me.spiffe)
        try:
            verify_ed25519(self._me.log_key, welcome.signature, signed)
        except ComityError as error:
            raise ComityError(ErrorCode.SIGNATURE_INVALID, "the replica's Welcome") from error

    async def _serve(self, call: Any) -> None:
        tasks = [asyncio.create_task(work) for work in (self._write(call), self._read(call))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=RENEW_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError, TimeoutError) as error:
            raise _ended(error) from error
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        beat = replica_pb2.CarryRequest(beat=replica_pb2.ReplicaBeat()).SerializeToString()
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    frame = await self._queue.get()
            except TimeoutError:
                frame = beat
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await call.write(frame)

    async def _read(self, call: Any) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                response = await call.read()
            if response is grpc.aio.EOF:
                raise ComityError(ErrorCode.UNAVAILABLE, "the replica closed the stream")
            what = response.WhichOneof("frame")
            if what == "streams":
                self._moved(response.streams)
            elif what == "not_taken":
                told = response.not_taken
                self._heard.not_taken(told.sender, told.id, [org_id(each) for each in told.orgs])
            elif what == "beat" and response.beat.reached_database:
                self._heard.reached(self.row.name)

    def _moved(self, streams: replica_pb2.Streams) -> None:
        opened = frozenset(org_id(each) for each in streams.opened)
        ended = frozenset(org_id(each) for each in streams.ended) - opened
        if len(self._state.orgs) + len(opened) > ORGS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "a replica names too many organisations")
        self._state.orgs |= opened
        self._state.orgs -= ended
        self._heard.changed(self.row.name, opened, ended)

    def _down(self) -> None:
        gone = frozenset(self._state.orgs)
        self._state = _State()
        self._queue = SendQueue(HubLimits())
        if gone:
            self._heard.changed(self.row.name, frozenset(), gone)


def _bytes(frame: bytes) -> bytes:
    return frame


def _ended(error: BaseException) -> ComityError:
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc(error)
    if isinstance(error, TimeoutError):
        return ComityError(ErrorCode.TIMEOUT, "the replica fell silent")
    return ComityError(ErrorCode.UNAVAILABLE, "the stream to the replica has ended")
