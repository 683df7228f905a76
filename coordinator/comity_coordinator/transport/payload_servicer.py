"""PayloadService: converts between the wire and the spool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from comity.v1 import payload_pb2, payload_pb2_grpc
from comity.wire import pieces
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR, org_id, sha256_hex
from comity_coordinator.transport.identity import current_peer
from comity_coordinator.transport.payloads import Spool


class PayloadServicer(payload_pb2_grpc.PayloadServiceServicer):
    """Upload once, fan out, resume. The server has checked the caller's standing before."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def PutPayload(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[payload_pb2.PutPayloadRequest | memoryview], context: Any
    ) -> payload_pb2.PutPayloadResponse:
        """Take a header, then chunks; an upload that stops early keeps what came."""
        first = await anext(request_iterator, None)
        if not isinstance(first, payload_pb2.PutPayloadRequest) or not first.HasField("header"):
            raise ComityError(ErrorCode.MALFORMED, "an upload begins with its header")
        header = first.header
        upload = self._spool.begin(
            current_peer().name,
            header.digest,
            header.size_bytes,
            frozenset(_party(receiver) for receiver in header.receivers),
            header.offset_bytes,
        )
        if not upload.complete:
            async for request in request_iterator:
                if isinstance(request, memoryview):
                    await upload.add(request)
                    continue
                if not request.HasField("data"):
                    raise ComityError(ErrorCode.MALFORMED, "an upload has one header")
                await upload.add(request.data)
        return payload_pb2.PutPayloadResponse(present_bytes=upload.present_bytes, complete=upload.complete)

    async def StatPayload(  # noqa: N802 - gRPC's name
        self, request: payload_pb2.StatPayloadRequest, context: Any
    ) -> payload_pb2.StatPayloadResponse:
        """Say what is here of the caller's own upload, or of one that it may fetch."""
        present_bytes, complete = self._spool.stat(current_peer().name, sha256_hex(request.digest))
        return payload_pb2.StatPayloadResponse(present_bytes=present_bytes, complete=complete)

    # A coroutine that writes, not a generator: when the caller leaves, the reader ends at once and not when collected.
    async def GetPayload(  # type: ignore[override]  # noqa: N802 - gRPC's name
        self, request: payload_pb2.GetPayloadRequest, context: Any
    ) -> None:
        """Send chunks as they are there."""
        async with aclosing(self._spool.read(current_peer().name, request.digest, request.offset_bytes)) as chunks:
            async for chunk in chunks:
                await context.write(pieces.write(chunk, pieces.DOWNLOAD_FIELD))


def _party(receiver: str) -> str:
    """Return who may fetch: an organisation, or this very coordinator, which adds what is encrypted to be added."""
    return receiver if receiver == COORDINATOR else str(org_id(receiver))
