"""The ledger: statements in, indexes, checkpoints and proofs out (ledger.md).

Rules, in this order:
1. appending is idempotent by the statement's digest and never touches the chain's head;
2. whoever appends has checked the statement's signature (`inbound.py`) or made it (the coordinator's own);
3. one batch is one transaction: entries, tiles, checkpoint, and the proofs to those concerned;
4. the lease is checked inside that transaction, sizes of checkpoints and indexes of entries are unique: two sequencers
   at once are harmless;
5. what is read is verified before it is returned.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_coordinator.db import after_commit
from comity_coordinator.inbound import Outbox
from comity_coordinator.ledger import store, witness_store
from comity_coordinator.ledger.tiles import Tiles
from comity_crypto.merkle import SIZE_MAX, Tree, leaf_hash
from comity_crypto.notes import Checkpoint, with_lines
from comity_crypto.statements import Statement

BATCH_MAX = 1_024
# Where the database has connections enough, nobody waits behind a batch: fewer and larger ones cost fewer round trips,
# each of which waits its turn when writers keep all cores busy. SQLite has one writer, and others want it in between.
BATCH_SHARED_MAX = 4_096
PAGE_MAX = 256
# A page must fit into one gRPC message (4 MiB) with room for its frame.
PAGE_BYTES_MAX = 3 << 20
LEASE_S = 3
NS_PER_S = 1_000_000_000
PROOFS_AT_ONCE_MAX = 64
STEPS_MAX = 64
EXPORT_FORMAT = "comity-ledger-export/1"


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That the statement with this digest stands at `index` of the log that `note` heads."""

    digest: str
    index: int
    hashes: tuple[bytes, ...]
    note: str


