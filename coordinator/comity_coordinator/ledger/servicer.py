"""The gRPC edge of the ledger: reads, and cosignatures in a service of their own. It converts and nothing else; who may
call is decided by `transport.server`.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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
from comity_coordinator.ledger.witnessing import Notes, Rounds, Witnessing
from comity_coordinator.standing import Memory
from comity_coordinator.transport.identity import current_peer

T = TypeVar("T")
# Pages of at most 3 MiB that several readers ask for at once.
PAGES_KEPT = 4


class LedgerReadServicer(ledger_pb2_grpc.LedgerReadServiceServicer):
    """Checkpoints, entries, proofs."""

    def __init__(self, db: Database, ledger: Ledger, memory: Memory, witnessing: Witnessing | None = None) -> None:
        self._db = db
        self._ledger = ledger
        self._memory = memory
        self._witnessing = witnessing
        self._pages: OrderedDict[tuple[int, int], asyncio.Future[list[bytes]]] = OrderedDict()

    async def GetCheckpoint(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.GetCheckpointRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.GetCheckpointResponse:
        """Return the newest checkpoint, and what witnesses make of the ledger."""
        witnessing = self._witnessing

        def read(conn: Connection) -> tuple[str, Notes]:
            return self._ledger.checkpoint(conn), Notes() if witnessing is None else witnessing.notes(conn)

        note, witnessed = await self._read(context, read)
        return ledger_pb2.GetCheckpointResponse(note=note, asked=witnessed.asked, final=witnessed.final)

    async def ListEntries(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.ListEntriesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.ListEntriesResponse:
        """Return a page of entries."""
        read = partial(self._ledger.entries, start=request.start, limit=request.limit)
        key = (request.start, request.limit)
        if key not in self._pages:
            # All witnesses read what is new at the same moment: one of them pays for it.
            self._pages[key] = asyncio.ensure_future(self._db.run(read))
            if len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)
        try:
            page = await asyncio.shield(self._pages[key])
        except BaseException as error:  # whatever it was, the next reader asks the database again
            self._pages.pop(key, None)
            if isinstance(error, ComityError):
                await grpc_errors.abort(context, error)
            raise
        if len(page) < request.limit:
            self._pages.pop(key, None)  # the log ended there, and may not any more
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


class LedgerWitnessServicer(ledger_pb2_grpc.LedgerWitnessServiceServicer):
    """Cosignatures of witnesses."""

    def __init__(self, db: Database, rounds: Rounds) -> None:
        self._db = db
        self._rounds = rounds

    async def AddCosignature(  # noqa: N802 - gRPC's name
        self, request: ledger_pb2.AddCosignatureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ledger_pb2.AddCosignatureResponse:
        """Take a cosignature of the caller."""
        take = partial(self._rounds.witnessing.take, org=current_peer().name, size=request.size, line=request.line)
        try:
            final = await self._db.run(take)
        except ComityError as error:
            await grpc_errors.abort(context, error)
            raise
        if final:
            self._rounds.wake()
        return ledger_pb2.AddCosignatureResponse(final=final)
