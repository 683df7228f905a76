"""What nodes and coordinator have written down, read beside them: read-only, from databases and logs of apps.

The tables are those of `comity_node.training.tables`; the lines are those that `tests/faults/tally` prints.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FINISHED = "finished"
JOURNAL = "journal.db"
LEDGER = "comity.db"


@dataclass(frozen=True, slots=True)
class Order:
    """One order in a node's journal."""

    run: str
    seq: int
    digest: str
    word: str
    state: str
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Execution:
    """One beginning (or, with `result`, one end) of an order in an app's log; `at` is in seconds since 1970."""

    order: str
    at: float
    result: str | None


def orders(home: Path, run: str = "") -> list[Order]:
    """Return a node's orders, of one run if it is named."""
    query = "select run, seq, digest, word, state, outcome from training_orders where ? in ('', run) order by run, seq"
    with _database(home / JOURNAL) as journal:
        return [Order(*row) for row in journal.execute(query, (run,))]


def finished(home: Path) -> frozenset[str]:
    """Return the digests of all orders that a node has finished."""
    return frozenset(each.digest for each in orders(home) if each.state == FINISHED)


def spent(home: Path, agreement: str) -> dict[str, int]:
    """Return what a node has charged of an agreement's grant, by field."""
    with _database(home / JOURNAL) as journal:
        rows = journal.execute("select field, spent from training_grants where agreement = ?", (agreement,))
        return {field: int(amount) for field, amount in rows}


def unsent(home: Path) -> int:
    """Return how many receipts and messages a node still has to hand in."""
    with _database(home / JOURNAL) as journal:
        waiting = 0
        for query in ("select count(*) from training_receipts where not sent", "select count(*) from link_outbox"):
            waiting += int(journal.execute(query).fetchone()[0])
        return waiting


def unordered(home: Path) -> int:
    """Return how many statements of the coordinator's ledger have no index yet."""
    with _database(home / LEDGER) as ledger:
        return int(ledger.execute("select count(*) from ledger_pending").fetchone()[0])


def executions(home: Path, run: str) -> list[Execution]:
    """Return what the app's log of a run says, in order; lines that a kill cut off are left out."""
    path = home / "runs" / run / "client.log"
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        words = line.split()
        if len(words) == 4 and words[0] == "tally" and words[1] == "begin":
            found.append(Execution(words[2], float(words[3]), None))
        elif len(words) == 5 and words[0] == "tally" and words[1] == "end":
            found.append(Execution(words[2], float(words[3]), words[4]))
    return found


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        yield connection
    finally:
        connection.close()
