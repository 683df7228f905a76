"""The REST edge of the ledger: checkpoint, entries, proofs, export. Read-only."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from comity.wire import ids
from comity_coordinator.db import Database
from comity_coordinator.ledger.service import PAGE_MAX, Ledger, proof_json
from comity_crypto.merkle import SIZE_MAX

Size = Annotated[int, Query(ge=0, le=SIZE_MAX)]


def router(db: Database, ledger: Ledger) -> APIRouter:
    """Return the routes of `ledger`."""
    routes = APIRouter(prefix="/v1/ledger", tags=["ledger"])

    @routes.get("/checkpoint")
    async def checkpoint() -> dict[str, Any]:
        """Return the newest checkpoint, a signed note."""
        size, note = await db.run(ledger.head)
        return {"size": size, "note": note}

    @routes.get("/entries")
    async def entries(start: Size = 0, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = PAGE_MAX) -> dict[str, Any]:
        """Return entries in order; a page may be shorter than asked."""
        page = await db.run(partial(ledger.entries, start=start, limit=limit))
        return {"start": start, "statements": [base64.b64encode(each).decode() for each in page]}

    @routes.get("/proof/{digest}")
    async def proof(digest: str) -> dict[str, object]:
        """Prove that the statement with this digest is in the log."""
        return proof_json(await db.run(partial(ledger.inclusion, digest=ids.sha256_hex(digest))))

    @routes.get("/consistency")
    async def consistency(old_size: Size, new_size: Size) -> dict[str, Any]:
        """Prove that the log of `new_size` extends that of `old_size`."""
        hashes, *_ = await db.run(partial(ledger.consistency, sizes=(old_size, new_size)))
        return {"hashes": [base64.b64encode(each).decode() for each in hashes]}

    @routes.get("/export")
    async def export() -> StreamingResponse:
        """Stream the whole log as `comity ledger verify` reads it."""
        size, note, final = await db.run(ledger.whole)
        header = ledger.export_header(size, note, final)
        return StreamingResponse(_lines(db, ledger, size, header), media_type="application/jsonl")

    return routes


async def _lines(db: Database, ledger: Ledger, size: int, header: bytes) -> AsyncIterator[bytes]:
    """One transaction a page, so that a slow reader holds nothing; entries never change, so the pages fit together."""
    yield header
    index = 0
    while index < size:  # bounded: each turn yields at least one entry
        lines = await db.run(partial(ledger.export_page, start=index, size=size))
        yield b"".join(lines)
        index += len(lines)
