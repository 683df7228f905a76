"""Training's part of the node's local API: datasets, runs, their events as they happen, results.

Metrics and models are shown here and nowhere else: this is the organisation's own socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from comity.wire.errors import ComityError, ErrorCode
from comity_node.context import NodeContext
from comity_node.training import store
from comity_node.training.datasets import Dataset
from comity_node.training.service import TrainingService
from comity_node.training.tables import PREPARING, RunRow

RUNS_LISTED_MAX = 500
# An event stream says that it lives; a watcher behind a proxy would be cut off otherwise.
HEARTBEAT_S = 15.0


class DatasetRequest(BaseModel):
    """A dataset to add; `source` is a file on the node's machine, or a variable's name for `sql`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=128)
    source: str = Field(max_length=4096)
    classification: str = Field(min_length=1, max_length=128)
    owner: str = Field(default="", max_length=200)
    format: str | None = None
    table: str | None = Field(default=None, max_length=128)
    replace: bool = False


class CancelRequest(BaseModel):
    """Why a run is stopped."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500)


def router(node: NodeContext) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["training"])
    service = node.services.get(TrainingService)
    _add_datasets(routes, service)
    _add_runs(routes, node, service)
    _add_results(routes, node, service)
    return routes


def _add_datasets(routes: APIRouter, service: TrainingService) -> None:
    @routes.get("/v1/datasets")
    async def list_datasets() -> list[dict[str, Any]]:
        """Return the catalogue."""
        return [_dataset(entry) for entry in await asyncio.to_thread(service.catalogue.list)]

    @routes.post("/v1/datasets", status_code=201)
    async def add_dataset(request: DatasetRequest) -> dict[str, Any]:
        """Look at a source and add it to the catalogue."""
        source: Path | str = request.source if request.format == "sql" else Path(request.source)
        entry = await asyncio.to_thread(
            service.catalogue.add,
            request.name,
            source,
            classification=request.classification,
            owner=request.owner,
            format=request.format,
            table=request.table,
            replace=request.replace,
        )
        return _dataset(entry)


def _add_runs(routes: APIRouter, node: NodeContext, service: TrainingService) -> None:
    @routes.get("/v1/runs")
    async def list_runs() -> list[dict[str, Any]]:
        """Return the newest runs first."""
        rows = await node.journal.run(lambda conn: store.list_runs(conn, limit=RUNS_LISTED_MAX))
        return [_run(row, service) for row in rows]

    @routes.get("/v1/runs/{run}")
    async def show_run(run: str) -> dict[str, Any]:
        """Return one run."""
        return _run(await _found(node, run), service)

    @routes.post("/v1/runs/{run}/cancel")
    async def cancel_run(run: str, request: CancelRequest) -> dict[str, Any]:
        """Stop a run that this organisation leads."""
        row = await _found(node, run)
        if row.lead != node.settings.org:
            raise ComityError(ErrorCode.ORDER_NOT_LEAD, "only the lead cancels; any party may withdraw", lead=row.lead)
        await service.runs.cancel(run, ComityError(ErrorCode.RUN_CANCELLED, request.reason))
        return _run(await _found(node, run), service)

    @routes.get("/v1/runs/{run}/events")
    async def watch_run(run: str, after: int = 0) -> StreamingResponse:
        """Stream a run's events (server-sent events); ends with the event `closed`."""
        await _found(node, run)
        return StreamingResponse(_stream(service, run, after), media_type="text/event-stream")


def _add_results(routes: APIRouter, node: NodeContext, service: TrainingService) -> None:
    @routes.get("/v1/runs/{run}/result")
    async def fetch_result(run: str, part: str = "model.npz") -> FileResponse:
        """Return a result's file: `model.npz`, `content.bin` or `card.json`."""
        if part not in ("model.npz", "content.bin", "card.json"):
            raise ComityError(ErrorCode.NOT_FOUND, "a result has model.npz, content.bin and card.json")
        found = await service.results.find((await _found(node, run)).run)
        return FileResponse(found.folder / part, filename=part)

    @routes.get("/v1/runs/{run}/card")
    async def show_card(run: str) -> dict[str, Any]:
        """Return a result's model card."""
        return (await service.results.find((await _found(node, run)).run)).card

    @routes.get("/v1/runs/{run}/sums")
    async def list_sums(run: str) -> list[dict[str, Any]]:
        """Return the cards of the rounds' sums that this organisation opened beside the lead and still keeps."""
        return await service.sums.list((await _found(node, run)).run)

    @routes.get("/v1/runs/{run}/sums/{number}")
    async def fetch_sum(run: str, number: int, word: str = "train") -> FileResponse:
        """Return the mean of a round, `model.npz`, where this organisation opened its sum beside the lead."""
        found = await service.sums.find((await _found(node, run)).run, number, word)
        return FileResponse(found.folder / "model.npz", filename="model.npz")


async def _stream(service: TrainingService, run: str, after: int) -> AsyncIterator[str]:
    events = service.events.watch(run, after)
    pending: asyncio.Task[Any] | None = None
    try:
        while True:
            pending = pending or asyncio.create_task(anext(events, None))
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_S)
            if not done:
                yield ": alive\n\n"
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield f"id: {event.no}\nevent: {event.kind}\ndata: {json.dumps(event.to_json())}\n\n"
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await events.aclose()


async def _found(node: NodeContext, run: str) -> RunRow:
    row = await node.journal.run(lambda conn: store.find_run(conn, run))
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "this node knows no such run")
    return row


def _run(row: RunRow, service: TrainingService) -> dict[str, Any]:
    ended = row.ended_at is not None
    host = None if ended else service.runs.host(row.run)
    passing = {} if host is None else host.desk.passing()
    return {
        "run": row.run,
        "agreement": row.agreement,
        "lead": row.lead,
        "parties": json.loads(row.parties),
        "state": row.state,
        "prepared_at": row.prepared_at,
        "ended_at": row.ended_at,
        "error": None if row.error is None else json.loads(row.error),
        "result": None if row.result is None else json.loads(row.result),
        "closed": row.closed,
        "awaited": []
        if ended
        else json.loads(row.parties)
        if row.state == PREPARING
        else sorted(passing) or [row.lead],
        # Whoever refused for now, such as for its people: the lead asks again.
        "passing": {org: error.to_json() for org, error in passing.items()},
    }


def _dataset(entry: Dataset) -> dict[str, Any]:
    return {
        "name": entry.name,
        "format": entry.format,
        "classification": entry.classification,
        "owner": entry.owner,
        "records": entry.records,
        "columns": list(entry.columns),
    }
