"""What secure sums keep in the journal. Tables and every statement on them; rules as in `training/store.py`.

Rules:
1. A part is written in the transaction that charges for it, before the first byte leaves; what it says never changes,
   but for whose sum the party stands on, which is added once.
2. A session that was begun stays on record until its run is closed, and so does the number of attempts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from sqlalchemy import Column, Connection, Integer, String, Table, Text, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Release
from comity_crypto.secagg.masked.events import Stand
from comity_node.journal import metadata
from comity_policies.documents import OrderHeader

parts = Table(
    "training_sum_parts",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("order_digest", String(64), nullable=False, unique=True),
    Column("file", String(128)),
    Column("chunks", Integer, nullable=False),
    Column("order", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("release", Text, nullable=False),
)

sessions = Table(
    "training_sum_sessions",
    metadata,
    Column("session", String(64), primary_key=True),
    Column("run", String(64), nullable=False, index=True),
    Column("key_id", String(64), nullable=False, unique=True),
)

attempts = Table(
    "training_sum_attempts",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("attempts", Integer, nullable=False),
)


@dataclass(frozen=True, slots=True)
class PartRow:
    """A contribution that was released. `file` (None once it is of no more use) holds its slots; `facts` are JSON."""

    run: str
    seq: int
    order_digest: str
    file: str | None
    chunks: int
    order: str
    shape: str
    facts: str
    release: str

    @property
    def header(self) -> OrderHeader:
        """The order that it answers."""
        return OrderHeader.from_json(json.loads(self.order))

    @property
    def released(self) -> Release:
        """What was released, to whom."""
        return Release.from_json(json.loads(self.release))

    @property
    def stand(self) -> Stand | None:
        """Whose sum this party stands on, under `masked`, if it came to that."""
        found = json.loads(self.release).get("stand")
        return None if found is None else Stand.from_json(found)

    @property
    def upload(self) -> str | None:
        """Digest of the newest upload that left, where the profile keeps it."""
        found = json.loads(self.release).get("upload")
        return None if found is None else str(found)

    @property
    def summed(self) -> bool:
        """Whether the lead said that it keeps a sum with this part."""
        return bool(json.loads(self.release).get("summed", False))

    def uploading(self, upload: str) -> PartRow:
        """Return the row with what is about to leave."""
        return replace(self, release=json.dumps({**json.loads(self.release), "upload": upload}))

    def standing(self, stand: Stand) -> PartRow:
        """Return the row with whose sum this party stands on."""
        return replace(self, release=json.dumps({**json.loads(self.release), "stand": stand.to_json()}))


def find_part(conn: Connection, order_digest: str) -> PartRow | None:
    """Return the part that was released for an order."""
    row = conn.execute(select(parts).where(parts.c.order_digest == order_digest)).one_or_none()
    return None if row is None else PartRow(*row)


def put_part(conn: Connection, row: PartRow) -> None:
    """Record a part; a second one for its order is an integrity error."""
    conn.execute(insert(parts).values(**{name: getattr(row, name) for name in row.__dataclass_fields__}))


def set_release(conn: Connection, order_digest: str, release: str) -> None:
    """Record what a part's session came to, before it is said."""
    conn.execute(parts.update().where(parts.c.order_digest == order_digest).values(release=release))


def set_summed(conn: Connection, order_digest: str) -> None:
    """Record the lead's word that it keeps a sum with the part of an order, if there is such a part."""
    row = find_part(conn, order_digest)
    if row is not None and row.upload is not None and not row.summed:
        set_release(conn, order_digest, json.dumps({**json.loads(row.release), "summed": True}))


def forget_all(conn: Connection) -> None:
    """Drop every part and every key of a session that was begun: a recovered node answers for none of them."""
    for table in (parts, sessions, attempts):
        conn.execute(delete(table))


def drop_file(conn: Connection, order_digest: str) -> str | None:
    """Record that the lead has the sum: nobody will ask for this part again. Returns the file that can go."""
    found = conn.execute(select(parts.c.file).where(parts.c.order_digest == order_digest)).scalar_one_or_none()
    conn.execute(parts.update().where(parts.c.order_digest == order_digest).values(file=None))
    return found


def begin_session(conn: Connection, run: str, session: str, key_id: str) -> None:
    """Record that a session begins here.

    Raises:
        ComityError: `UNAVAILABLE` if a process that is gone began it, `ORDER_REPLAYED` if another had the same key.
    """
    before = conn.execute(
        select(sessions.c.session).where((sessions.c.session == session) | (sessions.c.key_id == key_id))
    ).scalar()
    if before == session:
        raise ComityError(ErrorCode.UNAVAILABLE, "this session was begun by a process that is gone")
    if before is not None:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "a round key is used once")
    conn.execute(insert(sessions).values(session=session, run=run, key_id=key_id))


def next_attempt(conn: Connection, run: str, seq: int) -> int:
    """Return the number of the next attempt at a question's sum, from 0, and record that it was made."""
    here = (attempts.c.run == run) & (attempts.c.seq == seq)
    made = conn.execute(select(func.coalesce(func.max(attempts.c.attempts), 0)).where(here)).scalar_one()
    values = upsert(attempts).values(run=run, seq=seq, attempts=int(made) + 1)
    conn.execute(values.on_conflict_do_update(index_elements=["run", "seq"], set_={"attempts": int(made) + 1}))
    return int(made)


def files_of(conn: Connection, run: str) -> list[str]:
    """Return the names of the files of a run's parts."""
    query = select(parts.c.file).where(parts.c.run == run, parts.c.file.is_not(None))
    return [str(name) for name in conn.execute(query).scalars()]


def forget(conn: Connection, run: str) -> None:
    """Drop what a closed run needs no more."""
    for table in (parts, sessions, attempts):
        conn.execute(delete(table).where(table.c.run == run))
