"""A network of its own for the processes of a test: one network namespace each, joined by a router that can drop.

Rules:
1. Each name gets a namespace with one address (`host`); packets between two of them pass a router, a namespace too,
   that has no way out of this machine. What starts in one is prefixed by `prefix`; files and Unix sockets are as ever.
2. `cut` makes the router drop every packet between two names, both ways and without a word, of connections that stand
   as well; `join` ends that.
3. Names carry the number of the process that made them; `close` removes them, at the latest when that process ends, and
   whatever a process left behind that was killed is removed by the next one.
4. Root and iproute2 are needed: `missing` says what is not there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import threading
from pathlib import Path

PREFIX = "comity-faults"
ROUTER = "10.99.0.254"
COMMAND_TIMEOUT_S = 10.0
NAMES_MAX = 100


def missing() -> str:
    """Return why there can be no namespaces here, or "". Tries with one."""
    if os.geteuid() != 0:
        return "not root"
    lacking = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
    if lacking:
        return f"{' and '.join(lacking)} not installed"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("netns", "del", probe)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernel refuses: {error}"
    return ""


class Namespaces:
    """The namespaces of `names`, up at once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        assert len(names) <= NAMES_MAX
        _sweep()
        self._places = {name: place for place, name in enumerate(names, 1)}
        self._cuts: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        atexit.register(self.close)
        _ip("netns", "add", self._space(0))
        for name, place in self._places.items():
            space, host, wire = self._space(place), self.host(name), f"to{place}"
            _ip("netns", "add", space)
            _ip("link", "add", wire, "netns", self._space(0), "type", "veth", "peer", "name", "net0", "netns", space)
            _ip("-n", self._space(0), "addr", "add", f"{ROUTER}/32", "dev", wire)
            _ip("-n", self._space(0), "link", "set", wire, "up")
            _ip("-n", self._space(0), "route", "add", host, "dev", wire)
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", f"{host}/32", "dev", "net0")
            _ip("-n", space, "link", "set", "net0", "up")
            _ip("-n", space, "route", "add", ROUTER, "dev", "net0")
            _ip("-n", space, "route", "add", "default", "via", ROUTER)
        _run("nsenter", f"--net=/run/netns/{self._space(0)}", "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def host(self, name: str) -> str:
        """Return the address of a name."""
        return f"10.99.0.{self._places[name]}"

    def prefix(self, name: str) -> tuple[str, ...]:
        """Return what goes before a command so that it runs in the namespace, as the same process."""
        return ("nsenter", f"--net={self.space(name)}")

    def space(self, name: str) -> str:
        """Return the file that stands for the namespace."""
        return f"/run/netns/{self._space(self._places[name])}"

    def cut(self, one: str, other: str) -> None:
        """Drop what goes between the two from now on."""
        with self._lock:
            self._rule("add", one, other)
            self._cuts.add((one, other))

    def join(self) -> None:
        """Let everything through again."""
        with self._lock:
            while self._cuts:
                self._rule("del", *self._cuts.pop())

    def close(self) -> None:
        """Remove all of it."""
        atexit.unregister(self.close)
        for place in (*self._places.values(), 0):
            if Path(f"/run/netns/{self._space(place)}").exists():
                _ip("netns", "del", self._space(place))

    def _rule(self, verb: str, one: str, other: str) -> None:
        for source, sink in ((one, other), (other, one)):
            rule = ("from", self.host(source), "to", self.host(sink), "blackhole")
            _ip("-n", self._space(0), "rule", verb, *rule)

    def _space(self, place: int) -> str:
        return f"{PREFIX}-{os.getpid()}-{place}"


def _sweep() -> None:
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        maker = path.name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if maker.isdigit() and not Path(f"/proc/{maker}").exists():
            _ip("netns", "del", path.name)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr[:500].strip()}")
