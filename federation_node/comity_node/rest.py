"""The node's local API: a Unix socket that only the organisation's own user can open, and a bearer token besides.

Rules:
1. The socket is 0600 from its first moment; a path that is too long for a socket is refused with a sentence.
2. Errors and the gate are as in `comity.wire.http_api`; `access.rows` says which roles each route asks for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI

from comity.wire import http_api
from comity.wire.authorisation import Rows
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import Authenticate, QuietServer, Status
from comity_node.access.rows import ROUTES

SOCKET_PATH_BYTES_MAX = 100
SHUTDOWN_GRACE_S = 3
CONNECTIONS_MAX = 64


def build_api(
    authenticate: Authenticate, routers: Sequence[APIRouter], status: Status, rows: Rows = ROUTES
) -> FastAPI:
    """Return the API of `routers`; `status` gives the answer of `/v1/status`."""
    return http_api.build_api("Comity node", authenticate, rows, routers, status)


class LocalServer:
    """The API on our own socket."""

    def __init__(self, api: FastAPI, path: Path) -> None:
        """Raises `MALFORMED` for a path that is too long, `CONFLICT` if another process serves there."""
        self._path = path
        self._socket = _bind(path)
        self._server = QuietServer(api, connections_max=CONNECTIONS_MAX, shutdown_grace_s=SHUTDOWN_GRACE_S)

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
