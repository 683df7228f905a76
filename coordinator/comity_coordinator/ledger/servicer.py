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
from comity_coordinator.standing import Memory
from comity_coordinator.transport.identity import current_peer

T = TypeVar("T")


class LedgerReadServicer(ledger_pb2_grpc.LedgerReadServiceServicer):
    """Checkpoints, entries, proofs."""

    def __init__(self, db: Database, ledger: Ledger, memory: Memory) -> None:
        self._db = db
        self._ledger = ledger
        self._memory = memory

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
        """Prove that checkpoints extend each other, step by step."""
        sizes = (request.old_size, request.new_size, *request.further_sizes)
        first, *further = await self._read(context, partial(self._ledger.consistency, sizes=sizes))
        steps = [ledger_pb2.ConsistencyStep(hashes=hashes) for hashes in further]
        return ledger_pb2.GetConsistencyProofResponse(hashes=first, further=steps)

    async def GetStanding(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.GetStandingRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetStandingResponse:
        """Return what is remembered of the caller."""
        org = current_peer().name
        found = await self._read(context, lambda conn: self._memory.of(conn, org))
        return ledger_pb2.GetStandingResponse(
            receipt=found.receipt, received_seq=found.received_seq, acked_seq=found.acked_seq
        )

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any], fn: Callable[[Connection], T]) -> T:
        try:
            return await self._db.run(fn)
        except ComityError as error:
            await grpc_errors.abort(context, error)
            raise
