"""Temporal's dev server as a process of its own, for coordinators that share it; a test may kill and start it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from comity_coordinator.workflows.server import TemporalServer

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class SharedTemporal:
    """One server with a folder of its own; `address` stays the same over restarts."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="comity-temporal-"))
        server = TemporalServer(self._folder)
        self.address = server.address
        self._command = server._command()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again; returns when its port answers."""
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        host, _, port = self.address.rpartition(":")
        until = time.monotonic() + START_TIMEOUT_S
        while True:  # bounded by `until`
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
            time.sleep(0.05)

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
