"""The schema's history on every database: it leads to what the code defines, once, whoever comes first."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, text
from typer.testing import CliRunner

import comity_coordinator.app as _app  # noqa: F401 - its capabilities define their tables
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import cli, setup
from comity_coordinator.db import Database, metadata, open_database
from comity_coordinator.migrations import schema

BACKENDS = ("sqlite", "postgresql", "cockroachdb-dialect")
_count = itertools.count()


@pytest.fixture(params=BACKENDS)
def url(request: Any, databases: Any, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(databases.postgres_url(f"empty-{next(_count)}", shim=request.param == "cockroachdb-dialect"))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = open_database(url)
    yield opened
    opened.close()


def test_the_history_leads_to_what_the_code_defines(database: Database) -> None:
    assert schema.prepare(database) == tuple(schema.REVISIONS)
    assert schema.prepare(database) == ()
    if database.engine.dialect.name != "cockroachdb":  # its dialect reads catalogues that PostgreSQL does not have
        with database.engine.connect() as conn:
            options = {"compare_type": True, "compare_server_default": True, "version_table": "schema_version"}
            assert compare_metadata(MigrationContext.configure(conn, opts=options), metadata) == []


def test_it_is_written_in_files_that_say_the_same() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).parent))
    found = {each.revision: each.module.KIND for each in reversed(list(scripts.walk_revisions()))}
    assert found == schema.REVISIONS
    assert list(found) == list(schema.REVISIONS)
    assert set(found.values()) <= {schema.EXPAND, schema.CONTRACT}
    for each in scripts.walk_revisions():
        source = Path(each.path).read_text()
        kinds = {"create_table(", "create_index(", "add_column(", "drop_", "alter_column(", "execute("}
        assert sum(kind in source for kind in kinds) == 1, f"{each.revision} has more than one kind of DDL"
        assert "comity" not in source
        if (
            each.module.KIND == schema.EXPAND
        ):  # the version before goes on with what it has: nothing goes, nothing is asked
            assert "drop_" not in source, f"{each.revision} drops"
            assert "alter_column(" not in source, f"{each.revision} alters"
            assert "add_column(" not in source or "nullable=False" not in source, f"{each.revision} asks for a value"


def test_half_a_revision_is_done_again(database: Database) -> None:
    database.transact(metadata.tables["ledger_pending"].create)
    assert schema.prepare(database) == tuple(schema.REVISIONS)


def test_of_many_that_start_one_changes_the_schema(url: str) -> None:
    did: list[tuple[str, ...]] = []
    failed: list[BaseException] = []

    def start() -> None:
        database = open_database(url)
        try:
            did.append(schema.prepare(database))
        except BaseException as error:  # noqa: BLE001 - shown to the test
            failed.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert sorted(did) == [(), (), (), tuple(schema.REVISIONS)]


def _apply(database: Database, revision: str, kind: str) -> None:
    values = {"revision": revision, "kind": kind, "applied_at": "2030-01-01T00:00:00Z"}
    database.transact(lambda conn: conn.execute(insert(schema.applied).values(values)) and None)


def test_a_newer_schema_is_refused_by_name_unless_it_only_adds(database: Database) -> None:
    schema.prepare(database)
    _apply(database, "9001", schema.EXPAND)
    assert schema.prepare(database) == ()
    _apply(database, "9002", schema.CONTRACT)
    with pytest.raises(ComityError, match="9002") as caught:
        schema.prepare(database)
    assert caught.value.code is ErrorCode.UNSUPPORTED
    assert "9001" not in str(caught.value)


def test_an_operator_may_keep_the_change_for_a_command(tmp_path: Path, monkeypatch: Any) -> None:
    home = tmp_path / "coordinator"
    settings = setup.new_settings(home, "demo", "127.0.0.1:7443", workflows="timers")
    setup.create(settings)
    empty = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("COMITY_COORDINATOR_DATABASE_URL", empty)
    database = open_database(empty)
    with pytest.raises(ComityError, match="comity coordinator migrate"):
        schema.prepare(database, change=False)
    run = CliRunner().invoke
    assert run(cli.group, ["migrate", str(home), "--check"]).exit_code == 1
    done = run(cli.group, ["migrate", str(home), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["applied"]) == (0, list(schema.REVISIONS))
    assert run(cli.group, ["migrate", str(home), "--check"]).exit_code == 0
    assert schema.prepare(database, change=False) == ()
    database.close()


def test_text_sorted_by_a_language_is_refused(databases: Any) -> None:
    server = open_database(databases.postgres_url("sorting"))
    with server.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("CREATE DATABASE spoken TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en'"))
    server.close()
    spoken = open_database(str(databases.server().url("spoken")))
    with pytest.raises(ComityError, match="sorts text"):
        schema.prepare(spoken)
    spoken.close()
