"""What this package's commands say to a running node: HTTP over its Unix socket, errors as they were raised there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from comity.wire.errors import ComityError, ErrorCode

TIMEOUT_S = 120.0
_NOT_RUNNING = "the node does not run: start it with `comity node up`"


class LocalApi:
    """A client of the node whose folder is `home`."""

    def __init__(self, home: Path) -> None:
        """Raises `NOT_FOUND` if `home` is no node, `UNSUPPORTED` if another machine's node was asked for."""
        if os.environ.get("COMITY_NODE"):
            raise ComityError(ErrorCode.UNSUPPORTED, "this command works on the node's own machine, without --node")
        try:
            token = Path(os.environ.get("COMITY_TOKEN_FILE") or home / "api.token").read_text().strip()
        except FileNotFoundError as error:
            from comity_node.settings import NO_NODE  # heavy to import, needed here only

            raise ComityError(ErrorCode.NOT_FOUND, NO_NODE) from error
        self._socket = home / "api.sock"
        self._headers = {"authorization": f"Bearer {token}"}

    def get(self, path: str) -> Any:
        """Return the JSON at `path`. Raises what the node raises; `UNAVAILABLE` if it does not run."""
        with self._answer("GET", path) as response:
            return json.loads(response.read())

    def post(self, path: str, document: dict[str, Any]) -> Any:
        """Send `document` to `path` and return the JSON answer."""
        with self._answer("POST", path, document) as response:
            return json.loads(response.read())

    def download(self, path: str, file: Path) -> int:
        """Write what is at `path` to `file`; returns its size in bytes. A break leaves no file."""
        partial = file.with_name(f".{file.name}.partial")
        try:
            with self._answer("GET", path) as response, partial.open("wb") as target:
                for chunk in response.iter_bytes():
                    target.write(chunk)
            partial.rename(file)
        finally:
            partial.unlink(missing_ok=True)
        return file.stat().st_size

    @contextmanager
    def _answer(self, method: str, path: str, document: dict[str, Any] | None = None) -> Iterator[httpx.Response]:
        self._check_listening()
        try:
            with self._client() as client, client.stream(method, path, json=document) as response:
                if response.status_code >= 400:
                    raise _refusal(response.read())
                yield response
        except httpx.ConnectError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, _NOT_RUNNING) from error
        except httpx.TimeoutException as error:
            raise ComityError(ErrorCode.TIMEOUT, "the node did not answer in time") from error
        except httpx.TransportError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, "the node ended while it answered") from error

    def _check_listening(self) -> None:
        """Raise `UNAVAILABLE` if nobody listens; the HTTP client would leak its socket on finding out."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError as error:
                raise ComityError(ErrorCode.UNAVAILABLE, _NOT_RUNNING) from error

    def _client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self._socket))
        return httpx.Client(
            transport=transport, base_url="http://node", headers=self._headers, timeout=TIMEOUT_S, trust_env=False
        )


def _refusal(body: bytes) -> ComityError:
    try:
        return ComityError.from_json(json.loads(body))
    except ValueError:
        return ComityError(ErrorCode.INTERNAL, "the node's answer is unreadable")
