"""HTTP beneath the SDK: one place for addresses, tokens, timeouts, errors and server-sent events.

Rules:
1. The token is read from its file for each client, goes into one header and nowhere else.
2. Every failure is a `ComityError`: problem+json becomes the error it was, a dead socket `UNAVAILABLE`, silence
   `TIMEOUT`.
3. Nothing waits without a bound, and no answer is read without one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx

from comity.wire.errors import ComityError, ErrorCode
from comity_client.calls import LONG_ANSWER_TIMEOUT_S, Call

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
# The servers send a comment at least every 15 s; a stream that is silent for longer is dead.
EVENT_SILENCE_S = 60.0
ANSWER_BYTES_MAX = 64 << 20
EVENT_BYTES_MAX = 1 << 20
DOWNLOAD_BYTES_MAX = 8 << 30
TOKEN_BYTES_MAX = 16 << 10  # an ID token with many groups is the largest
_PROBLEM = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server answers: a Unix socket (`uds`) or a URL, and the file that holds the token, if one is needed.

    `hint` is what to try when nobody answers there; `ca` what the certificate of an https URL is checked against.
    """

    url: str
    uds: Path | None
    token_file: Path | None
    hint: str
    ca: Path | None = None

    def with_token(self, token_file: Path) -> Endpoint:
        """Return the same place with credentials from `token_file`."""
        return replace(self, token_file=token_file)

    def tls(self) -> ssl.SSLContext | bool:
        """Return how the server's certificate is checked: TLS 1.3. Raises `KEY_UNREADABLE` for the CA's file."""
        if not self.url.startswith("https:"):
            return True
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ssl.SSLError):
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the certificate file of --ca cannot be read") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def headers(self) -> dict[str, str]:
        """Return the authorisation header. Raises `NOT_FOUND` if there is no token yet, `KEY_UNREADABLE` otherwise."""
        if self.token_file is None:
            return {}
        name = self.token_file.name
        try:
            with self.token_file.open("rb") as file:
                token = file.read(TOKEN_BYTES_MAX).strip()
        except FileNotFoundError:
            raise ComityError(ErrorCode.NOT_FOUND, f"no {name} in {self.token_file.parent}: {self.hint}") from None
        except OSError:
            raise ComityError(ErrorCode.KEY_UNREADABLE, f"{name} cannot be read by this user") from None
        return {"Authorization": f"Bearer {token.decode('ascii', 'replace')}"}

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """Turn what httpx raises into the catalogue's errors."""
        # httpcore leaves its socket to the garbage collector when there is nobody to connect to.
        if self.uds is not None and _nobody_at(self.uds):
            raise ComityError(ErrorCode.UNAVAILABLE, f"nobody answers: {self.hint}")
        try:
            yield
        except httpx.TimeoutException as error:
            raise ComityError(ErrorCode.TIMEOUT, "no answer in time") from error
        except httpx.TransportError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, f"nobody answers: {self.hint}") from error


