"""Starting a stranger's code: no network, one writable folder, scrubbed environment, bounded, never orphaned.

Rules:
1. What the code can reach is listed by the caller (`readonly`, `writable`, `pass_fds`, `env`); nothing is inherited.
2. The level that was asked for is the level that is used; if this machine lacks it: `ISOLATION_TOO_WEAK`.
3. `SANDBOX` (bubblewrap): own user, pid, network, mount, ipc and uts namespaces, no capabilities, read-only system, a
   private `/tmp`, no `/sys`. `NAMESPACE` (unshare): own network and pid namespaces; terms count it as `process`.
4. All processes start from one long-lived thread: "die with parent" follows the *thread* that spawned.
5. Limits are rlimits (`launch.py`); the number of processes is limited where the level has its own user namespace.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO

from comity.wire.errors import ComityError, ErrorCode

_LAUNCHER = Path(__file__).with_name("launch.py")
_PROBE_TIMEOUT_S = 10
_TMP_BYTES = 256 << 20
# Read-only parts of the system that an interpreter and its libraries need; links such as /lib -> usr/lib stay links.
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
)
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="comity-spawn")


class IsolationLevel(IntEnum):
    """How strongly a process is cut off; larger is stronger."""

    PROCESS = 0
    NAMESPACE = 1
    SANDBOX = 2

    @property
    def term(self) -> str:
        """The value of the term `isolation` (negotiation.md section 3) that this level fulfils."""
        return "sandbox" if self is IsolationLevel.SANDBOX else "process"

    @classmethod
    def for_term(cls, term: str | None) -> IsolationLevel:
        """Return the weakest level that fulfils a term (None is no constraint).

        Raises:
            ComityError: `ISOLATION_TOO_WEAK` for a term that no level here fulfils, such as `container`.
        """
        levels = {None: cls.PROCESS, "process": cls.PROCESS, "sandbox": cls.SANDBOX}
        if term not in levels:
            raise ComityError(ErrorCode.ISOLATION_TOO_WEAK, asked=str(term))
        return levels[term]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process. `memory_bytes` bounds private memory (heap and private mappings), not shared blobs."""

    memory_bytes: int = 8 << 30
    cpu_s: int | None = None
    file_bytes: int = 8 << 30
    processes: int = 256
    open_files: int = 4096


@functools.cache
def best_isolation() -> IsolationLevel:
    """Return the strongest level that this machine offers; probed once by running `true` under it."""
    if _bwrap_flags() is not None:
        return IsolationLevel.SANDBOX
    unshare = shutil.which("unshare")
    if unshare and _runs([unshare, *_UNSHARE_FLAGS, "true"]):
        return IsolationLevel.NAMESPACE
    return IsolationLevel.PROCESS


def require(level: IsolationLevel) -> None:
    """Raise `ISOLATION_TOO_WEAK` unless this machine offers `level`."""
    if best_isolation() < level:
        raise ComityError(ErrorCode.ISOLATION_TOO_WEAK, asked=level.name.lower(), offered=best_isolation().name.lower())


