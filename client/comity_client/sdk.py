"""The clients: `Node` and `AsyncNode` for an organisation's own node, `Coordinator` for the operator's view.

with Node(Path("~/.comity").expanduser()) as node:
    proposed = node.propose({"app": "/apps/triage", "purpose": "research", "dataset": "patients"})
    for event in node.events(run):
        print(event["kind"])
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

from comity.wire.errors import ComityError, ErrorCode
from comity_client.calls import (
    CHANGES_PATH,
    EXPORT_PATH,
    CoordinatorRoutes,
    NodeRoutes,
    events_path,
    result_path,
    sum_path,
)
from comity_client.documents import RunEvent
from comity_client.transport import AsyncTransport, Endpoint, SyncTransport

DEFAULT_HOME = Path.home() / ".comity"
WATCH_TIMEOUT_S = 7 * 86_400.0
RECONNECT_S = 1.0
LAST_EVENT = "closed"
SETTINGS_BYTES_MAX = 64 * 1024
_AGAIN = frozenset({ErrorCode.TIMEOUT, ErrorCode.UNAVAILABLE})


def node_endpoint(home: Path) -> Endpoint:
    """Return where the node of `home` answers."""
    return Endpoint(
        url="http://node",
        uds=home / "api.sock",
        token_file=home / "api.token",
        hint=f"is the node running? Start it with: comity node up --home {home}",
    )


class Node(NodeRoutes, SyncTransport):
    """The local API of the node in `home`. Every method raises `ComityError` and nothing else for a failure."""

    def __init__(self, home: Path, endpoint: Endpoint | None = None) -> None:
        """`endpoint` is where the node answers, if not at the socket in `home` (`comity_client.where.remote`)."""
        super().__init__(endpoint or node_endpoint(home))
        self.home = home

    def events(self, run: str, after: int = 0, timeout_s: float = WATCH_TIMEOUT_S) -> Iterator[RunEvent]:
        """Yield a run's events behind number `after` until its last; a broken stream is taken up where it broke.

        Raises:
            ComityError: `NOT_FOUND`, `TIMEOUT` after `timeout_s` seconds, `UNAVAILABLE` if the node stays away.
        """
        progress = _Progress(after, timeout_s)
        while True:
            try:
                for event in self.stream_events(events_path(run), {"after": progress.after}, progress.check):
                    if progress.take(event):
                        yield cast(RunEvent, event)
                    if progress.ended:
                        return
            except ComityError as error:
                progress.check()
                progress.broken(error)
            progress.check()
            time.sleep(RECONNECT_S)

    def fetch_result(self, run: str, target: Path) -> int:
        """Write a run's result to `target`; returns its size in bytes."""
        return self.download(result_path(run), target)

    def fetch_sum(self, run: str, round_number: int, target: Path) -> int:
        """Write the mean of a round that this organisation opened beside the lead; returns its size in bytes."""
        return self.download(sum_path(run, round_number), target)

    def export_ledger(self, target: Path) -> int:
        """Write the whole ledger to `target` for `comity ledger verify`; returns its size in bytes."""
        return self.download(EXPORT_PATH, target)


class AsyncNode(NodeRoutes, AsyncTransport):
    """As `Node`, for asyncio."""

    def __init__(self, home: Path, endpoint: Endpoint | None = None) -> None:
        """`endpoint` is where the node answers, if not at the socket in `home` (`comity_client.where.remote`)."""
        super().__init__(endpoint or node_endpoint(home))
        self.home = home

    async def events(self, run: str, after: int = 0, timeout_s: float = WATCH_TIMEOUT_S) -> AsyncIterator[RunEvent]:
        """As `Node.events`."""
        progress = _Progress(after, timeout_s)
        while True:
            try:
                async for event in self.stream_events(events_path(run), {"after": progress.after}, progress.check):
                    if progress.take(event):
                        yield cast(RunEvent, event)
                    if progress.ended:
                        return
            except ComityError as error:
                progress.check()
                progress.broken(error)
            progress.check()
            await asyncio.sleep(RECONNECT_S)

    async def fetch_result(self, run: str, target: Path) -> int:
        """As `Node.fetch_result`."""
        return await self.download(result_path(run), target)

    async def fetch_sum(self, run: str, round_number: int, target: Path) -> int:
        """As `Node.fetch_sum`."""
        return await self.download(sum_path(run, round_number), target)

    async def export_ledger(self, target: Path) -> int:
        """As `Node.export_ledger`."""
        return await self.download(EXPORT_PATH, target)


