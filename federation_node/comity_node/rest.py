"""The node's local API: a Unix socket that only the organisation's own user can open, and a bearer token besides.

Rules:
1. The socket is 0600 from its first moment; a path that is too long for a socket is refused with a sentence.
2. Every route needs the token except the liveness probe `/v1/live`.
3. Errors are problem+json (RFC 9457) made from the catalogue; nothing else leaves a failed request.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from comity.wire.catalog import row
from comity.wire.errors import ComityError, ErrorCode

SOCKET_PATH_BYTES_MAX = 100
BODY_BYTES_MAX = 256 << 20
SHUTDOWN_GRACE_S = 3
log = structlog.get_logger("comity.node.rest")


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


def build_api(token: str, routers: list[APIRouter], status: Callable[[], Any]) -> FastAPI:
    """Return the API. `status` is an async function that returns the node's state for `/v1/status`."""
    api = FastAPI(title="Comity node", version="1", docs_url=None, redoc_url=None)
    guard = [Depends(_guard(token))]

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

    @api.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("api.failed", route=request.url.path, exc_info=error)
        return problem(ComityError(ErrorCode.INTERNAL))

    @api.get("/v1/live")
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    @api.get("/v1/status", dependencies=guard)
    async def show_status() -> dict[str, Any]:
        """Return who this node is, its link, its charter, its outbox."""
        found: dict[str, Any] = await status()
        return found

    for each in routers:
        api.include_router(each, dependencies=guard)
    return api


def _guard(token: str) -> Callable[[str], None]:
    expected = f"Bearer {token}".encode()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), expected):
            raise ComityError(ErrorCode.UNAUTHENTICATED, "the local API needs the token in api.token")

    return check


class LocalServer:
    """uvicorn on our own socket, without its signal handlers: the node decides when it ends."""

    def __init__(self, api: FastAPI, path: Path) -> None:
        """Raises `MALFORMED` for a path that is too long, `CONFLICT` if another process serves there."""
        self._path = path
        self._socket = _bind(path)
        config = uvicorn.Config(
            api,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            limit_concurrency=64,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
            server_header=False,
        )
        self._server = _Quiet(config)

    async def run(self) -> None:
        """Serve until `stop` or cancelled."""
        await self._server.serve(sockets=[self._socket])

    async def ready(self) -> None:
        """Return once the socket is served."""
        await self._server.up.wait()

    def stop(self) -> None:
        """Ask the server to end, and take the socket away."""
        self._server.should_exit = True
        self._path.unlink(missing_ok=True)


class _Quiet(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ComityError(
            ErrorCode.MALFORMED, "the node's home has too long a path for a socket", limit_bytes=SOCKET_PATH_BYTES_MAX
        )
    path.unlink(missing_ok=True)  # the node's lock is held, so this is a dead process's socket
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(former)
    listener.listen(64)
    listener.setblocking(False)
    return listener
