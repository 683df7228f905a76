"""What this node expects to find in the ledger, what was proved of it, and what is final (ledger.md section 2).

Rules:
1. A statement is *expected* in the transaction that hands it in or takes it as final; its proof is checked against the
   leaf that was expected, whichever of the two comes first.
2. Checkpoints form one chain: of two of one size, both roots are equal; a larger one extends a smaller one by proof.
   Anything else is a fork: both notes are kept as evidence and `check` refuses from then on.
3. A statement is *final* once it stands below the newest final checkpoint. Where a charter names witnesses, nothing new
   is begun on anything else, nor while that checkpoint is older than the charter allows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.statements import Statement
from comity_node import journal
from comity_node.journal import metadata
from comity_node.ledger import incidents, pointers
from comity_node.ledger.finality import Finality
from comity_policies.charter import Charter

HASH_BYTES = 32
PROOF_HASHES_MAX = 64
CHECKPOINTS_KEPT = 256
COMPARED_AT_ONCE = 64
_AT_ONCE = 500
# Proofs of what this node does not expect yet; one that was pushed out is asked for again.
UNCLAIMED_KEPT = 4_096
EXPECTED_KINDS = frozenset(
    {
        "charter",
        "charter-proposal",
        "charter-vote",
        "charter-ended",
        "proposal",
        "answer",
        "counter-acceptance",
        "agreement",
        "withdrawal",
        "ready",
        "receipt",
        "run-finished",
        "run-closed",
    }
)
# What this node was told is decided: whoever says so and does not enter it withholds it.
INSISTED_KINDS = frozenset({"charter", "agreement"})

# Marks of the journal.
BEHIND = "behind"
RECOVERED_AT = "recovered_at"
# As text: every order asks, and building the expression costs more than SQLite's answer.
_DISTRUST = """
    SELECT 'LEDGER_INVALID', detail FROM (
        SELECT detail FROM ledger_incidents WHERE org = '' AND grave AND acknowledged_at IS NULL LIMIT 1
    )
    UNION ALL SELECT 'JOURNAL_BEHIND', value FROM journal_marks WHERE name = 'behind' LIMIT 1
"""

_entries = sa.Table(
    "ledger_entries",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("leaf", sa.LargeBinary),
    sa.Column("position", sa.BigInteger),
    sa.Column("size", sa.BigInteger),
    sa.Column("root", sa.LargeBinary),
    sa.Column("hashes", sa.LargeBinary),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("changed_at", sa.Text, nullable=False),
)
_checkpoints = sa.Table(
    "ledger_checkpoints",
    metadata,
    sa.Column("size", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("consistent", sa.Boolean, nullable=False),
)


class EntryState(StrEnum):
    """How far a statement has come."""

    EXPECTED = "expected"
    UNCLAIMED = "unclaimed"
    INCLUDED = "included"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Proof:
    """An inclusion proof whose checkpoint's signature was verified. `size` and `root` are the checkpoint's."""

    digest: str
    index: int
    hashes: tuple[bytes, ...]
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint with a verified signature, as a size, a root and the note itself."""

    size: int
    root: bytes
    note: str


