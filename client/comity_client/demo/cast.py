"""The demo's processes: started through the `comity` command, watched, and stopped without a trace.

Rules:
1. Each process has its own session and its own log; a terminal's Ctrl-C reaches the demo alone, which stops the others.
2. Stopping is bounded: a request, then after a grace period the end of the whole process group.
3. Secrets travel over standard input, never in arguments.
4. Whatever goes wrong is told with the process's name, its log and its last lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

STOP_GRACE_S = 20.0
COMMAND_TIMEOUT_S = 120.0
LAST_LINES = 12
LINE_CHARS_MAX = 400
_PAUSE_S = 0.05


class DemoError(Exception):
    """A step did not do what it should; the text says which process said what."""


class Cast:
    """The processes of one demo. `command` is how to start `comity`."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._command = command
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start a process that stays; its output goes to its log."""
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )

    def run(self, name: str, *arguments: str, secret: str = "") -> Any:
        """Run a command to its end and return the JSON that it prints. Raises `DemoError`."""
        done = self.attempt(name, *arguments, secret=secret)
        if done.returncode != 0:
            raise DemoError(self._complaint(name, f"ended with status {done.returncode}"))
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise DemoError(self._complaint(name, "printed no JSON")) from error

    def attempt(self, name: str, *arguments: str, secret: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is. Raises `DemoError` only if it does not end."""
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                input=secret,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
                env=_environment(),
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"{name}: comity {' '.join(arguments[:2])} did not end in time") from error
        with self.log(name).open("a") as log:
            log.write(done.stderr)
            if done.returncode != 0:
                log.write(done.stdout)
        return done

    def until(self, name: str, ready: Callable[[], bool], timeout_s: float) -> float:
        """Wait until `ready()` while process `name` lives; returns the seconds it took. Raises `DemoError`."""
        begun = time.monotonic()
        process = self._processes.get(name)
        while not ready():
            if process is not None and process.poll() is not None:
                raise DemoError(self._complaint(name, f"ended with status {process.returncode}"))
            if time.monotonic() - begun > timeout_s:
                raise DemoError(self._complaint(name, f"was not ready after {timeout_s:.0f} s"))
            time.sleep(_PAUSE_S)
        return time.monotonic() - begun

    def ended(self) -> list[str]:
        """Return complaints about processes that should be running and are not."""
        return [
            self._complaint(name, f"ended with status {process.returncode}")
            for name, process in self._processes.items()
            if process.poll() is not None
        ]

    def last_words(self) -> list[str]:
        """Return what each process that runs said last."""
        running = [name for name, process in self._processes.items() if process.poll() is None]
        return [self._complaint(name, "is running") for name in running]

    def pids(self) -> dict[str, int]:
        """Return the processes' numbers by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def stop(self) -> list[str]:
        """Stop everything at once (each keeps in its journal what is unfinished); returns who had to be killed."""
        killed = []
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + STOP_GRACE_S
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                killed.append(name)
            _kill_group(process.pid)
            process.wait()
        self._processes.clear()
        return killed

    def log(self, name: str) -> Path:
        """Return where a process's words are."""
        return self.logs / f"{name}.log"

    def _complaint(self, name: str, what: str) -> str:
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()[-LAST_LINES:]
        except OSError:
            lines = []
        said = "\n".join(f"    {line[:LINE_CHARS_MAX]}" for line in lines) or "    (nothing)"
        return f"{name} {what}; its log is {self.log(name)} and ends with:\n{said}"


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def leftovers(folder: Path) -> list[int]:
    """Return the numbers of processes whose command line names `folder`; empty where /proc is not there.

    This process and those that it descends from (a shell, `make`, `timeout`) are not meant.
    """
    wanted, ours, found = os.fsencode(folder), _ancestors(), []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes() and int(entry.parent.name) not in ours:
                found.append(int(entry.parent.name))
    return sorted(found)


def stop_kept(folder: Path, pids: Iterable[int]) -> list[int]:
    """Stop processes that an earlier demo left in `folder`; a number that means another process now is left alone."""
    mine = sorted(set(pids) & set(leftovers(folder)))
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_GRACE_S
    while set(mine) & set(leftovers(folder)) and time.monotonic() < until:
        time.sleep(_PAUSE_S)
    for pid in set(mine) & set(leftovers(folder)):
        _kill_group(pid)
    return mine


def _ancestors() -> set[int]:
    """Return this process and those above it."""
    found, pid = set[int](), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            # The name, in parentheses, may hold anything; state and parent follow it (proc(5), "stat").
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COMITY_")}
    return {**kept, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
