"""One suite for both workflow engines: plain timers, and Temporal's real dev server as a child.

The services are small but real implementations of `Supervised` on a SQLite file.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, MetaData, String, Table, select, update
from sqlalchemy.dialects.sqlite import insert

from comity.wire import instants
from comity_coordinator.db import Database, open_database
from comity_coordinator.workflows.temporal import TemporalEngine
from comity_coordinator.workflows.timers import TimerEngine

metadata = MetaData()  # not the product's: its tables are those of the schema's history
subjects = Table(
    "contract_subjects",
    metadata,
    Column("family", String(16), primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("deadline", String(20)),
    Column("judged", String(20)),
)
WAIT_S = 20.0


class Deadlines:
    """Subjects with one deadline each; judged at most once, after it has passed."""

    def __init__(self, family: str) -> None:
        self.family = family

    def add(self, conn: Connection, subject: str, in_s: int) -> str:
        deadline = instants.to_text(instants.now() + timedelta(seconds=in_s))
        conn.execute(insert(subjects).values(family=self.family, subject=subject, deadline=deadline))
        return deadline

    def on_deadline(self, conn: Connection, subject_id: str) -> str | None:
        deadline = self.deadline_of(conn, subject_id)
        if deadline is None or deadline > instants.now_text():
            return deadline
        self.close(conn, subject_id)
        return None

    def close(self, conn: Connection, subject: str) -> None:
        here = (subjects.c.family == self.family) & (subjects.c.subject == subject)
        conn.execute(update(subjects).where(here).values(deadline=None, judged=instants.now_text()))

    def deadline_of(self, conn: Connection, subject_id: str) -> str | None:
        here = (subjects.c.family == self.family) & (subjects.c.subject == subject_id)
        return conn.execute(select(subjects.c.deadline).where(here)).scalar_one_or_none()

    def open_deadlines(self, conn: Connection) -> list[tuple[str, str]]:
        wanted = select(subjects.c.subject, subjects.c.deadline).where(
            subjects.c.family == self.family, subjects.c.deadline.is_not(None)
        )
        return [(subject, deadline) for subject, deadline in conn.execute(wanted)]


class Rig:
    def __init__(self, db: Database, engine: TimerEngine | TemporalEngine) -> None:
        self.db, self.engine = db, engine
        self.negotiation, self.runs = Deadlines("negotiation"), Deadlines("run")

    async def start(self) -> None:
        await self.engine.start(self.negotiation, self.runs)

    async def until(self, holds: Callable[[Connection], bool]) -> None:
        for _ in range(int(WAIT_S / 0.05)):
            if await self.db.run(holds):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it did not come to that in time")


@pytest.fixture(params=["timers", "temporal"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "keys").mkdir(mode=0o700)
    db = open_database(f"sqlite:///{tmp_path}/db.sqlite")
    metadata.create_all(db.engine)
    engine = TimerEngine(db) if request.param == "timers" else TemporalEngine(db, tmp_path)
    rig = Rig(db, engine)
    yield rig
    await engine.close()
    db.close()


async def test_a_deadline_is_judged_once_it_has_passed(rig: Rig) -> None:
    await rig.start()
    deadline = await rig.db.run(lambda conn: rig.negotiation.add(conn, "n1", 1))
    rig.engine.negotiation_opened("n1", deadline)
    await rig.until(lambda conn: rig.negotiation.deadline_of(conn, "n1") is None)
    judged = await rig.db.run(
        lambda conn: conn.execute(select(subjects.c.judged).where(subjects.c.subject == "n1")).scalar_one()
    )
    assert judged >= deadline


async def test_what_was_open_before_the_start_is_found(rig: Rig) -> None:
    await rig.db.run(lambda conn: rig.negotiation.add(conn, "old", 0))
    await rig.db.run(lambda conn: rig.runs.add(conn, "old-run", 0))
    await rig.start()
    await rig.until(lambda conn: not rig.negotiation.open_deadlines(conn) and not rig.runs.open_deadlines(conn))


async def test_a_run_that_changes_is_looked_at_again(rig: Rig) -> None:
    await rig.start()
    await rig.db.run(lambda conn: rig.runs.add(conn, "r1", 3600))
    rig.engine.run_created("r1")
    await asyncio.sleep(0.5)
    sooner = instants.now_text()
    await rig.db.run(
        lambda conn: conn.execute(update(subjects).where(subjects.c.subject == "r1").values(deadline=sooner))
    )
    rig.engine.run_changed("r1")
    await rig.until(lambda conn: rig.runs.deadline_of(conn, "r1") is None)


async def test_telling_twice_and_ending_the_unknown_is_harmless(rig: Rig) -> None:
    await rig.start()
    deadline = await rig.db.run(lambda conn: rig.negotiation.add(conn, "n2", 1))
    rig.engine.negotiation_ended("never-opened")
    rig.engine.negotiation_opened("n2", deadline)
    rig.engine.negotiation_opened("n2", deadline)
    await rig.until(lambda conn: rig.negotiation.deadline_of(conn, "n2") is None)
    rig.engine.negotiation_ended("n2")


@pytest.mark.parametrize("rig", ["temporal"], indirect=True)
async def test_a_killed_engine_comes_back_and_judges(rig: Rig) -> None:
    assert isinstance(rig.engine, TemporalEngine)
    await rig.start()
    await asyncio.wait_for(rig.engine.connected.wait(), WAIT_S)
    deadline = await rig.db.run(lambda conn: rig.negotiation.add(conn, "n3", 3))
    rig.engine.negotiation_opened("n3", deadline)
    await asyncio.sleep(0.5)
    assert rig.engine.server is not None
    victim = rig.engine.server.pid
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    await rig.until(lambda conn: rig.negotiation.deadline_of(conn, "n3") is None)
    assert rig.engine.server.pid not in (None, victim)
