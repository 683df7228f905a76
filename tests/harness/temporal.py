"""Temporal's dev server as a process of its own, for coordinators that share it; a test may kill and start it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from comity_coordinator.workflows.server import TemporalServer

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOOPBACK = "127.0.0.1"
DIAL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()"


class SharedTemporal:
    """One server with a folder of its own; `address` stays the same over restarts.

    Args:
        host: where it listens.
        prefix: what goes before the commands that run where `host` is.
    """

    def __init__(self, host: str = LOOPBACK, prefix: tuple[str, ...] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="comity-temporal-"))
        server = TemporalServer(self._folder)
        self._prefix = prefix
        self.address = server.address.replace(LOOPBACK, host)
        self._command = [*prefix, *(host if word == LOOPBACK else word for word in server._command())]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; returns when its port answers."""
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        until = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > until or self.process.poll() is not None:
                raise OSError("the engine does not answer")
            time.sleep(0.05)

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        if self._prefix:
            dial = [*self._prefix, sys.executable, "-c", DIAL, host, port]
            return subprocess.run(dial, stderr=subprocess.DEVNULL, timeout=START_TIMEOUT_S, check=False).returncode == 0
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """`kill -9`; its file keeps what was committed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            self.process = None

    def stop(self) -> None:
        """End it; its folder goes."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None
        shutil.rmtree(self._folder, ignore_errors=True)
