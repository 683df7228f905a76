"""The operator's API: loopback, OpenAPI at `/openapi.json`; errors and the bearer token as in `comity.wire.http_api`.

Rules:
1. it binds loopback and nothing else: what needs an organisation's key or shows its metrics belongs to its own node;
2. everything is read-only except the operator's own `revoke`: the operator has no member's right (`authorisation`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse

from comity.wire import http_api
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import QuietServer, Status
from comity_coordinator.authorisation import OPERATING, ROUTES
from comity_coordinator.feed import Feed

HEARTBEAT_S = 15.0
SHUTDOWN_GRACE_S = 2
CONNECTIONS_MAX = 128
START_TIMEOUT_S = 10.0


def build_api(
    token: str, routers: Sequence[APIRouter], status: Status, feed: Feed, ready: Callable[[], Awaitable[None]]
) -> FastAPI:
    """Return the API of `routers`; `status`, `feed` and `ready` answer `/v1/status`, `/v1/events` and `/v1/ready`."""
    changes = APIRouter()

    @changes.get("/v1/ready")
    async def is_ready() -> dict[str, bool]:
        """Say that the process can do its work: its database answers. 503 if it cannot."""
        await ready()
        return {"ready": True}

    @changes.get("/v1/events")
    async def events() -> StreamingResponse:
        """Stream changes of negotiations and runs as server-sent events: ids and states."""
        if feed.full:
            raise ComityError(ErrorCode.BUSY, "too many watchers")
        return StreamingResponse(_stream(feed), media_type="text/event-stream", headers={"cache-control": "no-store"})

    authenticate = http_api.holder_of(token, OPERATING, "this API needs the token in api.token")
    return http_api.build_api("Comity coordinator", authenticate, ROUTES, [changes, *routers], status)


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
    """The API on a loopback address."""

    def __init__(self, api: FastAPI, listen: str) -> None:
        """Bind `listen` (host:port; port 0 takes a free one).

        Raises:
            ComityError: `FORBIDDEN` if the host is not loopback; `UNAVAILABLE` if the port is taken.
        """
        self._socket = _bind(listen)
        self.port: int = self._socket.getsockname()[1]
        self._server = QuietServer(api, connections_max=CONNECTIONS_MAX, shutdown_grace_s=SHUTDOWN_GRACE_S)
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
