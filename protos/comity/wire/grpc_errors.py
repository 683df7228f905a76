"""Catalogue errors over gRPC: status and trailing metadata on the way out, one exception on the way in.

Only what the catalogue knows crosses: code, detail, facts, as canonical JSON in `comity-error-bin`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import grpc

from comity.wire import canonical
from comity.wire.catalog import CATALOG, row
from comity.wire.errors import ComityError, ErrorCode

TRAILER = "comity-error-bin"
TRAILER_BYTES_MAX = 4_096
# How BoringSSL says that our own check of the peer's certificate failed; gRPC gives no code for it.
_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"


async def abort(context: Any, error: ComityError) -> NoReturn:
    """End the RPC behind `context` (a `grpc.aio.ServicerContext`) with `error`; never returns."""
    known = row(error.code)
    body = canonical.canonical(error.to_json())
    if len(body) > TRAILER_BYTES_MAX:
        body = canonical.canonical(ComityError(error.code).to_json())
    await context.abort(grpc.StatusCode[known.grpc], known.sentence, trailing_metadata=((TRAILER, body),))
    raise AssertionError("abort raises")


def from_rpc(error: grpc.aio.AioRpcError) -> ComityError:
    """Return what the other side said; without the trailer, what the status alone says."""
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER and isinstance(value, bytes) and len(value) <= TRAILER_BYTES_MAX:
            try:
                canonical.check_nesting(value)
                return ComityError.from_json(json.loads(value))
            except (ValueError, RecursionError, ComityError):
                break
    if error.code() is grpc.StatusCode.UNAVAILABLE and _UNTRUSTED in (error.details() or ""):
        return ComityError(ErrorCode.CERTIFICATE_INVALID, "the other side's certificate comes from another authority")
    return ComityError(_BY_STATUS.get(error.code().name, ErrorCode.INTERNAL), "the transport failed")


# Statuses that gRPC itself gives; what our own servers say comes with the trailer.
_BY_STATUS = {
    "UNAVAILABLE": ErrorCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ErrorCode.TIMEOUT,
    "RESOURCE_EXHAUSTED": ErrorCode.TOO_LARGE,
    "UNAUTHENTICATED": ErrorCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": ErrorCode.FORBIDDEN,
    "UNIMPLEMENTED": ErrorCode.UNSUPPORTED,
    "CANCELLED": ErrorCode.UNAVAILABLE,
}
assert set(_BY_STATUS.values()) <= CATALOG.keys()
