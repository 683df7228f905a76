"""A real PostgreSQL for tests: found on this machine, started in a folder of its own, stopped by its number.

Rules
1. PostgreSQL refuses to run as root: then it runs as its package's user, or as nobody, who own the folder.
2. It listens on a socket in that folder; on loopback too, behind a password, if `tcp` is asked for.
3. One server for a whole run of pytest (`shared`): its keeper, a process of its own, stops it and removes the folder
   when the last process that uses it has gone, however that one ended. It is told not to wait for the disk; a server
   that a test kills must be `durable`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOOK_EVERY_S = 0.25
# What the dialect of CockroachDB asks first; PostgreSQL's own answer stands behind this one in the search path.
SHIM = (
    "CREATE SCHEMA crdb_shim",
    """CREATE FUNCTION crdb_shim.version() RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT 'CockroachDB CCL v25.2.4 (x86_64-pc-linux-gnu, built 2025/08/01 00:00:00, go1.23.12)'::text $$""",
)
SHIM_PATH = "options=-csearch_path%3Dpublic%2Ccrdb_shim%2Cpg_catalog"
_LAX = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
_PR_SET_PDEATHSIG = 1


def installed() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest if there are several."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    return next((path for path in found if (path / "postgres").exists() and (path / "initdb").exists()), None)


class PostgresServer:
    """One server with a folder of its own. `start`, then `create_database` and `url`; `stop` in the end.

    Args:
        durable: whether a commit waits for the disk, so that a killed server keeps it.
        tcp: whether it listens on `host` too, at `port`.
        space: the network namespace it runs in, as `/run/netns` names it with its folder; by default this one.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        durable: bool = True,
        tcp: bool = False,
        host: str = "127.0.0.1",
        space: str = "",
    ) -> None:
        programs = installed()
        if programs is None:
            raise FileNotFoundError("PostgreSQL is not installed")
        self._programs = programs
        self._account = _account()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="comity-pg-"))
        if self._account:
            os.chown(self.folder, *self._account)
        self.durable, self.port = durable, free_port() if tcp else 5432
        self._tcp, self.host, self._space = tcp, host, space
        self._password = secrets.token_urlsafe(18)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, die_with_me: bool = False) -> None:
        """Start it, or start it again after `kill` or `stop(keep=True)`; returns when it answers."""
        data = self.folder / "data"
        if not data.exists():
            self._initialise(data)
        settings = [f"unix_socket_directories={self.folder}", f"listen_addresses={self.host if self._tcp else ''}"]
        settings += [f"port={self.port}", "max_connections=200", "logging_collector=off", "log_min_messages=fatal"]
        settings += [] if self.durable else _LAX
        command = [str(self._programs / "postgres"), "-D", str(data)]
        for each in settings:
            command += ["-c", each]
        hook = _die_with_parent if die_with_me and sys.platform == "linux" else None
        self.process = self._run(command, hook)
        until = time.monotonic() + START_TIMEOUT_S
        while True:  # bounded by `until`
            try:
                psycopg.connect(self.dsn("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)
            if self.process.poll() is not None:  # children of a server that was killed held its memory still
                self.process = self._run(command, hook)

    def stop(self, *, keep: bool = False) -> None:
        """End it in order: open connections are cut. The folder goes unless `keep`."""
        self._end(signal.SIGINT)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End it as a crash does: `start` recovers what was committed, if it is `durable`."""
        self._end(signal.SIGKILL)

    def dsn(self, database: str) -> str:
        """Return what psycopg connects with, as the server's owner over its socket."""
        return _dsn(self.folder, self.port, database)

    def url(self, database: str, backend: str = "postgresql") -> str:
        """Return the URL for a coordinator; `backend` is postgresql or cockroachdb (a database made with `shim`)."""
        if self._tcp:
            query = SHIM_PATH if backend == "cockroachdb" else ""
            return f"{backend}+psycopg://comity:{self._password}@{self.host}:{self.port}/{database}?{query}"
        return socket_url(self.folder, self.port, database, backend)

    def create_database(self, name: str, *, shim: bool = False) -> None:
        """Make an empty database."""
        create_database(self.dsn("postgres"), self.dsn(name), name, shim=shim)

    def _initialise(self, data: Path) -> None:
        password = self.folder / "password"
        password.write_text(self._password)
        password.chmod(0o600)
        if self._account:
            os.chown(password, *self._account)
        command = [str(self._programs / "initdb"), "-D", str(data), "--username=comity", "--encoding=UTF8"]
        command += ["--locale=C", "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        command += [] if self.durable else ["--no-sync"]
        if self._run(command, None).wait(START_TIMEOUT_S):
            raise RuntimeError((self.folder / "log").read_text()[-2000:])
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.99.0.0/24 scram-sha-256\n" * bool(self._space))

    def _run(self, command: list[str], hook: object) -> subprocess.Popen[bytes]:
        user, group = self._account or (None, None)
        if self._space:  # entering takes root, which it lays down there
            own = [] if user is None else [f"--setuid={user}", f"--setgid={group}"]
            command, user, group = ["nsenter", f"--net={self._space}", *own, *command], None, None
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                group=group,
                extra_groups=[] if user is not None else None,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
                preexec_fn=hook,  # type: ignore[arg-type]  # noqa: PLW1509 - the keeper has no threads
            )

    def _end(self, number: int) -> None:
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(STOP_TIMEOUT_S)


def create_database(server: str, dsn: str, name: str, *, shim: bool = False) -> None:
    """Make an empty database of the server at `server`; `dsn` reaches the new one."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    if shim:
        with psycopg.connect(dsn, autocommit=True) as conn:
            for statement in SHIM:
                conn.execute(statement)  # type: ignore[call-overload]


def socket_url(folder: Path, port: int, database: str, backend: str = "postgresql") -> str:
    """Return the URL of a database behind the socket in `folder`."""
    query = f"host={folder}&port={port}" + (f"&{SHIM_PATH}" if backend == "cockroachdb" else "")
    return f"{backend}+psycopg://comity@/{database}?{query}"


class Shared:
    """The server that all processes of one run of pytest use; `create_database`, `url`, `dsn` as above."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def create_database(self, name: str, *, shim: bool = False) -> None:
        """Make an empty database."""
        create_database(self.dsn("postgres"), self.dsn(name), name, shim=shim)

    def url(self, database: str, backend: str = "postgresql") -> str:
        """Return the URL for a coordinator."""
        return socket_url(self.folder, self.port, database, backend)

    def dsn(self, database: str) -> str:
        """Return what psycopg connects with."""
        return _dsn(self.folder, self.port, database)


@contextlib.contextmanager
def shared(base: Path) -> Iterator[Shared]:
    """Use the run's server, started by whoever comes first; `base` is a folder that all processes of the run know."""
    place = base / "postgres"
    place.mkdir(exist_ok=True)
    mine, said = place / f"user-{os.getpid()}", place / "ready.json"
    with _locked(place):
        mine.touch()
        if not said.exists():
            subprocess.run([sys.executable, __file__, str(place)], check=True)  # leaves the keeper behind
            until = time.monotonic() + START_TIMEOUT_S
            while not said.exists():
                if time.monotonic() > until:
                    raise RuntimeError("PostgreSQL did not start")
                time.sleep(0.02)
    found = json.loads(said.read_text())
    try:
        yield Shared(Path(found["folder"]), found["port"])
    finally:
        mine.unlink()
        if not list(place.glob("user-*")):
            until = time.monotonic() + STOP_TIMEOUT_S
            while said.exists() and time.monotonic() < until:
                time.sleep(0.02)


def _keep(place: Path) -> None:
    """Run the server while anybody uses it."""
    server = PostgresServer(durable=False)
    try:
        server.start(die_with_me=True)
        beside = place / "ready.new"
        beside.write_text(json.dumps({"folder": str(server.folder), "port": server.port, "keeper": os.getpid()}))
        beside.rename(place / "ready.json")
        while True:  # ends with the last user
            time.sleep(LOOK_EVERY_S)
            with _locked(place):
                users = [path for path in place.glob("user-*") if _alive(int(path.name.removeprefix("user-")))]
                if not users:
                    (place / "ready.json").unlink()
                    return
    finally:
        server.stop()


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _account() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    return 65534, 65534


def _dsn(folder: Path, port: int, database: str) -> str:
    return f"host={folder} port={port} user=comity dbname={database}"


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # the keeper is nobody's child: whoever started it need not be the last to go
    os.setsid()
    _keep(Path(sys.argv[1]))
