"""The journal: one transaction at a time, on disk before it returns, and refused as a whole when the disk refuses."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa

from comity.wire.errors import ComityError, ErrorCode
from comity_node import journal as journal_module
from comity_node.journal import Journal, metadata

_rows = metadata.tables.get("test_journal_rows")
rows = (
    _rows
    if _rows is not None
    else sa.Table("test_journal_rows", metadata, sa.Column("number", sa.Integer, primary_key=True))
)


@pytest.fixture
def journal(tmp_path: Path):
    opened = Journal.open(tmp_path / "journal.db")
    opened.create_all()
    yield opened
    opened.close()


def numbers(conn: sa.Connection) -> list[int]:
    return list(conn.execute(sa.select(rows.c.number).order_by(rows.c.number)).scalars())


async def test_what_run_returned_is_read_back_by_another_process(journal: Journal, tmp_path: Path) -> None:
    await journal.run(lambda conn: conn.execute(rows.insert().values(number=1)))
    with sa.create_engine(f"sqlite:///{tmp_path / 'journal.db'}").connect() as other:
        assert numbers(other) == [1]
    other.engine.dispose()


async def test_a_failed_function_changes_nothing_and_calls_nobody(journal: Journal) -> None:
    called: list[int] = []

    def fails(conn: sa.Connection) -> None:
        conn.execute(rows.insert().values(number=1))
        journal.after_commit(conn, lambda: called.append(1))
        raise ComityError(ErrorCode.CONFLICT)

    with pytest.raises(ComityError, match="CONFLICT"):
        await journal.run(fails)
    assert await journal.run(numbers) == []
    assert called == []


async def test_callbacks_run_after_the_commit(journal: Journal) -> None:
    seen: list[list[int]] = []
    path = journal.path

    def look() -> None:
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.connect() as other:
            seen.append(numbers(other))
        engine.dispose()

    def work(conn: sa.Connection) -> None:
        journal.after_commit(conn, look)
        conn.execute(rows.insert().values(number=7))

    await journal.run(work)
    assert seen == [[7]]


async def test_read_then_write_never_interleaves(journal: Journal) -> None:
    def increment(conn: sa.Connection) -> None:
        conn.execute(rows.insert().values(number=len(numbers(conn))))

    await asyncio.gather(*(journal.run(increment) for _ in range(50)))
    assert await journal.run(numbers) == list(range(50))


def test_the_file_is_private_and_synchronous(journal: Journal) -> None:
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert journal.transact(lambda conn: conn.exec_driver_sql("PRAGMA synchronous").scalar()) == 2
    assert journal.transact(lambda conn: conn.exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"


def test_a_full_disk_is_named_and_undone(journal: Journal) -> None:
    pages = journal.transact(lambda conn: conn.exec_driver_sql("PRAGMA page_count").scalar())
    journal.transact(lambda conn: conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))

    def fill(conn: sa.Connection) -> None:
        conn.execute(rows.insert().values([{"number": number} for number in range(5_000)]))

    with pytest.raises(ComityError) as refused:
        journal.transact(fill)
    assert refused.value.code is ErrorCode.JOURNAL_UNWRITABLE
    journal.transact(lambda conn: conn.exec_driver_sql("PRAGMA max_page_count = 1000000"))
    assert journal.transact(numbers) == []
    journal.transact(fill)
    assert len(journal.transact(numbers)) == 5_000


def test_a_damaged_file_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"this is no database" * 100)
    for path in (tmp_path / "bad.db", tmp_path / "absent" / "journal.db"):
        with pytest.raises(ComityError) as refused:
            Journal.open(path)
        assert refused.value.code is ErrorCode.JOURNAL_UNWRITABLE


def test_a_newer_release_s_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SCHEMA_VERSION", 9)
    Journal.open(tmp_path / "journal.db").close()
    monkeypatch.undo()
    with pytest.raises(ComityError) as refused:
        Journal.open(tmp_path / "journal.db")
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_our_own_mistakes_keep_their_type(journal: Journal) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        journal.transact(lambda conn: conn.execute(rows.insert().values([{"number": 1}, {"number": 1}])))


async def test_a_closed_journal_refuses(journal: Journal) -> None:
    journal.close()
    with pytest.raises(ComityError, match="JOURNAL_UNWRITABLE"):
        await journal.run(numbers)
