"""A small server on a Unix socket that speaks the local API's manners, for the SDK to meet."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Header
from fastapi.responses import JSONResponse, Response, StreamingResponse

# An event number behind which nothing comes but signs of life.
ENDLESS = 999
TOKEN = "a-token-of-the-tests-that-is-long-enough"


@dataclass
class Served:
    """A running server: its home, and what it was asked."""

    home: Path
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    breaks: int = 0


def _api(served: Served) -> FastAPI:
    api = FastAPI()

    def problem(status: int, code: str, detail: str) -> JSONResponse:
        document = {"title": "x", "code": code, "detail": detail, "facts": {"rule": "proposal.purpose"}}
        return JSONResponse(document, status_code=status, media_type="application/problem+json")

    @api.get("/v1/status")
    async def status(authorization: str = Header("")) -> Any:
        served.asked.append("status")
        if authorization != f"Bearer {TOKEN}":
            return problem(401, "UNAUTHENTICATED", "the local API needs the token in api.token")
        return {"org": "hospital-a"}

    @api.get("/v1/proposals/{name}")
    async def proposal(name: str) -> Any:
        served.asked.append(name)
        if name == "denied":
            return problem(403, "POLICY_DENIED", "not here")
        if name == "garbage":
            return Response(b"<html>", media_type="text/html")
        if name == "slow":
            await asyncio.sleep(1)
        if name == "dumb":
            return Response(b"oops", status_code=500)
        return {"proposal_id": name}

    @api.post("/v1/withdrawals")
    async def withdraw(body: dict[str, Any]) -> Any:
        served.bodies.append(body)
        return {"withdrawn": body["name"]}

    @api.get("/v1/runs/{run}/events")
    async def events(run: str, after: int = 0) -> Any:
        served.asked.append(f"events after {after}")
        if run == "unknown":
            return problem(404, "NOT_FOUND", "this node knows no such run")
        return StreamingResponse(_events(served, after), media_type="text/event-stream")

    @api.get("/v1/ledger/export")
    async def export() -> Any:
        async def parts() -> Any:
            yield b"first half, "
            if served.breaks:
                served.breaks -= 1
                raise ConnectionResetError
            yield b"second half"

        return StreamingResponse(parts())

    return api


async def _events(served: Served, after: int) -> Any:
    """Events 1 to 5; while `breaks` lasts the stream ends after two, and the last is sent again."""
    if after == ENDLESS:
        while True:
            yield ": alive\n\n"
            await asyncio.sleep(0.02)
    for number in range(max(1, after), 6):
        kind = "closed" if number == 5 else "metrics"
        yield f": alive\n\nid: {number}\ndata: {json.dumps({'no': number, 'kind': kind})}\n\n"
        if served.breaks and number >= after + 2:
            served.breaks -= 1
            return


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Serve until the test ends."""
    (tmp_path / "api.token").write_text(TOKEN + "\n")
    found = Served(tmp_path)
    config = uvicorn.Config(_api(found), uds=str(tmp_path / "api.sock"), log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 10
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield found
    server.should_exit = True
    thread.join(10)
