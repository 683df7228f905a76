"""That the test of repeatability can fail, and that no transaction of the coordinator escapes it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.torn import tear
from sqlalchemy import Connection, func, insert, select

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.governance import store

COORDINATOR = Path(__file__).resolve().parents[3] / "coordinator" / "comity_coordinator"
# Where transactions begin, and the tests that run them in the mode `torn` (`make test-slow` runs all of them so).
WORLD, RIG, BALLOTS = (
    "contract/coordinator",
    "faults/coordinator_transport",
    "contract/coordinator/test_charter_ballots",
)
COMMAND = "one transaction of a command that stands alone: whoever called it calls it again"
SITES = {
    "cli.py": COMMAND,
    "ledger/cli.py": COMMAND,
    "backup/store.py": "reads only",
    "backup/restoring.py": "contract/coordinator/test_backup.py: nothing outside is touched but lines of progress",
    "governance/adoption.py": BALLOTS,
    "migrations/schema.py": "contract/databases/test_migrations.py: four at once, half a revision",
    "app.py": BALLOTS,
    "feed.py": WORLD,
    "ledger/api.py": WORLD,
    "ledger/sequencer.py": WORLD,
    "ledger/servicer.py": WORLD,
    "ledger/witnessing.py": "contract/ledger: rounds of cosignatures",
    "observability/gauges.py": "reads only",
    "membership/api.py": WORLD,
    "membership/registry.py": RIG,
    "membership/servicer.py": RIG,
    "membership/store.py": RIG,
    "negotiation/api.py": WORLD,
    "negotiation/news.py": WORLD,
    "operator_api.py": WORLD,
    "replicas/service.py": "not run in the mode torn yet: rows under its own name, written whole",
    "training/api.py": WORLD,
    "training/sums.py": "reads only",
    "transport/hub.py": RIG,
    "transport/together.py": RIG,
    "workflows/activities.py": WORLD,
    "workflows/temporal.py": "reads only",
    "workflows/timers.py": WORLD,
}


def test_every_place_where_a_transaction_begins_is_known() -> None:
    found = set()
    for path in sorted(COORDINATOR.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _begins(node.func):
                found.add(path.relative_to(COORDINATOR).as_posix())
    assert found - {"db.py"} <= set(SITES), "run it under `harness.torn` and say in SITES by which test"


def _begins(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id == "Together"
    if not isinstance(called, ast.Attribute) or called.attr not in ("transact", "run", "begin"):
        return False
    owner = called.value.attr if isinstance(called.value, ast.Attribute) else getattr(called.value, "id", "")
    return owner.strip("_") in ("database", "db", "opened", "engine", "conn", "connection")


@pytest.fixture(params=["sqlite", "postgresql"])
def torn(request: Any, databases: Any, tmp_path: Path) -> Iterator[Database]:
    database: Database = databases.fresh(request.param, tmp_path)
    tear(database)
    yield database
    database.close()


def _add(conn: Connection, org: str) -> None:
    conn.execute(insert(store.signatures).values(charter_digest="d", org=org, statement=b"s"))


def _count(conn: Connection) -> int:
    return int(conn.execute(select(func.count()).select_from(store.signatures)).scalar_one())


def test_a_good_one_passes_and_commits_once(torn: Database) -> None:
    def two(conn: Connection) -> int:
        _add(conn, "alpha")
        _add(conn, "beta")
        return _count(conn)

    assert (torn.transact(two), torn.transact(_count)) == (2, 2)
    with pytest.raises(ComityError, match="CONFLICT"):
        torn.transact(_refuses)
    assert torn.transact(_count) == 2


def _refuses(conn: Connection) -> None:
    _add(conn, "gamma")
    raise ComityError(ErrorCode.CONFLICT)


def test_memory_that_a_conflict_leaves_behind_is_found(torn: Database) -> None:
    seen: list[str] = []

    def remembers(conn: Connection) -> int:
        _add(conn, f"org-{len(seen)}")
        seen.append("once more")
        return _count(conn)

    with pytest.raises(AssertionError, match="not repeatable"):
        torn.transact(remembers)
    with pytest.raises(AssertionError, match="not repeatable"):
        torn.transact(lambda conn: (_count(conn), seen.append("x"), len(seen)))


def test_one_that_goes_on_after_a_conflict_is_found(torn: Database) -> None:
    def swallows(conn: Connection) -> int:
        try:
            return _count(conn)
        except Exception:  # noqa: BLE001 - the defect that this test is about
            return 0

    with pytest.raises(AssertionError, match="went on after a conflict"):
        torn.transact(swallows)
