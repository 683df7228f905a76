"""The one port: TLS 1.3, client certificates required, grants by service, errors from the catalogue.

Rules
1. Every handler is wrapped, whoever adds its service: a method without a row in `authorisation.METHODS` is closed to
   all.
2. An organisation's certificate counts only while the organisation is enrolled, not revoked, and the certificate is
   its current one.
3. Unary calls have a deadline of ours. Nothing but catalogue errors leaves.
4. A server that lets TLS 1.2 in refuses to start (`comity/__init__.py` sets the rule).
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from sqlalchemy.exc import DBAPIError

from comity.wire import grpc_errors, pieces
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.authorisation import METHODS, ORG
from comity_coordinator.transport.identity import Peer, PeerReader, set_current_peer

UNARY_TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 3_600.0
MESSAGE_BYTES_MAX = 4 << 20
PROBE_TIMEOUT_S = 5.0

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 256),
    # A burst of new streams met "Internal error from Core" with the defaults (1,000).
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 60_000),
    # Nodes ping every 30 s; a shorter minimum here than there, or they are sent away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM: the server's key and certificate, the authority that clients' certificates come from."""

    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes

    def __repr__(self) -> str:
        return "ServerTls(…)"


class Edge(grpc.aio.ServerInterceptor):
    """Wraps every handler: who calls, may they, for how long, and what leaves when it fails."""

    def __init__(self, consortium: str, admit: Callable[[Peer], Awaitable[None]]) -> None:
        self._reader = PeerReader(consortium)
        self._admit = admit
        self._calls: dict[asyncio.Task[Any], ComityError | None] = {}

    def end_calls(self, reason: ComityError) -> None:
        """End whatever organisations have under way here, streams included; in the event loop."""
        for task in self._calls:
            self._calls[task] = reason
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler; interceptors see no certificate, handlers do."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        grant = METHODS.get(method)
        if handler.unary_unary is not None:
            run = self._wrap(handler.unary_unary, grant, UNARY_TIMEOUT_S)
            return grpc.unary_unary_rpc_method_handler(run, handler.request_deserializer, handler.response_serializer)
        if handler.stream_unary is not None:
            run = self._wrap(handler.stream_unary, grant, UPLOAD_TIMEOUT_S)
            return grpc.stream_unary_rpc_method_handler(
                run, _piece_or(handler.request_deserializer), handler.response_serializer
            )
        if handler.unary_stream is not None:
            run = self._wrap(handler.unary_stream, grant, UPLOAD_TIMEOUT_S)
            return grpc.unary_stream_rpc_method_handler(run, handler.request_deserializer, _serialise)
        run = self._wrap(handler.stream_stream, grant, None)
        return grpc.stream_stream_rpc_method_handler(run, handler.request_deserializer, _serialise)

    def _wrap(self, behaviour: Any, grant: str | None, timeout_s: float | None) -> Callable[[Any, Any], Awaitable[Any]]:
        if not inspect.iscoroutinefunction(behaviour):
            raise TypeError("a handler is a coroutine; streams are written through the context")

        async def guarded(request: Any, context: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None, "gRPC runs each call as a task"
            try:
                peer = self._reader.read(context)
                if peer.role != grant:
                    raise ComityError(ErrorCode.FORBIDDEN, "this certificate does not grant this method")
                if peer.role == ORG:
                    self._calls[task] = None
                    await self._admit(peer)
                set_current_peer(peer)
                async with asyncio.timeout(timeout_s):
                    return await behaviour(request, context)
            except asyncio.CancelledError:
                reason = self._calls.get(task)
                if reason is None:
                    raise
                task.uncancel()
                await grpc_errors.abort(context, reason)
            except Exception as error:  # noqa: BLE001 - the edge: whatever it is, only a catalogue error may leave
                await grpc_errors.abort(context, _outward(error))
            finally:
                self._calls.pop(task, None)

        return guarded


def _outward(error: Exception) -> ComityError:
    """Return what may leave for `error`; aborts that were decided inside go on unchanged."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, ComityError):
        return error
    if isinstance(error, TimeoutError):
        return ComityError(ErrorCode.TIMEOUT)
    if isinstance(error, DBAPIError):
        log.error("database.failed", error=type(error.orig).__name__)
        return ComityError(ErrorCode.UNAVAILABLE, "the coordinator's database does not answer")
    log.error("rpc.failed", exc_info=error)
    return ComityError(ErrorCode.INTERNAL)


def _piece_or(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Read pieces of uploads as views, without a copy; `parse` reads all other requests."""

    def read(message: bytes) -> Any:
        piece = pieces.read(message, pieces.UPLOAD_FIELD)
        return parse(message) if piece is None else piece

    return read


def _serialise(response: Any) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def build_server(edge: Edge, tls: ServerTls, listen: str) -> tuple[grpc.aio.Server, int]:
    """Return a server that is bound to `listen` (host:port; port 0 takes a free one) and not started, and its port.

    Raises:
        ComityError: `UNAVAILABLE` if the address cannot be bound.
    """
    server = grpc.aio.server(interceptors=[edge], options=_OPTIONS)
    credentials = grpc.ssl_server_credentials(
        [(tls.key_pem, tls.certificate_pem)], root_certificates=tls.authority_pem, require_client_auth=True
    )
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise ComityError(ErrorCode.UNAVAILABLE, f"cannot listen on {listen}") from error
    return server, port


async def refuse_old_tls(host: str, port: int) -> None:
    """Check from outside that TLS 1.2 is refused (rule 4).

    Raises:
        ComityError: `INTERNAL` if a TLS 1.2 handshake succeeds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (ssl.SSLError, ConnectionError, EOFError):
        return
    writer.close()
    raise ComityError(ErrorCode.INTERNAL, "the server accepts TLS 1.2")
