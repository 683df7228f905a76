"""Every database that the coordinator runs on, for tests: an empty one at each asking.

`databases` is the fixture; `BACKENDS` are the names for `pytest.mark.parametrize`. A server that is missing is a skip
that says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import postgres, torn
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

import comity_coordinator.app as comity_coordinator_app  # noqa: F401 - its capabilities define their tables
from comity.wire.errors import ComityError
from comity_coordinator.db import Database, metadata, open_database
from comity_coordinator.migrations import schema

SQLITE, POSTGRESQL, DIALECT, COCKROACH = "sqlite", "postgresql", "cockroachdb-dialect", "cockroachdb"
BACKENDS = (SQLITE, POSTGRESQL, DIALECT, COCKROACH)
COCKROACH_URL = "COMITY_TEST_COCKROACH_URL"
START_TIMEOUT_S = 60.0
# How transactions run: undisturbed, each rolled back once before (`torn.twice`), each with conflicts everywhere
# (`torn.tear`). Tests that take a database take one of these.
MODES = (
    (SQLITE, "once"),
    (SQLITE, "torn"),
    (POSTGRESQL, "once"),
    (POSTGRESQL, "twice"),
    (POSTGRESQL, "torn"),
    (DIALECT, "twice"),
    (COCKROACH, "twice"),
)


def modes(*by_default: tuple[str, str]) -> list[Any]:
    """Return the parameters of a fixture: every mode, those not in `by_default` left to the slow tests."""
    return [
        pytest.param(mode, id="-".join(mode), marks=() if mode in by_default else pytest.mark.slow) for mode in MODES
    ]


class Databases:
    """Opens databases; a server starts when the first test asks for it, and each process has databases of its own."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._stack = contextlib.ExitStack()
        self._postgres: postgres.Shared | None = None
        self._cockroach = ""
        self._made: set[str] = set()

    def fresh(self, backend: str, folder: Path) -> Database:
        """Return an open database with the whole schema and no rows; `folder` is for SQLite's file."""
        database = open_database(self.url(backend, folder))
        if backend == SQLITE:
            database.create_all()
        elif backend not in self._made:
            schema.prepare(database)
            self._made.add(backend)
        else:
            names = ", ".join(f'"{table.name}"' for table in metadata.sorted_tables if table not in schema.OWN)
            database.transact(lambda conn: conn.execute(text(f"TRUNCATE {names}")) and None)
        return database

    def in_mode(self, mode: tuple[str, str], folder: Path) -> Database:
        """As `fresh`, in one of `MODES`."""
        backend, how = mode
        database = self.fresh(backend, folder)
        if how != "once":
            {"twice": torn.twice, "torn": torn.tear}[how](database)
        return database

    def url(self, backend: str, folder: Path) -> str:
        """Return the URL of this process's database of `backend`; for SQLite of a file in `folder`."""
        if backend == SQLITE:
            return f"sqlite:///{folder / 'comity.db'}"
        if backend == COCKROACH:
            return self._cockroach_url()
        return self.postgres_url(backend, shim=backend == DIALECT)

    def postgres_url(self, name: str, *, shim: bool = False) -> str:
        """Return the URL of this process's PostgreSQL database `name`, made empty at the first asking."""
        server, name = self.server(), self._name(name)
        if name not in self._made:
            server.create_database(name, shim=shim)
            self._made.add(name)
        return server.url(name, "cockroachdb" if shim else "postgresql")

    def server(self) -> postgres.Shared:
        """Return the run's PostgreSQL, or skip."""
        if self._postgres is None:
            if postgres.installed() is None:
                pytest.skip("PostgreSQL is not installed (make test tries: apt package postgresql)")
            self._postgres = self._stack.enter_context(postgres.shared(self._base))
        return self._postgres

    def close(self) -> None:
        """Leave the servers."""
        self._stack.close()

    def _name(self, backend: str) -> str:
        return f"{backend}-{os.environ.get('PYTEST_XDIST_WORKER', 'one')}"

    def _cockroach_url(self) -> str:
        if not self._cockroach:
            given = os.environ.get(COCKROACH_URL, "")
            if not given and shutil.which("cockroach") is None:
                pytest.skip(f"no CockroachDB here: neither {COCKROACH_URL} nor the program cockroach")
            server = given or self._stack.enter_context(_cockroach())
            name = self._name("comity_test").replace("-", "_")
            _replace_database(server, name)
            self._stack.callback(_drop_database, server, name)
            self._cockroach = make_url(server).set(database=name).render_as_string(hide_password=False)
        return self._cockroach


def of_run(tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Return the databases of this run; the fixture `databases` closes them."""
    base = tmp_path_factory.getbasetemp()
    return Databases(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@contextlib.contextmanager
def _cockroach() -> Iterator[str]:
    """One node in memory, without certificates, on loopback: for tests only."""
    port = postgres.free_port()
    command = ["cockroach", "start-single-node", "--insecure", "--store=type=mem,size=512MiB"]
    command += [f"--listen-addr=127.0.0.1:{port}", f"--http-addr=127.0.0.1:{postgres.free_port()}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"cockroachdb+psycopg://root@127.0.0.1:{port}/defaultdb?sslmode=disable"
    try:
        until = time.monotonic() + START_TIMEOUT_S
        while True:  # bounded by `until`
            try:
                _ask(url, "SELECT 1")
                break
            except (ComityError, DBAPIError):
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def _replace_database(url: str, name: str) -> None:
    _drop_database(url, name)
    _ask(url, f"CREATE DATABASE {name}")


def _drop_database(url: str, name: str) -> None:
    _ask(url, f"DROP DATABASE IF EXISTS {name} CASCADE")


def _ask(url: str, statement: str) -> None:
    database = open_database(url)
    try:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text(statement))
    finally:
        database.close()