class LedgerStore(Finality):
    """The ledger's part of the journal. Methods take the open transaction."""

    def load(self, conn: Connection) -> None:
        """Read what is final; call once the tables exist."""
        final = pointers.get(conn, pointers.FINAL)
        self.take_final(final, final.note.encode())

    def expect(self, conn: Connection, statement: Statement) -> None:
        """Expect `statement` in the ledger; kinds that never get there are ignored."""
        if statement.kind not in EXPECTED_KINDS:
            return
        if statement.kind in INSISTED_KINDS:
            pointers.insist(conn, statement.digest, statement.kind)
        row = conn.execute(sa.select(_entries).where(_entries.c.digest == statement.digest)).first()
        if row is None:
            leaf = merkle.leaf_hash(statement.to_bytes())
            _write(conn, statement.digest, kind=statement.kind, leaf=leaf, state=EntryState.EXPECTED)
        elif row.state == EntryState.UNCLAIMED:
            proof = Proof(statement.digest, row.position, _split(row.hashes), row.size, row.root)
            self._settle(conn, proof, merkle.leaf_hash(statement.to_bytes()), statement.kind)

    def prove(self, conn: Connection, proof: Proof) -> EntryState:
        """Take a proof; returns what it came to. A proof that does not hold raises an alarm."""
        row = conn.execute(sa.select(_entries).where(_entries.c.digest == proof.digest)).first()
        if row is None:
            unclaimed = _entries.c.state == EntryState.UNCLAIMED
            newest = sa.select(_entries.c.digest).where(unclaimed).order_by(_entries.c.changed_at.desc())
            conn.execute(_entries.delete().where(unclaimed, _entries.c.digest.not_in(newest.limit(UNCLAIMED_KEPT - 1))))
            _write(conn, proof.digest, state=EntryState.UNCLAIMED, **_columns(proof))
            return EntryState.UNCLAIMED
        if row.state == EntryState.EXPECTED:
            return self._settle(conn, proof, row.leaf, row.kind)
        return EntryState(row.state)

    def unproved(self, conn: Connection, limit: int) -> list[str]:
        """Return digests of statements that are expected and not proved, oldest first."""
        query = sa.select(_entries.c.digest).where(_entries.c.state == EntryState.EXPECTED)
        return list(conn.execute(query.order_by(_entries.c.changed_at).limit(limit)).scalars())

    def forget(self, conn: Connection, statement: bytes) -> None:
        """Expect a statement no more: the coordinator refused it."""
        digest = hashlib.sha256(statement).hexdigest()
        conn.execute(_entries.delete().where(_entries.c.digest == digest, _entries.c.state == EntryState.EXPECTED))
        pointers.settled(conn, digest)

    def asked(self, conn: Connection, digest: str) -> None:
        """Put a statement whose proof was asked for in vain behind the others."""
        conn.execute(_entries.update().where(_entries.c.digest == digest).values(changed_at=instants.now_text()))

    def state_of(self, conn: Connection, digest: str) -> EntryState | None:
        """Return how far the statement `digest` has come, None if nothing is known of it."""
        found = conn.execute(sa.select(_entries.c.state).where(_entries.c.digest == digest)).scalar()
        return None if found is None else EntryState(found)

    def included(self, conn: Connection, digests: Sequence[str]) -> int:
        """Return how many of these statements are proved to be in the ledger."""
        total = 0
        for start in range(0, len(digests), _AT_ONCE):
            some = _entries.c.digest.in_(digests[start : start + _AT_ONCE])
            query = sa.select(sa.func.count()).where(some, _entries.c.state == EntryState.INCLUDED)
            total += int(conn.execute(query).scalar_one())
        return total

    def counts(self, conn: Connection) -> dict[str, int]:
        """Return how many statements are in each state."""
        query = sa.select(_entries.c.state, sa.func.count()).group_by(_entries.c.state)
        return {str(state): int(count) for state, count in conn.execute(query)}

    def see(self, conn: Connection, seen: Seen) -> bool:
        """Note a checkpoint; True if its consistency is still to be proved. Two roots of one size raise an alarm."""
        query = sa.select(_checkpoints.c.root, _checkpoints.c.note, _checkpoints.c.consistent)
        row = conn.execute(query.where(_checkpoints.c.size == seen.size)).first()
        if row is None:
            first = conn.execute(sa.select(sa.func.count()).select_from(_checkpoints)).scalar_one() == 0
            conn.execute(_checkpoints.insert().values(size=seen.size, root=seen.root, note=seen.note, consistent=first))
            return not first
        if row.root != seen.root:
            self.alarm(conn, "two checkpoints of one size", row.note, seen.note)
        return not row.consistent

    def to_compare(self, conn: Connection) -> list[Seen]:
        """Return checkpoints of ascending size, one of them proved already, whose steps are to be proved now.

        Whatever lies between two of them is among them: a fork could not hide. At most `COMPARED_AT_ONCE`; none if
        nothing is to be proved, or after an alarm.
        """
        pending = _one(conn, sa.select(_checkpoints).where(~_checkpoints.c.consistent).order_by(_checkpoints.c.size))
        if pending is None or self.alarms(conn):
            return []
        proved = sa.select(_checkpoints).where(_checkpoints.c.consistent)
        below = _one(conn, proved.where(_checkpoints.c.size < pending.size).order_by(_checkpoints.c.size.desc()))
        above = _one(conn, proved.where(_checkpoints.c.size > pending.size).order_by(_checkpoints.c.size))
        if below is None:
            return [] if above is None else [pending, above]
        query = sa.select(_checkpoints).where(_checkpoints.c.size >= below.size).order_by(_checkpoints.c.size)
        rows = conn.execute(query.limit(COMPARED_AT_ONCE)).all()
        return [Seen(row.size, row.root, row.note) for row in rows]

    def consistent(self, conn: Connection, compared: Sequence[Seen]) -> None:
        """Note that each of `compared` was proved to extend the one before; forget more than is kept."""
        sizes = [seen.size for seen in compared]
        conn.execute(_checkpoints.update().where(_checkpoints.c.size.in_(sizes)).values(consistent=True))
        kept = sa.select(_checkpoints.c.size).where(_checkpoints.c.consistent)
        kept = kept.order_by(_checkpoints.c.size.desc()).limit(CHECKPOINTS_KEPT)
        conn.execute(_checkpoints.delete().where(_checkpoints.c.consistent, _checkpoints.c.size.not_in(kept)))

    def newest(self, conn: Connection) -> Seen | None:
        """Return the largest checkpoint that is proved to extend all that were seen before."""
        query = sa.select(_checkpoints).where(_checkpoints.c.consistent).order_by(_checkpoints.c.size.desc())
        return _one(conn, query)

    def read(self, conn: Connection, seen: Seen, found: Sequence[tuple[str, int]]) -> None:
        """Note that this node has read the log up to `seen` and found entries (digest, index) there itself."""
        self.see(conn, seen)
        conn.execute(_checkpoints.update().where(_checkpoints.c.size == seen.size).values(consistent=True))
        place = dict(found)
        for start in range(0, len(found), _AT_ONCE):
            some = [digest for digest, _ in found[start : start + _AT_ONCE]]
            known = sa.select(_entries.c.digest).where(_entries.c.digest.in_(some), _entries.c.leaf.is_not(None))
            for digest in list(conn.execute(known).scalars()):
                values = {"state": EntryState.INCLUDED, "position": place[digest], "size": seen.size, "root": seen.root}
                conn.execute(_entries.update().where(_entries.c.digest == digest).values(**values))
        for digest, _, _ in pointers.insisted(conn):
            if digest in place:
                pointers.settled(conn, digest)

    def lies_on(self, conn: Connection, size: int, root: bytes) -> bool:
        """Tell whether a checkpoint is one of the history that this node has read or had proved."""
        query = sa.select(_checkpoints.c.root).where(_checkpoints.c.size == size, _checkpoints.c.consistent)
        return bool(conn.execute(query).scalar() == root)

    def alarm(self, conn: Connection, reason: str, *evidence: str, kind: str = "fork") -> bool:
        """Note an incident with its evidence (signed notes, or digests); False if the same is open already."""
        added = incidents.add(conn, kind, reason, evidence)
        if added:
            self.saw_incident()
        return added

    def alarms(self, conn: Connection) -> list[str]:
        """Return what keeps this node from new work, in a sentence each."""
        return incidents.stopping(conn)

    def check(self, conn: Connection) -> None:
        """Refuse new work on a history that was rewritten, or from a journal that forgot some of its own.

        Raises:
            ComityError: `LEDGER_INVALID` while an incident waits for an admin; `JOURNAL_BEHIND` until the node was
                recovered.
        """
        found = conn.exec_driver_sql(_DISTRUST).first()
        if found is not None:
            raise ComityError(ErrorCode(found[0]), str(found[1]))

    def check_final(self, conn: Connection, charter: Charter | None, digests: Sequence[str], now: datetime) -> None:
        """Refuse new work that rests on statements which are not final, or on a checkpoint that is too old (rule 3).

        Args:
            charter: the charter in force; where it names no witnesses nothing is refused.
            digests: of the statements that put the charter and the agreement into force.

        Raises:
            ComityError: `CHECKPOINT_STALE`, `NOT_FINAL`.
        """
        if charter is None or charter.witnesses is None:
            return
        self.check_age(charter, now)
        for digest in digests:
            if digest in self.final_known:
                continue
            query = sa.select(_entries.c.state, _entries.c.position).where(_entries.c.digest == digest)
            row = conn.execute(query).first()
            if row is None or row.state != EntryState.INCLUDED or row.position >= self.final.size:
                raise ComityError(ErrorCode.NOT_FINAL, "not below the newest final checkpoint yet", statement=digest)
            self.know_final(digest)

    def begin_anew(self, conn: Connection) -> None:
        """Forget how far this node has come: an admin goes on with what the coordinator shows now."""
        pointers.begin_anew(conn)
        conn.execute(_checkpoints.delete())
        included = _entries.c.state.in_([EntryState.INCLUDED, EntryState.BROKEN])
        conn.execute(_entries.update().where(included, _entries.c.leaf.is_not(None)).values(state=EntryState.EXPECTED))

    def _settle(self, conn: Connection, proof: Proof, leaf: bytes, kind: str) -> EntryState:
        state = EntryState.INCLUDED
        pointers.settled(conn, proof.digest)
        try:
            merkle.verify_inclusion(leaf, proof.index, proof.size, proof.hashes, proof.root)
        except ComityError:
            state = EntryState.BROKEN
            self.alarm(conn, "an inclusion proof does not hold", proof.digest, kind="proof")
        _write(conn, proof.digest, kind=kind, leaf=leaf, state=state, **_columns(proof))
        return state

    def behind(self, conn: Connection, evidence: str) -> None:
        """Note that this journal lacks a receipt that this organisation signed."""
        journal.set_mark(conn, BEHIND, evidence)

    def recovered(self, conn: Connection, now: str) -> None:
        """Note that everything open was booked as spent at `now`; what was proposed before is not agreed to again."""
        journal.clear_mark(conn, BEHIND)
        journal.set_mark(conn, RECOVERED_AT, now)

    def check_new(self, conn: Connection, statement: Statement) -> None:
        """Refuse to consent to what was said before this node was recovered. Raises `JOURNAL_BEHIND`."""
        since = journal.mark(conn, RECOVERED_AT)
        if since is not None and statement.issued_at <= since:
            raise ComityError(ErrorCode.JOURNAL_BEHIND, "said before this node was recovered; propose it anew")


def _columns(proof: Proof) -> dict[str, int | bytes]:
    return {"position": proof.index, "size": proof.size, "root": proof.root, "hashes": b"".join(proof.hashes)}


def _split(hashes: bytes) -> tuple[bytes, ...]:
    return tuple(hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES))


def _write(conn: Connection, digest: str, **values: str | int | bytes) -> None:
    conn.execute(_entries.delete().where(_entries.c.digest == digest))
    conn.execute(_entries.insert().values(digest=digest, changed_at=instants.now_text(), **values))


def _one(conn: Connection, query: sa.Select[tuple[int, bytes, str, bool]]) -> Seen | None:
    row = conn.execute(query.limit(1)).first()
    return None if row is None else Seen(row.size, row.root, row.note)


def read_hashes(values: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the hashes of a proof from the wire. Raises `MALFORMED`."""
    if len(values) > PROOF_HASHES_MAX or any(len(value) != HASH_BYTES for value in values):
        raise ComityError(ErrorCode.MALFORMED, "a proof is a short list of hashes of 32 bytes")
    return tuple(values)
