"""What the operator's API and a node's API have in common: catalogue errors, the gate before them, a quiet server.

Rules:
1. Nothing leaves a failed request but a row of the catalogue, as problem+json (RFC 9457): unknown routes included.
2. The gate stands before every route: it authenticates, looks the route up in the server's table (`authorisation`)
   and bounds what is sent, all before a byte of the body is read. A route without a row is refused.
3. Secrets are compared in constant time.
4. uvicorn takes no signal: the process that serves decides when serving ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import structlog
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from comity.wire import instants
from comity.wire.authorisation import Principal, Rows, check, is_public
from comity.wire.catalog import row
from comity.wire.errors import ComityError, ErrorCode

BODY_BYTES_MAX = 4 << 20
CREDENTIALS_BYTES_MAX = 16 << 10
LENGTH_CHARS_MAX = 20
_BY_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.UNSUPPORTED}

Status = Callable[[], Awaitable[dict[str, Any]]]
Authenticate = Callable[[str], Awaitable[Principal]]
"""Returns who holds these bearer credentials. Raises `UNAUTHENTICATED`."""
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
    # RFC 9110, section 11.6.1: who is not known is told how to become so.
    headers = {"www-authenticate": "Bearer"} if found.http == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(document, status_code=found.http, headers=headers, media_type="application/problem+json")


def build_api(
    title: str, authenticate: Authenticate, rows: Rows, routers: Sequence[APIRouter], status: Status
) -> FastAPI:
    """Return an API of `routers` behind the gate; `status` gives the answer of `/v1/status`."""
    api = FastAPI(
        title=title,
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # served below, behind the gate
        dependencies=[Depends(_as_admitted)],
    )
    _answer_errors(api)
    own = APIRouter()

    @own.get("/v1/live")
    async def live() -> dict[str, bool]:
        """Say that the process answers."""
        return {"live": True}

    @own.get("/v1/status")
    async def show_status() -> dict[str, Any]:
        """Return how the process is: who it is, its links, what is open."""
        return await status()

    @own.get("/openapi.json", include_in_schema=False)
    async def schema() -> dict[str, Any]:
        """Return the description of this API."""
        return api.openapi()

    for each in (own, *routers):
        api.include_router(each)
    api.add_middleware(Gate, authenticate=authenticate, rows=rows, routes=routes_of((own, *routers)))
    return api


def routes_of(routers: Sequence[APIRouter]) -> tuple[Route, ...]:
    """Return the routes in the order in which they are tried. Raises `ValueError` for what is no plain route."""
    routes: list[BaseRoute] = [each for router in routers for each in router.routes]
    plain = tuple(each for each in routes if isinstance(each, Route))
    if len(plain) != len(routes):
        raise ValueError("a router holds plain routes only: the gate cannot look behind others")
    return plain


def holder_of(secret: str, principal: Principal, hint: str) -> Authenticate:
    """Return what takes whoever presents `secret` for `principal`; `hint` tells others what is needed.

    Raises:
        ValueError: the secret is empty.
    """
    if not secret:
        raise ValueError("an API without a token would be open to every local user")
    expected = secret.encode()

    async def authenticate(credentials: str) -> Principal:
        if not hmac.compare_digest(credentials.encode(), expected):
            raise ComityError(ErrorCode.UNAUTHENTICATED, hint)
        return principal

    return authenticate


class Gate:
    """ASGI middleware: who asks, may they use this route, how much may they send."""

    def __init__(self, app: ASGIApp, *, authenticate: Authenticate, rows: Rows, routes: Sequence[Route]) -> None:
        self._app = app
        self._authenticate = authenticate
        self._rows = rows
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is permitted, refuse everything else."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        try:
            principal = await self._admit(scope)
        except ComityError as error:
            await problem(error)(scope, receive, send)
            return
        await self._pass(principal, scope, receive, send)

    async def _admit(self, scope: Scope) -> Principal | None:
        """Return who asks; None for what is public. Raises `UNAUTHENTICATED`, `FORBIDDEN`, `TOO_LARGE`, `MALFORMED`."""
        method, path = str(scope["method"]), self._path(scope)
        state = scope.setdefault("state", {})
        state["admitted"] = path
        _check_size(scope)
        if path is not None and is_public(self._rows, method, path):
            return None
        principal = await self._authenticate(_credentials(scope))
        state["principal"] = principal
        if path is not None:
            try:
                check(self._rows, method, path, principal)
            except ComityError:
                log.warning("http.refused", method=method, route=path, user=principal.user, via=principal.via)
                raise
            if method != "GET":
                log.info("http.asked", method=method, route=path, user=principal.user, via=principal.via)
        return principal

    def _path(self, scope: Scope) -> str | None:
        """Return the path of the route that will answer, as it is written; None if there is none."""
        for route in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return route.path
        return None

    async def _pass(self, principal: Principal | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the API answer; a long answer (a stream of events) ends with the credentials."""
        if principal is None or principal.until is None:
            await self._app(scope, receive, send)
            return
        left_s = (principal.until - instants.now()).total_seconds()
        try:
            async with asyncio.timeout(left_s) as limit:
                await self._app(scope, receive, send)
        except TimeoutError:
            if not limit.expired():
                raise  # somebody else's: a route failed


def _credentials(scope: Scope) -> str:
    """Return what stands behind `Bearer`. Raises `UNAUTHENTICATED`."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1 or len(found[0]) > CREDENTIALS_BYTES_MAX:
        raise ComityError(ErrorCode.UNAUTHENTICATED, "one header `Authorization: Bearer …` is needed")
    scheme, _, credentials = found[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not credentials.strip():
        raise ComityError(ErrorCode.UNAUTHENTICATED, "credentials are sent as `Authorization: Bearer …`")
    return str(credentials.strip())


def _check_size(scope: Scope) -> None:
    """Refuse a body that is too large, or that does not say how large it is (RFC 9110, section 8.6)."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        raise ComityError(ErrorCode.MALFORMED, "a body is sent with its Content-Length")
    size = headers.get(b"content-length", b"0")
    if not size.isdigit() or len(size) > LENGTH_CHARS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "Content-Length is a number")
    if int(size) > BODY_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "the request", limit_bytes=BODY_BYTES_MAX)


def _as_admitted(request: Request) -> None:
    """Stop if another route answers than the one that the gate looked up: then nobody has been authorised for it."""
    route = request.scope.get("route")
    if not isinstance(route, Route) or route.path != getattr(request.state, "admitted", None):
        raise ComityError(ErrorCode.FORBIDDEN, "the gate has not opened this route")


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


class QuietServer(uvicorn.Server):
    """uvicorn without access log and signal handlers; `up` is set once requests are answered. `tls` is for a port."""

    def __init__(
        self, api: ASGIApp, *, connections_max: int, shutdown_grace_s: int, tls: ssl.SSLContext | None = None
    ) -> None:
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
                http="h11",  # bounds the head of a request, at 64 KiB
                ssl_context_factory=None if tls is None else lambda _config, _default: tls,
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
