"""What people see of the ledger: how far this node has read, what is final, who is awaited, what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_node.context import NodeContext
from comity_node.ledger import incidents, pointers
from comity_node.ledger.pointers import Pointer
from comity_node.retention import store as retention
from comity_policies.charter import Charter

if TYPE_CHECKING:
    from comity_node.ledger.following import Follower


DELETIONS_SHOWN_MAX = 20


async def describe(node: NodeContext, follower: Follower) -> dict[str, Any]:
    """Return the state of the ledger at this node, for the local API."""

    def read(conn: Connection) -> tuple[Any, ...]:
        return (
            node.ledger.counts(conn),
            node.ledger.newest(conn),
            node.ledger.alarms(conn),
            pointers.get(conn, pointers.FOLLOWED),
            pointers.get(conn, pointers.COSIGNED),
            [each.to_json() for each in incidents.listed(conn)],
            retention.done(conn, DELETIONS_SHOWN_MAX),
        )

    counts, newest, alarms, followed, cosigned, seen, gone = await node.journal.run(read)
    charter = node.charters.current()
    return {
        "entries": counts,
        "checkpoint": newest.note if newest else None,
        "alarms": alarms,
        "read": _pointer(followed),
        "cosigned": _pointer(cosigned),
        "final": _pointer(node.ledger.final),
        "witnesses": None if charter is None else _witnesses(node, follower, charter),
        "incidents": seen,
        "deletions": [{"run": run, "deleted_at": at, "counts": dropped} for run, at, dropped, _ in gone],
    }


def brief(state: dict[str, Any]) -> dict[str, Any]:
    """Return what `comity status` shows: what is final, who is awaited, what stops work and whose move it is."""
    final, witnesses = state["final"], state["witnesses"]
    return {
        "final": final["size"] if final else 0,
        "age_s": None if witnesses is None else witnesses["age_s"],
        "awaited": [] if witnesses is None else witnesses["awaited"],
        "then": "the charter names no witnesses" if witnesses is None else witnesses["then"],
        "stale": witnesses is not None and witnesses["stale"],
        "incidents": [each for each in state["incidents"] if each["stops"]],
    }


def _pointer(pointer: Pointer) -> dict[str, Any] | None:
    if not pointer.size:
        return None
    at = instants.to_text(instants.from_epoch_s(pointer.at_s))
    return {"size": pointer.size, "root": pointer.root.hex(), "at": at, "note": pointer.note}


def _witnesses(node: NodeContext, follower: Follower, charter: Charter) -> dict[str, Any] | None:
    """Return the rule in force and who has cosigned the newest final checkpoint; None if the charter names nobody."""
    rule = charter.witness_rule
    if rule is None:
        return None
    final, now = node.ledger.final, node.clock()
    times: dict[str, int] = {}
    if final.note:
        try:
            times = follower.judge(charter, final.note).times
        except ComityError:
            times = {}  # of another log, before the coordinator was changed
    age_s = int(now.timestamp()) - final.at_s if final.size else None
    limit_s = charter.max_checkpoint_age_s
    late = [org for org in rule.orgs if org not in times or int(now.timestamp()) - times[org] > limit_s]
    stale = age_s is None or age_s > limit_s
    then = "work goes on"
    if age_s is None:
        then = "no new work begins before a checkpoint is final"
    elif stale:
        then = f"no new work begins until {rule.k} of {len(rule.orgs)} have cosigned again"
    return {
        "orgs": list(rule.orgs),
        "k": rule.k,
        "f": rule.f,
        "awaited": late,
        "age_s": age_s,
        "max_age_s": limit_s,
        "stale": stale,
        "then": then,
    }
