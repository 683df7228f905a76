"""Where the node's API is served: a Unix socket for the organisation's own user, and a port for its people if wanted.

Rules:
1. The socket is 0600 from its first moment; a path that is too long for a socket is refused with a sentence.
2. Errors and the gate are as in `comity.wire.http_api`; `access.rows` says which roles each route asks for.
3. The port speaks TLS 1.3 and nothing older, with a key file that is its owner's alone. It is off unless node.json
   says `listen`, and never takes `api.token` (`access.service`).
4. On the port, who is silent for `SILENCE_S` before a request is whole is sent away.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI

from comity.wire import http_api
from comity.wire.authorisation import Rows
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import Authenticate, QuietServer, Status
from comity_node.access.rows import ROUTES
from comity_node.settings import ListenSettings

SOCKET_PATH_BYTES_MAX = 100
SHUTDOWN_GRACE_S = 3
CONNECTIONS_MAX = 64
SILENCE_S = 15.0
SWEEP_EVERY_S = 1.0


def build_api(authenticate: Authenticate, routers: Sequence[APIRouter], status: Status, rows: Rows = ROUTES) -> FastAPI:
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


class PortServer:
    """The API on a port, for people with tokens or ID tokens. `address` is host:port as bound."""

    def __init__(self, api: FastAPI, settings: ListenSettings, home: Path) -> None:
        """Raises `KEY_UNREADABLE` for certificate or key, `MALFORMED` or `UNAVAILABLE` for the address."""
        tls = server_tls(home / settings.certificate, home / settings.key)
        self._socket = _bind_port(settings.address)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._server = QuietServer(api, connections_max=CONNECTIONS_MAX, shutdown_grace_s=SHUTDOWN_GRACE_S, tls=tls)

    async def run(self) -> None:
        """Serve until `stop` or cancelled."""
        sweeping = asyncio.create_task(self._hang_up_on_silence())
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sweeping.cancel()
            self._socket.close()

    async def _hang_up_on_silence(self) -> None:
        """Close connections that do not say what they want, head or body: they would keep others out (rule 4)."""
        since: dict[Any, float] = {}
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now = asyncio.get_running_loop().time()
            silent = {each for each in self._server.server_state.connections if _is_silent(each)}
            since = {each: since.get(each, now) for each in silent}
            for each, started in since.items():
                if now - started > SILENCE_S:
                    each.transport.close()

    async def ready(self) -> None:
        """Return once the port is served."""
        await self._server.up.wait()

    def stop(self) -> None:
        """Ask the server to end."""
        self._server.should_exit = True


def _is_silent(connection: Any) -> bool:
    """Tell whether a connection of uvicorn waits for its client: no request yet, none again, or half a body."""
    cycle = connection.cycle
    return cycle is None or bool(cycle.response_complete or cycle.more_body)


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a context for TLS 1.3 only. Raises `KEY_UNREADABLE`, naming the file and not what is in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        found = key.stat()
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise ComityError(ErrorCode.KEY_UNREADABLE, f"{key.name} is open to others; use chmod 600")
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError):
        detail = f"listen: {certificate.name} and {key.name} are no certificate and key of one another"
        raise ComityError(ErrorCode.KEY_UNREADABLE, detail) from None
    return context


def _bind_port(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ComityError(ErrorCode.MALFORMED, "listen: an address reads host:port")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ComityError(ErrorCode.UNAVAILABLE, "listen: there is no such address here") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(where)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ComityError(ErrorCode.UNAVAILABLE, "listen: the port is taken, or not ours") from error
    listener.setblocking(False)
    return listener


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
