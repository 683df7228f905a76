"""The processes of a test as the kernel shows them: who is whose child, and which part each one plays."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

CLIENT_HOST, SERVER_HOST = b"comity_agents.flower.client_host", b"comity_agents.flower.server_host"


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its number, its parent's, its command line as /proc has it."""

    pid: int
    parent: int
    command: bytes


def family(pid: int) -> list[Process]:
    """Return the living descendants of `pid`, itself first."""
    table = {each.pid: each for each in everything()}
    children: dict[int, list[Process]] = {}
    for each in table.values():
        children.setdefault(each.parent, []).append(each)
    found, waiting = [], [table[pid]] if pid in table else []
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting.extend(children.get(each.pid, ()))
    return found


def everything() -> list[Process]:
    """Return every process that /proc shows."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (entry / "stat").read_bytes()
            state, parent = stat.rpartition(b") ")[2].split()[:2]
            if state != b"Z":
                found.append(Process(int(entry.name), int(parent), (entry / "cmdline").read_bytes()))
    return found


def playing(pid: int, part: str) -> int | None:
    """Return the descendant of `pid` that plays `part`: `worker`, `serverapp` or `temporal`; None if there is none."""
    for each in family(pid)[1:]:
        words = each.command.split(b"\x00")
        if part == "temporal":
            if words[0].rpartition(b"/")[2] == b"temporal" and b"start-dev" in words:
                return each.pid
        elif Path(os.fsdecode(words[0])).name.startswith("python"):
            wanted = CLIENT_HOST if part == "worker" else SERVER_HOST
            if wanted in words and b"--" not in words:  # not the launcher that is about to become it
                return each.pid
    return None


def kill(pid: int) -> bool:
    """`kill -9`; False if it was gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def living_in(folder: Path) -> list[int]:
    """Return processes whose command line or working folder is in `folder`; neither this one nor its ancestors."""
    found, table = [], {each.pid: each for each in everything()}
    above = table.pop(os.getpid(), None)
    while above is not None:
        above = table.pop(above.parent, None)
    for each in table.values():
        cwd = ""
        with contextlib.suppress(OSError):
            cwd = str(Path(f"/proc/{each.pid}/cwd").readlink())
        if os.fsencode(folder) in each.command or cwd.startswith(str(folder)):
            found.append(each.pid)
    return sorted(found)