def _nobody_at(path: Path) -> bool:
    """Whether no process listens at a Unix socket: it is missing, or its process was killed and left it behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False  # whatever it is, the request itself names it
    return False


def timeouts(read_s: float) -> httpx.Timeout:
    """Return the bounds on each wait of one request."""
    return httpx.Timeout(read_s, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)


def error_of(status: int, media_type: str, data: bytes) -> ComityError:
    """Return the error that an answer with a failing status stands for."""
    if media_type.partition(";")[0].strip() == _PROBLEM:
        with contextlib.suppress(ValueError, RecursionError):
            return ComityError.from_json(json.loads(data))
    if status == httpx.codes.NOT_FOUND:
        return ComityError(ErrorCode.UNSUPPORTED, "the server does not know this route", status=status)
    return ComityError(ErrorCode.INTERNAL, "the server failed without saying why", status=status)


def answer_of(response: httpx.Response) -> Any:
    """Return the JSON of an answer. Raises the error that it stands for."""
    if not response.is_success:
        raise error_of(response.status_code, response.headers.get("content-type", ""), response.content)
    if len(response.content) > ANSWER_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "the answer", limit_bytes=ANSWER_BYTES_MAX)
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise ComityError(ErrorCode.MALFORMED, "the server's answer is not JSON") from error


class EventReader:
    """Server-sent events from lines (WHATWG HTML, section 9.2.6), pure: feed lines, get events."""

    def __init__(self) -> None:
        self._data: list[str] = []
        self._size = 0

    def feed(self, line: str) -> dict[str, Any] | None:
        """Take one line without its end; return the event that it completes. Raises `TOO_LARGE`, `MALFORMED`."""
        if not line:
            text, self._data, self._size = "\n".join(self._data), [], 0
            return self._event(text) if text else None
        name, _, value = line.partition(":")
        if name == "data":
            self._size += len(value)
            if self._size > EVENT_BYTES_MAX:
                raise ComityError(ErrorCode.TOO_LARGE, "an event", limit_bytes=EVENT_BYTES_MAX)
            self._data.append(value.removeprefix(" "))
        return None

    @staticmethod
    def _event(text: str) -> dict[str, Any]:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ComityError(ErrorCode.MALFORMED, "an event is not JSON") from error
        if not isinstance(event, dict):
            raise ComityError(ErrorCode.MALFORMED, "an event is not an object")
        return event


class SyncTransport:
    """A client whose calls return when the answer is there. Use as a context manager, or `close` it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        uds = None if endpoint.uds is None else str(endpoint.uds)
        self._http = httpx.Client(
            base_url=endpoint.url,
            transport=httpx.HTTPTransport(uds=uds, verify=endpoint.tls()),
            headers=endpoint.headers(),
            trust_env=False,
        )

    def send(self, call: Call[T]) -> T:
        """Send one call and return its answer. Raises `ComityError`."""
        with self._endpoint.failures():
            response = self._http.request(
                call.method, call.path, json=call.body, params=dict(call.query), timeout=timeouts(call.timeout_s)
            )
        return cast(T, answer_of(response))

    def stream_events(
        self, path: str, query: dict[str, str | int], on_line: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of one connection until the server ends it.

        `on_line` is called at each line, the servers' signs of life among them; what it raises ends the watch.
        """
        reader = EventReader()
        bounds = timeouts(EVENT_SILENCE_S)
        with self._endpoint.failures(), self._http.stream("GET", path, params=query, timeout=bounds) as response:
            if not response.is_success:
                response.read()
                answer_of(response)
            for line in response.iter_lines():
                on_line()
                event = reader.feed(line)
                if event is not None:
                    yield event

    def download(self, path: str, target: Path) -> int:
        """Write the answer to `target`, which appears only when it is complete; returns its size in bytes."""
        bounds = timeouts(LONG_ANSWER_TIMEOUT_S)
        with self._endpoint.failures(), self._http.stream("GET", path, timeout=bounds) as response:
            if not response.is_success:
                response.read()
                answer_of(response)
            size_bytes = 0
            with _file(target) as file:
                for part in response.iter_bytes():
                    size_bytes = _bounded(size_bytes + file.write(part))
        return size_bytes

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncTransport:
    """A client whose calls are awaited. Use as an asynchronous context manager, or `close` it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        uds = None if endpoint.uds is None else str(endpoint.uds)
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            transport=httpx.AsyncHTTPTransport(uds=uds, verify=endpoint.tls()),
            headers=endpoint.headers(),
            trust_env=False,
        )

    async def send(self, call: Call[T]) -> T:
        """Send one call and return its answer. Raises `ComityError`."""
        with self._endpoint.failures():
            response = await self._http.request(
                call.method, call.path, json=call.body, params=dict(call.query), timeout=timeouts(call.timeout_s)
            )
        return cast(T, answer_of(response))

    async def stream_events(
        self, path: str, query: dict[str, str | int], on_line: Callable[[], None] = lambda: None
    ) -> AsyncIterator[dict[str, Any]]:
        """As `SyncTransport.stream_events`."""
        reader = EventReader()
        bounds = timeouts(EVENT_SILENCE_S)
        with self._endpoint.failures():
            async with self._http.stream("GET", path, params=query, timeout=bounds) as response:
                if not response.is_success:
                    await response.aread()
                    answer_of(response)
                async for line in response.aiter_lines():
                    on_line()
                    event = reader.feed(line)
                    if event is not None:
                        yield event

    async def download(self, path: str, target: Path) -> int:
        """Write the answer to `target`, which appears only when it is complete; returns its size in bytes."""
        bounds = timeouts(LONG_ANSWER_TIMEOUT_S)
        with self._endpoint.failures():
            async with self._http.stream("GET", path, timeout=bounds) as response:
                if not response.is_success:
                    await response.aread()
                    answer_of(response)
                size_bytes = 0
                with _file(target) as file:
                    async for part in response.aiter_bytes():
                        size_bytes = _bounded(size_bytes + file.write(part))
        return size_bytes

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


@contextlib.contextmanager
def _file(target: Path) -> Iterator[Any]:
    """Write beside `target`, 0600, and put it into place when everything is there."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            yield file
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _bounded(size_bytes: int) -> int:
    if size_bytes > DOWNLOAD_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "the download", limit_bytes=DOWNLOAD_BYTES_MAX)
    return size_bytes