class Ledger:
    """One log.

    Args:
        consortium: whose log it is.
        log_name: the checkpoints' origin, as the charter's `log_name`.
        sign_note: returns the signed note over a checkpoint's text.
        outbox: where proofs leave.
    """

    def __init__(self, consortium: str, log_name: str, sign_note: Callable[[str], str], outbox: Outbox) -> None:
        self.consortium = consortium
        self.log_name = log_name
        self._sign_note = sign_note
        self._outbox = outbox
        self._counter = itertools.count()
        self._last_ns = 0
        self._mark = secrets.token_hex(3)
        self._wake: Callable[[], None] | None = None
        self._entered: Callable[[], None] | None = None

    def on_append(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from any thread, after a commit that left something to integrate."""
        self._wake = wake

    def on_checkpoint(self, entered: Callable[[], None]) -> None:
        """Have `entered` called, from any thread, after a commit that made a checkpoint."""
        self._entered = entered

    def append(
        self, conn: Connection, statement: Statement, recipients: Sequence[str] = (), *, patient: bool = False
    ) -> bool:
        """Queue `statement` for the log; its proof will go to its issuer and to `recipients`.

        A `patient` one wakes no sequencer: it is entered with the next one that does, or within some seconds. So
        entries that belong together share one checkpoint, and each organisation gets their proofs in one message.

        Returns:
            False if it was appended before, which changes nothing.
        """
        return bool(self.append_all(conn, (statement,), recipients, patient=patient))

    def append_all(
        self,
        conn: Connection,
        statements: Sequence[Statement],
        recipients: Sequence[str] = (),
        *,
        patient: bool = False,
    ) -> frozenset[str]:
        """As `append`, many at once in their order; return the digests of those that were not appended before."""
        queued = [(statement, self._place()) for statement in statements]
        new = store.add_all(conn, queued, sorted(set(recipients)), instants.now_text())
        if new and not patient and self._wake is not None:
            after_commit(conn, self._wake)
        return new

    def statement(self, conn: Connection, digest: str) -> Statement:
        """Return an appended statement. Raises `NOT_FOUND`; `LEDGER_INVALID` if its bytes have changed."""
        data = store.content(conn, digest)
        if data is None:
            raise ComityError(ErrorCode.NOT_FOUND, "no such statement was appended", digest=digest)
        return Statement.from_bytes(_checked(digest, data))

    def integrate(self, conn: Connection, holder: str, *, waited_s: int = 0) -> int:
        """Give the oldest pending statements their indexes; at most `BATCH_MAX` (`BATCH_SHARED_MAX`) of them.

        None if none waits for `waited_s`.

        Returns:
            How many; 0 if none is pending or another sequencer holds the lease.
        """
        rows = store.next_pending(conn, BATCH_MAX if conn.dialect.name == "sqlite" else BATCH_SHARED_MAX)
        if not rows or (waited_s and rows[0].place > _place_of(time.time_ns() - waited_s * NS_PER_S)):
            return 0
        now = instants.now()
        until = instants.to_text(now + timedelta(seconds=LEASE_S))
        if not store.take_lease(conn, holder, instants.to_text(now), until):
            return 0
        head = store.newest_checkpoint(conn)
        first = head.size if head else 0
        tiles = Tiles(conn)
        tree = Tree(tiles.read, first)
        if head is not None and tree.root() != head.root:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the tiles do not lead to the newest checkpoint", size=first)
        tiles.extend([node for row in rows for node in tree.append(row.leaf_hash)])
        store.integrate(conn, first, rows)
        checkpoint = Checkpoint(self.log_name, tree.size, tree.root())
        note = self._sign_note(checkpoint.text())
        store.put_checkpoint(conn, store.CheckpointRow(tree.size, checkpoint.root, note), instants.to_text(now))
        if self._entered is not None:
            after_commit(conn, self._entered)
        concerned: dict[str, list[InclusionProof]] = {}
        for offset, (row, hashes) in enumerate(zip(rows, tree.inclusion_proofs(first), strict=True)):
            proof = InclusionProof(row.digest, first + offset, hashes, note)
            for org in {row.issuer, *row.recipients} - {COORDINATOR}:
                concerned.setdefault(org, []).append(proof)
        for org, proofs in sorted(concerned.items()):
            # Together: each message costs a transaction at both ends, and all rest on one signed note.
            for start in range(0, len(proofs), PROOFS_AT_ONCE_MAX):
                self._outbox.enqueue(conn, org, "ledger.proof", proofs_json(proofs[start : start + PROOFS_AT_ONCE_MAX]))
        return len(rows)

    def checkpoint(self, conn: Connection) -> str:
        """Return the newest signed note. Raises `NOT_FOUND` while the log is empty."""
        return self._head(conn).note

    def entries(self, conn: Connection, start: int, limit: int) -> list[bytes]:
        """Return statements from index `start` on: at most `limit` (0: 256), at most `PAGE_BYTES_MAX` beyond the first.

        Raises:
            ComityError: `MALFORMED` for a limit above 256; `LEDGER_INVALID` if stored bytes have changed.
        """
        if not 0 <= limit <= PAGE_MAX or not 0 <= start <= SIZE_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"at most {PAGE_MAX} entries at a time, from an index on")
        page: list[bytes] = []
        size_bytes = 0
        for _, digest, leaf, data in store.page(conn, start, start + (limit or PAGE_MAX)):
            if leaf_hash(_checked(digest, data)) != leaf:
                raise ComityError(ErrorCode.LEDGER_INVALID, "an entry does not match its leaf hash", digest=digest)
            size_bytes += len(data)
            if page and size_bytes > PAGE_BYTES_MAX:
                break
            page.append(data)
        return page

    def inclusion(self, conn: Connection, digest: str) -> InclusionProof:
        """Prove that a statement is in the log of the newest checkpoint. Raises `NOT_FOUND`."""
        index = store.index_of(conn, digest)
        if index is None:
            raise ComityError(ErrorCode.NOT_FOUND, "the ledger has no such entry (yet)")
        head = self._head(conn)
        hashes = Tree(Tiles(conn).read, head.size).inclusion_proof(index)
        return InclusionProof(digest, index, tuple(hashes), head.note)

    def consistency(self, conn: Connection, sizes: Sequence[int]) -> list[list[bytes]]:
        """Prove that the log of each of two or more sizes extends that of the size before it.

        Raises:
            ComityError: `PROOF_INVALID` out of range; `TOO_LARGE` beyond `STEPS_MAX` steps.
        """
        if len(sizes) - 1 > STEPS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many proofs at once", limit=STEPS_MAX)
        head = self._head(conn)
        if max(sizes) > head.size:
            raise ComityError(ErrorCode.PROOF_INVALID, "the log is not that large", size=head.size)
        tree = Tree(Tiles(conn).read, head.size)
        return [tree.consistency_proof(old, new) for old, new in itertools.pairwise(sizes)]

    def export(self, conn: Connection) -> Iterator[bytes]:
        """Yield the lines of an export of the newest checkpoint: a header, then one entry each.

        Raises:
            ComityError: `NOT_FOUND` while the log is empty.
        """
        size, note, final = self.whole(conn)
        yield self.export_header(size, note, final)
        index = 0
        while index < size:  # bounded: each turn yields at least one entry
            lines = self.export_page(conn, index, size)
            yield from lines
            index += len(lines)

    def export_page(self, conn: Connection, start: int, size: int) -> list[bytes]:
        """Return at least one of the lines from `start` on of an export of `size` entries, for readers page by page.

        Raises:
            ComityError: `LEDGER_INVALID` if an entry is missing or has changed.
        """
        page = self.entries(conn, start, min(PAGE_MAX, size - start))
        if not page:
            raise ComityError(ErrorCode.LEDGER_INVALID, "an entry is missing", index=start)
        return [export_line(start + offset, data) for offset, data in enumerate(page)]

    def export_header(self, size: int, note: str, final: str = "") -> bytes:
        """Return the first line of an export; `final` is the newest final note, of `size` entries at most."""
        header = {"format": EXPORT_FORMAT, "consortium": self.consortium, "size": size, "checkpoint": note}
        if final:
            header["final"] = final
        return canonical.canonical(header) + b"\n"

    def head(self, conn: Connection) -> tuple[int, str]:
        """Return size and note of the newest checkpoint. Raises `NOT_FOUND` while the log is empty."""
        row = self._head(conn)
        return row.size, row.note

    def whole(self, conn: Connection) -> tuple[int, str, str]:
        """Return what an export of everything begins with: size and note of the newest checkpoint, the final note.

        Raises:
            ComityError: `NOT_FOUND` while the log is empty.
        """
        row, final = self._head(conn), witness_store.newest_final(conn)
        known = None if final is None else store.checkpoint(conn, final.size)
        if known is None:
            return row.size, row.note, ""
        return row.size, row.note, with_lines(known.note, witness_store.lines(conn, known.size))

    def _head(self, conn: Connection) -> store.CheckpointRow:
        head = store.newest_checkpoint(conn)
        if head is None:
            raise ComityError(ErrorCode.NOT_FOUND, "the ledger is empty")
        return head

    def _place(self) -> str:
        """Text that sorts in the order of appending, also within one transaction and when the clock stands still.

        Replicas draw a mark each: two of them never take one place.
        """
        self._last_ns = max(self._last_ns, time.time_ns())
        return f"{_place_of(self._last_ns)}-{next(self._counter):012d}-{self._mark}"


def _place_of(moment_ns: int) -> str:
    return f"{moment_ns:020d}"


def proofs_json(proofs: Sequence[InclusionProof]) -> dict[str, object]:
    """Return proofs that rest on one note as they travel to a node."""
    # Proofs of one batch share most of their hashes.
    texts = {each: base64.b64encode(each).decode() for each in set().union(*(proof.hashes for proof in proofs))}
    shown = [
        {"statement": proof.digest, "index": proof.index, "hashes": [texts[each] for each in proof.hashes]}
        for proof in proofs
    ]
    return {"note": proofs[0].note, "proofs": shown}


def proof_json(proof: InclusionProof) -> dict[str, object]:
    """Return a proof as it travels."""
    hashes = [base64.b64encode(each).decode() for each in proof.hashes]
    return {"statement": proof.digest, "index": proof.index, "hashes": hashes, "note": proof.note}


def export_line(index: int, data: bytes) -> bytes:
    """Return one entry's line of an export."""
    return canonical.canonical({"index": index, "statement": base64.b64encode(data).decode()}) + b"\n"


def _checked(digest: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise ComityError(ErrorCode.LEDGER_INVALID, "a statement's bytes have changed", digest=digest)
    return data
