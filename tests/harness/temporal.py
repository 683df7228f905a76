"""Temporal's dev server as a process of its own, for coordinators that share it; a test may kill and start it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from comity_coordinator.workflows.server import TemporalServer, find_binary

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
WORKFLOWS_MAX = 10_000
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
DIAL = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1).close()"


class SharedTemporal:
    """One server with a folder of its own; `address` stays the same over restarts.

    Args:
        host: where it is reached.
        prefix: what goes before the commands that run where `host` is, in a network of its own. There it listens on all
            addresses: its parts call each other on loopback, whatever it listens on.
    """

    def __init__(self, host: str = LOOPBACK, prefix: tuple[str, ...] = ()) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="comity-temporal-"))
        server = TemporalServer(self._folder)
        self._prefix = prefix
        self.address = server.address.replace(LOOPBACK, host)
        listen = EVERYWHERE if prefix else LOOPBACK
        self._command = [*prefix, *(listen if word == LOOPBACK else word for word in server._command())]
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

    def workflows(self) -> dict[str, str]:
        """Return the status of each workflow of replicas, by its id (`run/…`, `negotiation/…`)."""
        command = [*self._prefix, str(find_binary()), "workflow", "list", "--address", self.address]
        command += ["--namespace", "default", "--limit", str(WORKFLOWS_MAX), "--output", "json"]
        done = subprocess.run(command, capture_output=True, timeout=START_TIMEOUT_S, check=True)
        found = json.loads(done.stdout)
        return {
            each["execution"]["workflowId"]: each["status"].removeprefix("WORKFLOW_EXECUTION_STATUS_").lower()
            for each in found
        }

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
