"""What the operator's API and a node's local API have in common: catalogue errors, the bearer token, a quiet server.

Rules:
1. Nothing leaves a failed request but a row of the catalogue, as problem+json (RFC 9457): unknown routes included.
2. The token is compared in constant time; every router is behind it, only the probe `/v1/live` is not.
3. uvicorn takes no signal: the process that serves decides when serving ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from comity.wire.catalog import row
from comity.wire.errors import ComityError, ErrorCode

_BY_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.UNSUPPORTED}

Status = Callable[[], Awaitable[dict[str, Any]]]
log = structlog.get_logger("comity.http")


def problem(error: ComityError) -> JSONResponse:
    """Return `error` as problem+json with the catalogue's status, sentence and whose move it is."""
    found = row(error.code)
    document = {
        "type": f"urn:comity:error:{error.code}",
        "title": found.sentence,
        "status": found.http,
        "retry": found.retry,
        "move": str(found.move),
        **error.to_json(),
    }
    return JSONResponse(document, status_code=found.http, media_type="application/problem+json")


def build_api(title: str, token: str, routers: Sequence[APIRouter], status: Status) -> FastAPI:
    """Return an API of `routers` behind `token`; `status` gives the answer of `/v1/status`.

    Raises:
        ValueError: the token is empty.
    """
    if not token:
        raise ValueError("an API without a token would be open to every local user")
    api = FastAPI(title=title, version="1", docs_url=None, redoc_url=None)
    guard = [Depends(_guard(token))]
    _answer_errors(api)

    @api.get("/v1/live")
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    @api.get("/v1/status", dependencies=guard)
    async def show_status() -> dict[str, Any]:
        """Return how the process is: who it is, its links, what is open."""
        return await status()

    for each in routers:
        api.include_router(each, dependencies=guard)
    return api


def _answer_errors(api: FastAPI) -> None:
    @api.exception_handler(ComityError)
    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ComityError)
        return problem(error)

    @api.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(ComityError(ErrorCode.MALFORMED, f"{where}: {first['msg']}"))

    @api.exception_handler(HTTPException)
    async def not_served(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem(ComityError(_BY_STATUS.get(error.status_code, ErrorCode.MALFORMED), "no such route"))

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("http.failed", route=request.url.path, exc_info=error)
        return problem(ComityError(ErrorCode.INTERNAL))


def _guard(token: str) -> Callable[[str], None]:
    expected = f"Bearer {token}".encode()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), expected):
            raise ComityError(ErrorCode.UNAUTHENTICATED, "this API needs the token in api.token")

    return check


class QuietServer(uvicorn.Server):
    """uvicorn without access log and signal handlers; `up` is set once requests are answered."""

    def __init__(self, api: FastAPI, *, connections_max: int, shutdown_grace_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                limit_concurrency=connections_max,
                timeout_graceful_shutdown=shutdown_grace_s,
                server_header=False,
            )
        )
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then say so."""
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield
