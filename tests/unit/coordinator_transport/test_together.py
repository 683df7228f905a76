"""What is asked at the same time shares a transaction, and a failure takes nobody else along."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from comity_coordinator.db import Database, open_database
from comity_coordinator.transport.together import TOGETHER_MAX, Together


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'test.db'}")
    opened.transact(lambda conn: conn.execute(text("CREATE TABLE t (x INTEGER)")) and None)
    yield opened
    opened.close()


def _rows(database: Database) -> list[int]:
    return database.transact(lambda conn: [int(row[0]) for row in conn.execute(text("SELECT x FROM t ORDER BY x"))])


async def test_many_share_few_transactions(database: Database) -> None:
    conns: list[Any] = []

    def write(conn: Any, number: int) -> int:
        conns.append(conn)
        conn.execute(text("INSERT INTO t VALUES (:x)"), {"x": number})
        return -number

    together, count = Together(database, write), TOGETHER_MAX + 10
    assert await asyncio.gather(*(together.ask(number) for number in range(count))) == [-n for n in range(count)]
    assert _rows(database) == list(range(count))
    assert len({id(conn) for conn in conns}) <= 3


async def test_a_failure_is_its_own(database: Database) -> None:
    def write(conn: Any, number: int) -> int:
        conn.execute(text("INSERT INTO t VALUES (:x)"), {"x": number})
        if number == 3:
            raise ValueError("three")
        return number

    together = Together(database, write)
    answers = await asyncio.gather(*(together.ask(number) for number in range(6)), return_exceptions=True)
    assert [type(each) for each in answers] == [int, int, int, ValueError, int, int]
    assert _rows(database) == [0, 1, 2, 4, 5]  # each once, and nothing of the one that failed


async def test_who_went_away_takes_nobody_along(database: Database) -> None:
    def write(conn: Any, number: int) -> int:
        conn.execute(text("INSERT INTO t VALUES (:x)"), {"x": number})
        return number

    together = Together(database, write)
    asking = [asyncio.create_task(together.ask(number)) for number in range(4)]
    await asyncio.sleep(0)
    asking[1].cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [answers[0], *answers[2:]] == [0, 2, 3]
    assert isinstance(answers[1], asyncio.CancelledError)
