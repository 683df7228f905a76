"""The operator's API: loopback, bearer token, problem+json (RFC 9457) from the catalogue, OpenAPI at `/openapi.json`.

Rules:
1. it binds loopback and nothing else: what needs an organisation's key or shows its metrics belongs to its own node;
2. every route but the probe `/v1/live` needs the token;
3. everything is read-only except the operator's own `revoke`;
4. nothing leaves a failed request but a row of the catalogue.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from comity.wire.catalog import row
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.feed import Feed

HEARTBEAT_S = 15.0
SHUTDOWN_GRACE_S = 2
CONNECTIONS_MAX = 128
START_TIMEOUT_S = 10.0
_BY_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.UNSUPPORTED}

Status = Callable[[], Awaitable[dict[str, Any]]]
log = structlog.get_logger("comity.rest")


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


def build_api(token: str, routers: Sequence[APIRouter], status: Status, feed: Feed) -> FastAPI:
    """Return the API of `routers`; `status` gives the answer of `/v1/status`, `feed` that of `/v1/events`."""
    if not token:
        raise ValueError("an API without a token would be open to every local user")
    api = FastAPI(title="Comity coordinator", version="1", docs_url=None, redoc_url=None)
    guard = [Depends(_guard(token))]
    _answer_errors(api)

    @api.get("/v1/live")
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    @api.get("/v1/status", dependencies=guard)
    async def show_status() -> dict[str, Any]:
        """Return who is connected and what is open."""
        return await status()

    @api.get("/v1/events", dependencies=guard)
    async def events() -> StreamingResponse:
        """Stream changes of negotiations and runs as server-sent events: ids and states."""
        if feed.full:
            raise ComityError(ErrorCode.BUSY, "too many watchers")
        return StreamingResponse(_stream(feed), media_type="text/event-stream", headers={"cache-control": "no-store"})

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
        log.error("rest.failed", route=request.url.path, exc_info=error)
        return problem(ComityError(ErrorCode.INTERNAL))


def _guard(token: str) -> Callable[[str], None]:
    expected = f"Bearer {token}".encode()

    def check(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), expected):
            raise ComityError(ErrorCode.UNAUTHENTICATED, "the operator's API needs the token in api.token")

    return check


async def _stream(feed: Feed) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(feed.watch()) as events:
        waiting = asyncio.ensure_future(anext(events))
        try:
            yield b": connected\n\n"
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=HEARTBEAT_S)
                if not done:
                    yield b": still here\n\n"
                    continue
                event = waiting.result()
                yield f"event: {event['kind']}\ndata: {json.dumps(event, sort_keys=True)}\n\n".encode()
                waiting = asyncio.ensure_future(anext(events))
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


class OperatorServer:
    """uvicorn on a loopback address, without its signal handlers: the coordinator decides when it ends."""

    def __init__(self, api: FastAPI, listen: str) -> None:
        """Bind `listen` (host:port; port 0 takes a free one).

        Raises:
            ComityError: `FORBIDDEN` if the host is not loopback; `UNAVAILABLE` if the port is taken.
        """
        self._socket = _bind(listen)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            api,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
            server_header=False,
        )
        self._server = _Quiet(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return once requests are answered. Raises `UNAVAILABLE` if that does not happen."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            await asyncio.wait_for(self._server.up.wait(), START_TIMEOUT_S)
        except TimeoutError as error:
            await self.stop()
            raise ComityError(ErrorCode.UNAVAILABLE, "the operator's API did not start") from error

    async def stop(self) -> None:
        """Finish the requests under way within the grace and close the socket."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()


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


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = {"localhost": "127.0.0.1"}.get(host, host.strip("[]"))
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise ComityError(ErrorCode.FORBIDDEN, "the operator's API listens on a loopback address") from error
    if not address.is_loopback:
        raise ComityError(ErrorCode.FORBIDDEN, "the operator's API listens on loopback only")
    found = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, int(port)))
    except OSError as error:
        found.close()
        raise ComityError(ErrorCode.UNAVAILABLE, "the operator's port is taken") from error
    found.setblocking(False)
    return found
