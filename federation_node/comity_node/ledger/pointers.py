"""How far this node has come with the ledger: what it has read, what it has cosigned, what is final.

Rules:
1. `followed` and `cosigned` only grow; they are on disk before anybody hears of them. Only an admin who acknowledges an
   incident lets them begin anew;
2. `final` is the newest checkpoint with enough cosignatures that lies on the history which this node has read; at one
   size, the later time counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from comity_crypto import merkle
from comity_node.journal import metadata

FOLLOWED = "followed"
COSIGNED = "cosigned"
FINAL = "final"

_pointers = sa.Table(
    "ledger_pointers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("at_s", sa.BigInteger, nullable=False),
    sa.Column("peaks", sa.LargeBinary, nullable=False),
)
# What this node insists on: entries that were promised to it, and since when it looks for them in vain.
_insisted = sa.Table(
    "ledger_insisted",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("missed_s", sa.BigInteger),
)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A checkpoint as this node keeps it. `at_s` is when (seconds since 1970); `peaks` the tree's right edge."""

    size: int = 0
    root: bytes = merkle.EMPTY_ROOT
    note: str = ""
    at_s: int = 0
    peaks: bytes = b""

    def tree(self) -> merkle.Tree:
        """Return the tree that more leaves can be appended to."""
        step = merkle.HASH_BYTES
        hashes = iter([self.peaks[start : start + step] for start in range(0, len(self.peaks), step)])
        return merkle.Tree(lambda level, index: next(hashes, b""), self.size)


def get(conn: Connection, name: str) -> Pointer:
    """Return a pointer; of size 0 if there is none yet."""
    row = conn.execute(sa.select(_pointers).where(_pointers.c.name == name)).first()
    return Pointer() if row is None else Pointer(row.size, row.root, row.note, row.at_s, row.peaks)


def put(conn: Connection, name: str, pointer: Pointer) -> bool:
    """Move a pointer on; False, and nothing changes, if it would go back."""
    before = get(conn, name)
    if (pointer.size, pointer.at_s) < (before.size, before.at_s):
        return False
    conn.execute(_pointers.delete().where(_pointers.c.name == name))
    conn.execute(
        _pointers.insert().values(
            name=name,
            size=pointer.size,
            root=pointer.root,
            note=pointer.note,
            at_s=pointer.at_s,
            peaks=pointer.peaks,
        )
    )
    return True


def begin_anew(conn: Connection) -> None:
    """Forget how far this node has come: an admin goes on with what the coordinator shows now."""
    conn.execute(_pointers.delete())
    conn.execute(_insisted.update().values(missed_s=None))


def insist(conn: Connection, digest: str, what: str) -> None:
    """Expect that the statement `digest` enters the ledger soon, or somebody withholds it."""
    if conn.execute(sa.select(_insisted.c.digest).where(_insisted.c.digest == digest)).first() is None:
        conn.execute(_insisted.insert().values(digest=digest, what=what, missed_s=None))


def settled(conn: Connection, digest: str) -> None:
    """Insist no more: it was found, or refused by name."""
    conn.execute(_insisted.delete().where(_insisted.c.digest == digest))


def insisted(conn: Connection) -> list[tuple[str, str, int | None]]:
    """Return (digest, what it is, since when it is missed) of what has not been found."""
    return [(row.digest, row.what, row.missed_s) for row in conn.execute(sa.select(_insisted).limit(1_000))]


def missed(conn: Connection, digest: str, now_s: int) -> None:
    """Note since when an entry is looked for in vain."""
    conn.execute(_insisted.update().where(_insisted.c.digest == digest).values(missed_s=now_s))


def wipe_insisted(conn: Connection, digests: list[str]) -> None:
    """An admin has acknowledged that these are missing."""
    conn.execute(_insisted.delete().where(_insisted.c.digest.in_(digests)))
