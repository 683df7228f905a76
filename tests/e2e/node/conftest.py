"""A coordinator and nodes as real processes, each with its own folder; killed and started again at will."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from harness import commands

from comity.wire.errors import ComityError
from comity_node.local import LocalApi

COMITY = Path(sys.executable).with_name("comity")
START_TIMEOUT_S = 20.0


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Return the first true value of `condition`, or fail with `what`."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except ComityError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"did not happen: {what}")


@dataclass
class Cast:
    """The processes of one consortium."""

    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    ready_cpu_s: dict[str, float] = field(default_factory=dict)
    typed: set[tuple[str, ...]] = field(default_factory=set)

    def home(self, name: str) -> Path:
        return self.folder / name

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Type a command. What is typed the first time of its kind is a process; later ones run in here."""
        if args[:2] in self.typed:
            return commands.run(*args, stdin=stdin)
        self.typed.add(args[:2])
        return subprocess.run([COMITY, *args], input=stdin, capture_output=True, text=True, timeout=60, check=False)

    def ok(self, *args: str, stdin: str = "") -> dict[str, Any]:
        done = self.run(*args, "--json", stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def refused(self, *args: str, stdin: str = "") -> dict[str, Any]:
        done = self.run(*args, "--json", stdin=stdin)
        assert done.returncode == 2, done.stdout + done.stderr
        return json.loads(done.stdout)["error"]

    def init(self, first: str) -> str:
        made = self.ok(
            "coordinator",
            "init",
            str(self.home("coordinator")),
            "--consortium=demo",
            f"--address=127.0.0.1:{self.port}",
            f"--first-member={first}",
            "--workflows=timers",
        )
        return str(made["token"])

    def start(self, *names: str) -> None:
        """Start the coordinator or nodes, all at once, and wait until each serves."""
        for serves in [self._start(name) for name in names]:
            serves()

    def _start(self, name: str) -> Callable[[], None]:
        """Start one process; what is returned waits until it serves."""
        home = self.home(name)
        command = ["coordinator", "up", str(home)] if name == "coordinator" else ["node", "up", "--home", str(home)]
        log = (self.folder / f"{name}.log").open("ab")
        start = time.monotonic()
        with log:
            process = subprocess.Popen([COMITY, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes[name] = process

        def serves() -> bool:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()[-3000:]
            if name != "coordinator":
                return bool(LocalApi(home).get("/v1/status")["pid"] == process.pid)
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        def ready() -> None:
            wait_for(serves, f"{name} ready", START_TIMEOUT_S)
            self.ready_s[name] = time.monotonic() - start
            self.ready_cpu_s[name] = _cpu_s(process.pid)

        return ready

    def kill(self, name: str) -> None:
        """`kill -9`, and gone."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop(self, name: str) -> int:
        """Ask to end; returns the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(15)

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
        return wait_for(condition, what, timeout_s)

    def api(self, name: str) -> LocalApi:
        return LocalApi(self.home(name))

    def status(self, name: str) -> dict[str, Any]:
        return self.api(name).get("/v1/status")

    def connected(self, name: str, timeout_s: float = 20.0) -> None:
        wait_for(lambda: self.status(name)["link"]["connected"], f"{name} connected", timeout_s)

    def pss_mb(self, name: str) -> float:
        """Proportional set size of a process and its children, in MB."""
        return sum(_pss_kb(pid) for pid in _family(self.processes[name].pid)) / 1_024

    def found(self, *orgs: str) -> str:
        """Join every organisation, sign the genesis, and return its name; coordinator and nodes run then."""
        token = self.init(orgs[0])
        self.start("coordinator")
        self.ok("node", "join", "-", "--home", str(self.home(orgs[0])), stdin=token + "\n")
        self.start(orgs[0])
        for org in orgs[1:]:
            token = str(self.api(orgs[0]).post("/v1/invitations", {"org": org})["token"])
            self.ok("node", "join", "-", "--home", str(self.home(org)), stdin=token + "\n")
        self.start(*orgs[1:])
        name = str(self.api(orgs[0]).get("/v1/genesis")["draft"]["name"])
        for org in orgs:
            self.api(org).post("/v1/genesis/sign", {"digest": name})
        for org in orgs:
            wait_for(lambda org=org: self.status(org)["genesis"] == name, f"{org} has the charter")
        return name


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far: what starting costs, whatever else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


@pytest.fixture
def cast() -> Iterator[Cast]:
    with tempfile.TemporaryDirectory(prefix="comity-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        made = Cast(Path(folder), port)
        yield made
        for process in made.processes.values():
            process.kill()
            process.wait(10)
        leftovers = [path for path in Path("/proc").glob("[0-9]*/cwd") if _inside(path, folder)]
        assert not leftovers


def _inside(link: Path, folder: str) -> bool:
    try:
        return str(link.readlink()).startswith(folder)
    except OSError:
        return False
