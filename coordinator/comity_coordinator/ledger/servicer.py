"""The gRPC edge of the ledger: reads only; converts and nothing else. Who may call is decided by `transport.server`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import grpc
from sqlalchemy import Connection

from comity.v1 import ledger_pb2, ledger_pb2_grpc
from comity.wire import grpc_errors, ids
from comity.wire.errors import ComityError
from comity_coordinator.db import Database
from comity_coordinator.ledger.service import Ledger

T = TypeVar("T")


class LedgerReadServicer(ledger_pb2_grpc.LedgerReadServiceServicer):
    """Checkpoints, entries, proofs."""

    def __init__(self, db: Database, ledger: Ledger) -> None:
        self._db = db
        self._ledger = ledger

    async def GetCheckpoint(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.GetCheckpointRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetCheckpointResponse:
        """Return the newest checkpoint."""
        note = await self._read(context, self._ledger.checkpoint)
        return ledger_pb2.GetCheckpointResponse(note=note)

    async def ListEntries(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.ListEntriesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.ListEntriesResponse:
        """Return a page of entries."""
        page = await self._read(context, partial(self._ledger.entries, start=request.start, limit=request.limit))
        return ledger_pb2.ListEntriesResponse(statements=page)

    async def GetInclusionProof(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.GetInclusionProofRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetInclusionProofResponse:
        """Prove that a statement is in the log."""
        proof = await self._read(
            context, lambda conn: self._ledger.inclusion(conn, ids.sha256_hex(request.statement_digest))
        )
        return ledger_pb2.GetInclusionProofResponse(index=proof.index, hashes=proof.hashes, note=proof.note)

    async def GetConsistencyProof(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.GetConsistencyProofRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetConsistencyProofResponse:
        """Prove that one checkpoint extends another."""
        hashes = await self._read(
            context, partial(self._ledger.consistency, old_size=request.old_size, new_size=request.new_size)
        )
        return ledger_pb2.GetConsistencyProofResponse(hashes=hashes)

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any], fn: Callable[[Connection], T]) -> T:
        try:
            return await self._db.run(fn)
        except ComityError as error:
            await grpc_errors.abort(context, error)
            raise
