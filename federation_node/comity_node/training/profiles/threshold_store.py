"""What `threshold` keeps in the journal: keys of finished ceremonies, and which session each one served.

Rules:
1. A key is recorded with its batch, when all holders have signed; its share lies in a file beside the journal.
2. A key is taken by one session, in a transaction, before anything is said under it; it is never taken again, not even
   by the same session: a process that died has lost what that session needs.
3. A key that is erased leaves its row, so that an old offer of it is refused by name. Rows go with their run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Integer, String, Table, Text, delete, insert, select, update

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_node.journal import metadata

keys = Table(
    "training_threshold_keys",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("run", String(64), nullable=False, index=True),
    Column("ceremony", String(64), nullable=False),
    Column("place", Integer, nullable=False),
    Column("batch", Text, nullable=False),
    Column("session", String(64)),
    Column("file", String(128)),
)


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key of which this organisation has a share. `file` (None once erased) holds the public key and the share."""

    key_id: str
    run: str
    ceremony: str
    place: int
    batch: str
    session: str | None
    file: str | None

    @property
    def made(self) -> KeyBatch:
        """The batch that it belongs to."""
        return KeyBatch.from_json(json.loads(self.batch))


def put_batch(conn: Connection, batch: KeyBatch, files: tuple[str, ...]) -> None:
    """Record a batch; a key that was recorded before is an integrity error."""
    text = json.dumps(batch.to_json())
    for place, (key_id, file) in enumerate(zip(batch.keys, files, strict=True)):
        row = KeyRow(key_id, batch.plan.run, batch.plan.digest, place, text, None, file)
        conn.execute(insert(keys).values(**{name: getattr(row, name) for name in row.__dataclass_fields__}))


def find_key(conn: Connection, key_id: str) -> KeyRow | None:
    """Return a key's row."""
    row = conn.execute(select(keys).where(keys.c.key_id == key_id)).one_or_none()
    return None if row is None else KeyRow(*row)


def fresh_keys(conn: Connection, run: str) -> list[KeyRow]:
    """Return the keys of a run that no session has taken, in the order of ceremonies and places."""
    query = select(keys).where(keys.c.run == run, keys.c.session.is_(None), keys.c.file.is_not(None))
    return [KeyRow(*row) for row in conn.execute(query.order_by(keys.c.ceremony, keys.c.place))]


def take_key(conn: Connection, key_id: str, session: str) -> KeyRow:
    """Give a key to a session, for good.

    Raises:
        ComityError: `NOT_FOUND` (no such key here), `ORDER_REPLAYED` (it was taken before, or erased).
    """
    row = find_key(conn, key_id)
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "this organisation has no share of the round's key")
    if row.session is not None or row.file is None:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "a round key is used once")
    conn.execute(update(keys).where(keys.c.key_id == key_id).values(session=session))
    return row


def drop_file(conn: Connection, key_id: str) -> str | None:
    """Record that a key is erased; returns its file, which the caller erases after the commit."""
    row = find_key(conn, key_id)
    conn.execute(update(keys).where(keys.c.key_id == key_id).values(file=None))
    return None if row is None else row.file


def taken_files(conn: Connection) -> list[tuple[str, str]]:
    """Return (key, file) of every key that a session took and nobody erased: at a start, those of a dead process."""
    query = select(keys.c.key_id, keys.c.file).where(keys.c.session.is_not(None), keys.c.file.is_not(None))
    return [(str(key), str(file)) for key, file in conn.execute(query)]


def files_of(conn: Connection, run: str) -> list[str]:
    """Return the files of a run's keys."""
    query = select(keys.c.file).where(keys.c.run == run, keys.c.file.is_not(None))
    return [str(name) for name in conn.execute(query).scalars()]


def forget(conn: Connection, run: str) -> None:
    """Drop the rows of a run that is over; erase its files before."""
    conn.execute(delete(keys).where(keys.c.run == run))


def known_files(conn: Connection) -> set[str]:
    """Return the files of all keys that are not erased."""
    return {str(name) for name in conn.execute(select(keys.c.file).where(keys.c.file.is_not(None))).scalars()}


def forget_all(conn: Connection) -> None:
    """Let go of every key: a recovered node cannot know which of them served."""
    conn.execute(delete(keys))
