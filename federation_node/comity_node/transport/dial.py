"""Channels to the coordinator: mutual TLS 1.3 with the node's own certificate and the one pinned authority."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keystore import TlsPaths

MESSAGE_BYTES_MAX = 4 << 20
UNARY_TIMEOUT_S = 20.0

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