class Coordinator(CoordinatorRoutes, SyncTransport):
    """The coordinator's REST API on its own machine, read-only."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        super().__init__(coordinator_endpoint(home, url))
        self.home = home

    def changes(self) -> Iterator[dict[str, Any]]:
        """Yield what changes from now on (ids and states), for as long as the coordinator answers."""
        yield from self.stream_events(CHANGES_PATH, {})

    def export_ledger(self, target: Path) -> int:
        """Write the whole ledger to `target`; returns its size in bytes."""
        return self.download(EXPORT_PATH, target)


class AsyncCoordinator(CoordinatorRoutes, AsyncTransport):
    """As `Coordinator`, for asyncio."""

    def __init__(self, home: Path, url: str | None = None) -> None:
        super().__init__(coordinator_endpoint(home, url))
        self.home = home

    async def changes(self) -> AsyncIterator[dict[str, Any]]:
        """As `Coordinator.changes`."""
        async for change in self.stream_events(CHANGES_PATH, {}):
            yield change

    async def export_ledger(self, target: Path) -> int:
        """As `Coordinator.export_ledger`."""
        return await self.download(EXPORT_PATH, target)


def coordinator_endpoint(home: Path, url: str | None = None) -> Endpoint:
    """Return where the coordinator of `home` answers; `url` is what it wrote down unless given.

    Raises:
        ComityError: `NOT_FOUND` if there is no coordinator in `home`, `MALFORMED` if `ready.json` is damaged.
    """
    hint = f"is the coordinator running? Start it with: comity coordinator up {home}"
    return Endpoint(url=url or _rest_url(home), uds=None, token_file=home / "api.token", hint=hint)


def _rest_url(home: Path) -> str:
    """Return the address that a running coordinator wrote down."""
    try:
        with (home / "ready.json").open("rb") as file:
            port = int(json.loads(file.read(SETTINGS_BYTES_MAX))["rest_port"])
    except FileNotFoundError as error:
        detail = f"no coordinator has run in {home} yet: comity coordinator up {home}"
        raise ComityError(ErrorCode.NOT_FOUND, detail) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ComityError(ErrorCode.MALFORMED, "ready.json does not name the REST port") from error
    return f"http://127.0.0.1:{port}"


class _Progress:
    """How far a watcher has come: events once each and in order, and a bound on waiting."""

    def __init__(self, after: int, timeout_s: float) -> None:
        self.after = after
        self.ended = False
        self._until = time.monotonic() + timeout_s
        self._silent_since = time.monotonic()

    def take(self, event: dict[str, object]) -> bool:
        """Count an event; False if it was seen before."""
        number = event.get("no")
        if not isinstance(number, int) or number <= self.after:
            return False
        self.after = number
        self._silent_since = time.monotonic()
        self.ended = event.get("kind") == LAST_EVENT
        return True

    def broken(self, error: ComityError) -> None:
        """Go on after a broken stream; raise what no reconnection heals, or what has lasted for a minute."""
        if error.code not in _AGAIN or (
            error.code is ErrorCode.UNAVAILABLE and time.monotonic() - self._silent_since > 60
        ):
            raise error

    def check(self) -> None:
        """Raise `TIMEOUT` at the end of the watcher's patience."""
        if time.monotonic() > self._until:
            raise ComityError(ErrorCode.TIMEOUT, "the run did not end in time")
