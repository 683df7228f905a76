"""Every invariant of a live ledger, checked from the bytes up; the oracle of the fault tests (ledger.md section 2).

1. entries are dense from 0; each statement's bytes have its digest, its leaf hash is theirs;
2. each statement parses, and its signature holds under the charter in force at its place;
3. each checkpoint's root is the root of its first `size` leaves, its note is signed by the log's key and says the same;
4. the newest checkpoint covers all entries, and the tiles hold the leaves' and full subtrees' hashes;
5. nothing is pending that is integrated; every appended statement is one or the other;
6. witnesses were asked about checkpoints of this log; every cosignature is a witness's, and the newest round that is
   noted as final is so by the rule of the charter in force.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sqlalchemy import Connection, func, select

from comity.wire.errors import ComityError
from comity.wire.ids import COORDINATOR
from comity_coordinator.ledger import store, witness_store
from comity_coordinator.ledger.service import PAGE_MAX, Ledger
from comity_coordinator.ledger.tiles import Tiles
from comity_crypto.merkle import Tree, leaf_hash
from comity_crypto.notes import cosignature_times, verify_note, with_lines
from comity_crypto.statements import Statement, verify_statement
from comity_policies.charter import Charter

FINDINGS_MAX = 100


def check(conn: Connection, ledger: Ledger, log_key: bytes) -> list[str]:
    """Return what is wrong, one sentence each, at most 100; empty if all invariants hold.

    Args:
        log_key: the log's Ed25519 public key, 32 bytes.
    """
    found: list[str] = []
    for finding in _findings(conn, ledger, log_key):
        found.append(finding)
        if len(found) >= FINDINGS_MAX:
            break
    return found


def _findings(conn: Connection, ledger: Ledger, log_key: bytes) -> Iterator[str]:
    checkpoints = {row.size: row for row in store.all_checkpoints(conn)}
    size = int(conn.execute(select(func.count()).select_from(store.entries)).scalar_one())
    tree, tiles, keys = Tree(), Tiles(conn), _Keys(log_key)
    if size and size not in checkpoints:
        yield "the newest checkpoint does not cover all entries"
    index = 0
    while index < size:  # bounded: every turn ends or moves on by a page
        page = store.page(conn, index, index + PAGE_MAX)
        if [row[0] for row in page] != list(range(index, min(index + PAGE_MAX, size))):
            yield f"an entry is missing between {index} and {index + PAGE_MAX}"
            return
        for at, digest, leaf, data in page:
            yield from keys.entry(at, digest, leaf, data)
            for level, position, value in tree.append(leaf):
                yield from _node(tiles, level, position, value)
            row = checkpoints.pop(at + 1, None)
            if row is not None:
                yield from _checkpoint(row, tree.root(), ledger.log_name, log_key)
        index += len(page)
    yield from (f"the checkpoint of size {extra} is beyond the entries" for extra in sorted(checkpoints))
    yield from _queue(conn)
    yield from _rounds(conn, keys.charter)


class _Keys:
    """Who may have signed an entry: the members of the newest charter before it, and the log that it names."""

    def __init__(self, log_key: bytes) -> None:
        self._log_key = log_key
        self._charter: Charter | None = None

    @property
    def charter(self) -> Charter | None:
        """The newest charter among the entries so far."""
        return self._charter

    def entry(self, index: int, digest: str, leaf: bytes, data: bytes) -> Iterator[str]:
        """Check one entry against invariants 1 and 2."""
        if hashlib.sha256(data).hexdigest() != digest:
            yield f"entry {index}: its bytes have changed"
            return
        if leaf_hash(data) != leaf:
            yield f"entry {index}: its leaf hash is not that of its bytes"
        try:
            said = Statement.from_bytes(data)
            verify_statement(said, self._key(said))
            if said.kind == "charter" and said.issuer == COORDINATOR:
                self._charter = Charter.from_json(said.body["charter"])
        except (ComityError, KeyError) as error:
            yield f"entry {index}: its form or signature does not hold ({error})"

    def _key(self, said: Statement) -> bytes:
        if said.issuer == COORDINATOR:
            # A charter is stated by the log that it names itself: a successor's is its own first word.
            stated = Charter.from_json(said.body["charter"]) if said.kind == "charter" else self._charter
            return self._log_key if stated is None else stated.log_public_key
        if self._charter is None:
            raise KeyError("no charter before it")
        return self._charter.member(said.issuer).keys.statement


def _node(tiles: Tiles, level: int, index: int, value: bytes) -> Iterator[str]:
    try:
        stored = tiles.read(level, index)
    except ComityError:
        stored = b""
    if stored != value:
        yield f"the tile with node {index} of level {level} does not hold its hash"


def _checkpoint(row: store.CheckpointRow, root: bytes, log_name: str, log_key: bytes) -> Iterator[str]:
    if row.root != root:
        yield f"the checkpoint of size {row.size} has another root than its entries"
    try:
        said = verify_note(row.note, log_name, log_key)
    except ComityError as error:
        yield f"the note of the checkpoint of size {row.size} does not hold ({error.code})"
        return
    if (said.size, said.root) != (row.size, row.root):
        yield f"the note of the checkpoint of size {row.size} says something else"


def _queue(conn: Connection) -> Iterator[str]:
    both = conn.execute(
        select(func.count()).select_from(
            store.pending.join(store.entries, store.pending.c.digest == store.entries.c.digest)
        )
    ).scalar_one()
    if both:
        yield f"{both} statements are pending and integrated at once"
    counts = [
        int(conn.execute(select(func.count()).select_from(table)).scalar_one())
        for table in (store.statements, store.entries, store.pending)
    ]
    if counts[0] != counts[1] + counts[2] - both:
        yield "an appended statement is neither pending nor integrated"


def _rounds(conn: Connection, charter: Charter | None) -> Iterator[str]:
    rounds = witness_store.all_rounds(conn)
    for each in rounds:
        row = store.checkpoint(conn, each.size)
        if row is None:
            yield f"witnesses were asked about a checkpoint of size {each.size} that is not there"
            continue
        try:
            cosigned = with_lines(row.note, witness_store.lines(conn, each.size))
            if charter is not None:
                cosignature_times(cosigned, {member.org: member.keys.statement for member in charter.members})
        except ComityError as error:
            yield f"the cosignatures of the checkpoint of size {each.size} do not hold ({error.code})"
    final = witness_store.newest_final(conn)
    if final is None or charter is None or charter.witness_rule is None:
        return
    # A charter that came with or after that checkpoint may ask for others: they cosign what comes next.
    if any(index >= final.size - 1 for index in store.indexes_of(conn, "charter")):
        return
    row, rule = store.checkpoint(conn, final.size), charter.witness_rule
    if row is None or row.note.split("\n", 1)[0] != charter.log_name:
        return
    note = with_lines(row.note, witness_store.lines(conn, final.size))
    keys = {org: charter.member(org).keys.statement for org in rule.orgs}
    if len(cosignature_times(note, keys)) < rule.k:
        yield f"the checkpoint of size {final.size} is noted as final and has too few cosignatures"