def spawn(
    command: Sequence[str],
    *,
    level: IsolationLevel,
    limits: Limits,
    readonly: Sequence[Path],
    writable: Path,
    env: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    log: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` cut off at `level`; standard output and error go to `log`, standard input is empty.

    Args:
        readonly: files and folders visible at their own paths (under `SANDBOX` nothing else of the disk is).
        writable: the working directory, the only place of the disk where it may write; also its HOME.
        env: the whole environment; PATH, HOME, LANG and TMPDIR are added where missing.

    Raises:
        ComityError: `ISOLATION_TOO_WEAK` if this machine does not offer `level`.
        OSError: the command cannot be started.
    """
    require(level)
    full = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(writable), "TMPDIR": str(writable), **env}
    if level is IsolationLevel.SANDBOX:
        full["TMPDIR"] = "/tmp"  # noqa: S108 - private to the sandbox
    arguments = _wrapped(list(command), level, limits, [path.absolute() for path in readonly], writable.absolute())

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=writable,
            env=full,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )

    return _STARTER.submit(start).result()


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `spawn` started, with all its descendants, and reap it; harmless if it has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own session: pgid = pid; a pid namespace dies with its init
        process.wait()


@functools.cache
def interpreter_paths(python: Path) -> tuple[Path, ...]:
    """Return the folders that `python` needs to import what is installed for it, and this package.

    Never `sys.path` itself: its first entry is the caller's working directory, which may hold keys.
    """
    if python == Path(sys.executable):
        prefixes = [sys.prefix, sys.base_prefix]
    else:
        code = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix]))"
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False)
        if done.returncode:
            raise ComityError(ErrorCode.APP_INVALID, "the interpreter for apps does not start")
        prefixes = [str(item) for item in json.loads(done.stdout)]
    paths = [Path(prefix) for prefix in dict.fromkeys(prefixes)]
    for module in ("comity", "comity_agents"):
        found = sys.modules.get(module) or __import__(module)
        root = Path(str(found.__file__)).parents[1]
        if not any(root.is_relative_to(path) for path in paths):
            paths.append(root)  # an editable checkout: the source root of that package
    return tuple(path for path in paths if str(path) not in {"/", "/usr"})


_UNSHARE_FLAGS = ("--user", "--map-current-user", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--")


def _wrapped(
    command: list[str], level: IsolationLevel, limits: Limits, readonly: list[Path], writable: Path
) -> list[str]:
    own_users = level is not IsolationLevel.PROCESS
    bounds: dict[str, int] = {
        "data_bytes": limits.memory_bytes,
        # Address space is cheap and shared mappings use it; twice the private bound plus room for libraries and blobs.
        "address_bytes": 2 * limits.memory_bytes + (16 << 30),
        "file_bytes": limits.file_bytes,
        "open_files": limits.open_files,
        "core_bytes": 0,  # a core dump would hold the organisation's data
    }
    if limits.cpu_s is not None:
        bounds["cpu_s"] = limits.cpu_s
    if own_users:
        bounds["processes"] = limits.processes
    else:
        bounds |= {"die_with_parent": 1, "parent": os.getpid()}
    launcher = [*_launcher(bounds), *command]
    if level is IsolationLevel.SANDBOX:
        return _bwrap(launcher, [*readonly, *interpreter_paths(Path(sys.executable)), _LAUNCHER], writable)
    if level is IsolationLevel.NAMESPACE:
        unshare = [shutil.which("unshare") or "unshare", *_UNSHARE_FLAGS]
        return [*_launcher({"die_with_parent": 1, "parent": os.getpid()}), *unshare, *launcher]
    return launcher


def _launcher(settings: dict[str, int]) -> list[str]:
    return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(settings), "--"]


def _bwrap(command: list[str], readonly: list[Path], writable: Path) -> list[str]:
    arguments = [shutil.which("bwrap") or "bwrap", *(_bwrap_flags() or ())]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
    for entry in _SYSTEM:
        path = Path(entry)
        if path.is_symlink() and not path.readlink().is_absolute():
            arguments += ["--symlink", str(path.readlink()), entry]
        elif path.exists():
            arguments += ["--ro-bind", entry, entry]
    # Parents first, so that a folder bound later does not hide a file bound earlier.
    for path in sorted(set(readonly), key=lambda item: len(item.parts)):
        arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--bind", str(writable), str(writable), "--remount-ro", "/", "--chdir", str(writable)]
    return [*arguments, "--", *command]


@functools.cache
def _bwrap_flags() -> tuple[str, ...] | None:
    """Return the flags that this machine's bubblewrap accepts, the strictest first; None if it does not work."""
    bwrap = shutil.which("bwrap")
    if not bwrap:
        return None
    base = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "comity")
    # Newer versions can forbid further user namespaces inside, which hides a large part of the kernel.
    for flags in (("--unshare-user", "--disable-userns", *base), base):
        if _runs([bwrap, *flags, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--", "true"]):
            return flags
    return None


def _runs(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
