"""One connection of the stream: opening words, writes in turn, frames in.

Rules:
1. The first frame in is a Welcome whose signature by the log key names this node; without it nothing is sent.
2. One write at a time, awaited, so that HTTP/2's flow control reaches whoever produces; the waiting line is bounded.
3. A frame that breaks a rule ends the connection with `MALFORMED`; a new one starts from the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio

from comity.v1 import exchange_pb2, exchange_pb2_grpc
from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity_crypto.ed25519 import verify_ed25519
from comity_crypto.tokens import welcome_message

PROTOCOL = 1
SOFTWARE = "comity-node/0.1"
WELCOME_TIMEOUT_S = 15.0
HEARTBEAT_S = 15.0
SILENCE_S = 45.0
"""The coordinator beats every 10 s; a stream that is silent for longer than this is dead."""
WRITES_WAITING_MAX = 512
CONNECTED_MAX = 4_096

_Call = grpc.aio.StreamStreamCall[exchange_pb2.ConnectRequest, exchange_pb2.ConnectResponse]


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the coordinator said first: how far it has come, and who is connected."""

    received_seq: int
    connected: frozenset[str]


class Session:
    """An open stream. Made by `open_session`; ended by `close`."""

    def __init__(self, call: _Call, greeting: Greeting) -> None:
        self._call = call
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._written_at = time.monotonic()
        self.greeting = greeting

    async def write(self, frame: exchange_pb2.ConnectRequest) -> None:
        """Send one frame, in turn. Raises `BUSY` if too many wait, `UNAVAILABLE` if the stream is gone."""
        if self._waiting >= WRITES_WAITING_MAX:
            raise ComityError(ErrorCode.BUSY, "too many messages wait for the stream")
        self._waiting += 1
        try:
            async with self._lock:
                await self._call.write(frame)
                self._written_at = time.monotonic()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise ComityError(ErrorCode.UNAVAILABLE, "the stream has ended") from error
        except asyncio.CancelledError as error:
            raise _if_closed_by_us(error) from error
        finally:
            self._waiting -= 1

    async def frames(self) -> AsyncIterator[exchange_pb2.ConnectResponse]:
        """Yield what comes in until the stream ends. Raises what the coordinator ended it with."""
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    frame = await self._call.read()
                if frame is grpc.aio.EOF:
                    raise ComityError(ErrorCode.UNAVAILABLE, "the coordinator closed the stream")
                assert isinstance(frame, exchange_pb2.ConnectResponse)
                yield frame
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "the coordinator fell silent") from error
        except asyncio.CancelledError as error:
            raise _if_closed_by_us(error) from error

    async def keep_warm(self) -> None:
        """Send a heartbeat whenever nothing else was written for `HEARTBEAT_S`; runs until the stream ends."""
        while True:
            quiet_s = time.monotonic() - self._written_at
            if quiet_s >= HEARTBEAT_S:
                at = instants.now_text()
                await self.write(exchange_pb2.ConnectRequest(heartbeat=exchange_pb2.Heartbeat(at=at)))
                quiet_s = 0.0
            await asyncio.sleep(HEARTBEAT_S - quiet_s)

    def close(self) -> None:
        """End the stream; harmless if it has ended."""
        self._call.cancel()


async def open_session(
    channel: grpc.aio.Channel, *, log_key: bytes, spiffe_id: str, received_seq: int, isolation: str
) -> Session:
    """Say Hello, check the Welcome, and return the open stream.

    Args:
        channel: to the coordinator.
        log_key: Ed25519 key of its log, 32 bytes.
        spiffe_id: this node's own.
        received_seq: highest durable number that the journal has taken in.
        isolation: what this node offers.

    Raises:
        ComityError: `UNAVAILABLE`, `TIMEOUT`, `SIGNATURE_INVALID`, `UNSUPPORTED`, or the coordinator's refusal.
    """
    stub: exchange_pb2_grpc.ExchangeServiceAsyncStub = exchange_pb2_grpc.ExchangeServiceStub(channel)
    call: _Call = stub.Connect()
    hello = exchange_pb2.Hello(
        protocol=PROTOCOL, software=SOFTWARE, received_seq=received_seq, isolation=isolation, reads_presence=True
    )
    try:
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            await call.write(exchange_pb2.ConnectRequest(hello=hello))
            frame = await call.read()
        if frame is grpc.aio.EOF:
            raise ComityError(ErrorCode.UNAVAILABLE, "the coordinator closed the stream before its Welcome")
        assert isinstance(frame, exchange_pb2.ConnectResponse)
        return Session(call, _greeting(frame, log_key, spiffe_id))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    except TimeoutError as error:
        call.cancel()
        raise ComityError(ErrorCode.TIMEOUT, "the coordinator sent no Welcome") from error
    except asyncio.InvalidStateError as error:
        # The stream was over before Hello was written; what ended it is its status.
        raise await _status_of(call) from error
    except ComityError:
        call.cancel()
        raise


def _if_closed_by_us(error: asyncio.CancelledError) -> BaseException:
    """Return the error itself if the task is cancelled; gRPC raises the same when `close` ended only the call."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return error
    return ComityError(ErrorCode.UNAVAILABLE, "this node ended the stream")


async def _status_of(call: _Call) -> ComityError:
    code = await call.code()
    metadata = await call.initial_metadata(), await call.trailing_metadata()
    return from_rpc(grpc.aio.AioRpcError(code, *metadata, details=await call.details()))


def _greeting(frame: exchange_pb2.ConnectResponse, log_key: bytes, spiffe_id: str) -> Greeting:
    if frame.WhichOneof("frame") != "welcome":
        raise ComityError(ErrorCode.MALFORMED, "the coordinator's first frame is not a Welcome")
    welcome = frame.welcome
    if welcome.protocol != PROTOCOL:
        raise ComityError(ErrorCode.UNSUPPORTED, "protocol version", version=welcome.protocol)
    if len(welcome.certificate_digest) != 32 or len(welcome.connected) > CONNECTED_MAX:
        raise ComityError(ErrorCode.MALFORMED, "the Welcome's sizes")
    signed = welcome_message(welcome.certificate_digest, spiffe_id)
    try:
        verify_ed25519(log_key, welcome.signature, signed)
    except ComityError as error:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the coordinator's Welcome") from error
    return Greeting(welcome.received_seq, frozenset(welcome.connected))
