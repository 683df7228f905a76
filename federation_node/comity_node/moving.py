"""What a change of coordinator means for work under way: booked in the transaction that points the node elsewhere.

Rules (negotiation.md section 6):
1. a run cannot go on: its barrier, its relay and its deadlines were the former coordinator's. It ends here, by name,
   with the manifest of what its lead had received; keys and parts of sums under way are dropped;
2. what was spent stays spent, and agreements stay as they are: a new run needs a new agreement;
3. open proposals stay open: their proposer's node submits them again (`negotiation/moved.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.recovery import TABLES

WHY = "the coordinator was changed while it was under way"


@dataclass(frozen=True, slots=True)
class Moved:
    """What was under way: ids of runs that ended, and ids of open proposals that are submitted or answered again."""

    runs: tuple[str, ...] = ()
    proposals: tuple[str, ...] = ()


def import_tables() -> None:
    """Make every table of the journal known, before it is created."""
    for name in TABLES:
        import_module(f"comity_node.{name}")


def book(conn: Connection, org: str, now: str) -> Moved:
    """End what cannot go on, in the transaction of `conn`; again is harmless."""
    from comity_node.negotiation import store as negotiation
    from comity_node.negotiation.moved import is_open
    from comity_node.reviews import store as reviews
    from comity_node.training import store as training
    from comity_node.training.led import manifest, orders_sent
    from comity_node.training.profiles import sum_store, threshold_store
    from comity_node.transport import store as transport

    error = ComityError(ErrorCode.COORDINATOR_CHANGED, WHY)
    ended = list(training.list_runs(conn, closed=False))
    for row in ended:
        if row.ended_at is None:
            told: dict[str, object] = {"state": "CANCELLED", "error": error.to_json()}
            if row.lead == org:
                questions = training.list_questions(conn, row.run)
                told["manifest"] = manifest(questions, training.list_answers(conn, row.run))
                told["orders"] = orders_sent(questions)
            _tell(conn, row.run, now, "ended", told)
        _tell(conn, row.run, now, "closed", {"state": row.state if row.ended_at else "CANCELLED"})
    training.end_all(conn, now, error)
    reviews.end_with_runs(conn, WHY, now)
    sum_store.forget_all(conn)
    threshold_store.forget_all(conn)
    transport.restart(conn)
    waiting = [each.proposal.proposal_id for each in negotiation.list_proposals(conn) if is_open(conn, each, now)]
    return Moved(tuple(row.run for row in ended), tuple(waiting))


def _tell(conn: Connection, run: str, now: str, kind: str, body: dict[str, object]) -> None:
    from comity_node.training import store as training

    at_ms = int(instants.parse(now).timestamp() * 1_000)
    training.put_event(conn, run, now, kind, json.dumps({"at_ms": at_ms, **body}, separators=(",", ":")))
