"""Channels to the coordinator: mutual TLS 1.3 with the node's own certificate and the one pinned authority."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from comity.v1 import ledger_pb2_grpc, membership_pb2_grpc, payload_pb2_grpc
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity_crypto.keystore import KeyStore, TlsPaths
from comity_node.transport.addresses import Addresses

MESSAGE_BYTES_MAX = 4 << 20
UNARY_TIMEOUT_S = 20.0
CLOSE_GRACE_S = 60.0

Q = TypeVar("Q", contravariant=True)
R = TypeVar("R", covariant=True)

# Each channel has its own connection (local pool), so that bulk data never stands before a small message.
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


def dial(address: str, paths: TlsPaths) -> grpc.aio.Channel:
    """Return a channel to `address` (host:port); key files are read anew, so a rotation counts from the next dial.

    Raises:
        ComityError: `KEY_UNREADABLE`.
    """
    try:
        key, certificate, authority = paths.key.read_bytes(), paths.cert.read_bytes(), paths.ca.read_bytes()
    except OSError as error:
        raise ComityError(ErrorCode.KEY_UNREADABLE, "TLS key or certificate") from error
    return dial_with(address, key, certificate, authority)


def dial_with(address: str, key_pem: bytes, certificate_pem: bytes, authority_pem: bytes) -> grpc.aio.Channel:
    """Return a channel that presents the given certificate and trusts only `authority_pem`."""
    credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, certificate_pem)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)


class UnaryCall(Protocol[Q, R]):
    """A method of a stub that asks once and is answered once."""

    def __call__(self, request: Q, *, timeout: float | None = None) -> Awaitable[R]:
        """Send `request`."""


class Dialer:
    """One connection to the coordinator, renewed when the certificate on disk changes."""

    def __init__(self, address: str | Addresses, keystore: KeyStore) -> None:
        """`address` is the coordinator's host:port, or where the stream finds it."""
        self._addresses = Addresses(address) if isinstance(address, str) else address
        self._dialled = ""
        self._keystore = keystore
        self._channel: grpc.aio.Channel | None = None
        self._certificate: Path | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """Return the connection; a new one after a rotation or at a new address; calls under way keep theirs."""
        paths, address = self._keystore.tls_paths(), self._addresses.current
        if self._channel is None or self._certificate != paths.cert or self._dialled != address:
            former, self._channel = self._channel, dial(address, paths)
            self._certificate, self._dialled = paths.cert, address
            if former is not None:
                task = asyncio.create_task(former.close(CLOSE_GRACE_S))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        return self._channel

    def membership(self) -> membership_pb2_grpc.MembershipServiceAsyncStub:
        """Return the stub for members, certificates and charters."""
        stub: membership_pb2_grpc.MembershipServiceAsyncStub = membership_pb2_grpc.MembershipServiceStub(self.channel())
        return stub

    def ledger(self) -> ledger_pb2_grpc.LedgerReadServiceAsyncStub:
        """Return the stub for reading the ledger."""
        stub: ledger_pb2_grpc.LedgerReadServiceAsyncStub = ledger_pb2_grpc.LedgerReadServiceStub(self.channel())
        return stub

    def witness(self) -> ledger_pb2_grpc.LedgerWitnessServiceAsyncStub:
        """Return the stub for cosignatures."""
        stub: ledger_pb2_grpc.LedgerWitnessServiceAsyncStub = ledger_pb2_grpc.LedgerWitnessServiceStub(self.channel())
        return stub

    def payloads(self) -> payload_pb2_grpc.PayloadServiceAsyncStub:
        """Return the stub for sealed payloads."""
        stub: payload_pb2_grpc.PayloadServiceAsyncStub = payload_pb2_grpc.PayloadServiceStub(self.channel())
        return stub

    async def close(self) -> None:
        """End the connection."""
        channel, self._channel = self._channel, None
        for task in self._closing:
            task.cancel()
        if channel is not None:
            await channel.close()


async def ask(method: UnaryCall[Q, R], request: Q, *, timeout_s: float = UNARY_TIMEOUT_S) -> R:
    """Call a unary method within `timeout_s`. Raises what the coordinator says, `UNAVAILABLE`, `TIMEOUT`."""
    try:
        return await method(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
