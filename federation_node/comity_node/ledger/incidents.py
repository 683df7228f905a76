"""Incidents in the journal: what this node saw, what others reported, and what a person has acknowledged.

Rules:
1. An incident is kept for ever, with its evidence; a grave one of our own stops new work until an admin acknowledges.
2. The same thing seen again is not another incident while the first one is open.
3. Acknowledging is a person's decision with a reason: to go on with this coordinator, from what it shows now.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import metadata
from comity_policies.incidents import GRAVE, Incident

LISTED_MAX = 100
REPORTED_KEPT = 1_000

_incidents = sa.Table(
    "ledger_incidents",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("org", sa.Text, nullable=False),  # empty: seen here
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Text, nullable=False),
    sa.Column("grave", sa.Boolean, nullable=False),
    sa.Column("told", sa.Boolean, nullable=False),
    sa.Column("acknowledged_at", sa.Text),
    sa.Column("acknowledged_by", sa.Text),
    sa.Column("reason", sa.Text),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """An incident as it stands; `org` is who reported it, "" for this node."""

    id: str
    org: str
    incident: Incident
    grave: bool
    acknowledged_at: str | None
    acknowledged_by: str | None
    reason: str | None

    @property
    def stops(self) -> bool:
        """Whether it keeps this node from new work."""
        return self.grave and not self.org and self.acknowledged_at is None

    def to_json(self) -> dict[str, Any]:
        """Return the form of the local API; `then` says whose move it is."""
        then = "nothing: it is told to all members"
        if self.stops:
            then = f"no new work here until an admin acknowledges it: comity ledger acknowledge {self.id}"
        elif self.acknowledged_at is not None:
            then = f"acknowledged by {self.acknowledged_by}: {self.reason}"
        return {
            "id": self.id,
            "org": self.org or None,
            **self.incident.to_json(),
            "stops": self.stops,
            "acknowledged_at": self.acknowledged_at,
            "then": then,
        }


def add(conn: Connection, kind: str, detail: str, evidence: Sequence[str], now: str = "") -> bool:
    """Note what was seen here; False if the same is open already."""
    seen = Incident(kind, detail, now or instants.now_text(), tuple(evidence))
    same = (_incidents.c.org == "", _incidents.c.kind == kind, _incidents.c.acknowledged_at.is_(None))
    if kind in GRAVE and conn.execute(sa.select(_incidents.c.id).where(*same)).first() is not None:
        return False
    _insert(conn, "", seen, grave=kind in GRAVE)
    return True


def report(conn: Connection, org: str, incident: Incident) -> None:
    """Keep what another member saw; beyond `REPORTED_KEPT` the oldest are forgotten."""
    _insert(conn, org, incident, grave=False)
    others = _incidents.c.org != ""
    kept = sa.select(_incidents.c.id).where(others).order_by(_incidents.c.seen_at.desc()).limit(REPORTED_KEPT)
    conn.execute(_incidents.delete().where(others, _incidents.c.id.not_in(kept)))


def listed(conn: Connection) -> list[Seen]:
    """Return incidents, newest first, at most `LISTED_MAX`."""
    query = sa.select(_incidents).order_by(_incidents.c.seen_at.desc(), _incidents.c.id)
    return [_row(row) for row in conn.execute(query.limit(LISTED_MAX))]


def stopping(conn: Connection) -> list[str]:
    """Return in a sentence each what keeps this node from new work."""
    query = sa.select(_incidents.c.detail).where(
        _incidents.c.org == "", _incidents.c.grave, _incidents.c.acknowledged_at.is_(None)
    )
    return list(conn.execute(query.order_by(_incidents.c.seen_at, _incidents.c.id).limit(LISTED_MAX)).scalars())


def untold(conn: Connection) -> list[Seen]:
    """Return what was seen here and is not signed and sent yet."""
    query = sa.select(_incidents).where(_incidents.c.org == "", ~_incidents.c.told)
    return [_row(row) for row in conn.execute(query.order_by(_incidents.c.seen_at).limit(LISTED_MAX))]


def told(conn: Connection, incident_id: str) -> None:
    """Note that an incident was signed and put into the outbox."""
    conn.execute(_incidents.update().where(_incidents.c.id == incident_id).values(told=True))


def acknowledge(conn: Connection, incident_id: str, user: str, reason: str, now: str) -> Seen:
    """Note that a person knows of an incident of ours. Raises `NOT_FOUND`; `ILLEGAL_EVENT` if it stops nothing."""
    row = conn.execute(sa.select(_incidents).where(_incidents.c.id == incident_id)).first()
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "there is no such incident")
    if not _row(row).stops:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, "this incident does not wait for anybody")
    values = {"acknowledged_at": now, "acknowledged_by": user, "reason": reason}
    conn.execute(_incidents.update().where(_incidents.c.id == incident_id).values(values))
    return _row(conn.execute(sa.select(_incidents).where(_incidents.c.id == incident_id)).one())


def _insert(conn: Connection, org: str, incident: Incident, *, grave: bool) -> None:
    conn.execute(
        _incidents.insert().values(
            id=ids.new_id("incident"),
            org=org,
            kind=incident.kind,
            detail=incident.detail,
            evidence=json.dumps(incident.evidence),
            seen_at=incident.seen_at,
            grave=grave,
            told=bool(org),
        )
    )


def _row(row: Any) -> Seen:
    incident = Incident(row.kind, row.detail, row.seen_at, tuple(json.loads(row.evidence)))
    return Seen(row.id, row.org, incident, bool(row.grave), row.acknowledged_at, row.acknowledged_by, row.reason)
