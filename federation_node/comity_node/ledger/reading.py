"""Reading the log from where this node stopped: every entry is hashed, what concerns this organisation is looked at.

Rules:
1. Nothing is believed before the root over all entries is that of a checkpoint which the log signed. The root is
   computed from this node's own right edge of the tree, which proves consistency too: another past has another root.
2. If it is another root, a consistency proof tells what happened: the past was rewritten, or the entries served are
   not those of the checkpoint.
3. Entries in this organisation's name carry its signature; entries of the coordinator are not dated before what this
   node had read already. Whatever concerns other parts of the node is handed to them (`on_entry`), once it is proved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog

from comity.v1 import ledger_pb2
from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_crypto import merkle
from comity_crypto.notes import Checkpoint
from comity_crypto.statements import STATEMENT_BYTES_MAX, Statement, verify_statement
from comity_node.context import NodeContext
from comity_node.ledger.pointers import Pointer
from comity_node.ledger.store import read_hashes
from comity_node.transport.dial import ask

ENTRIES_AT_ONCE = 256
# A coordinator dates what it enters within seconds; clocks of two organisations differ by less than this.
CLOCK_SKEW_S = 300

OnEntry = Callable[[Statement], Awaitable[None]]
log = structlog.get_logger("comity.node.ledger")


class Broken(Exception):  # noqa: N818 - it names what is broken, and is no error of this node
    """The ledger does not hold: what kind of incident it is, one sentence, and the evidence."""

    def __init__(self, kind: str, detail: str, *evidence: str) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.evidence = kind, detail, tuple(each for each in evidence if each)


@dataclass(slots=True)
class Read:
    """What was read: the tree, (digest, index) of every entry, and the entries that concern somebody here."""

    tree: merkle.Tree
    places: list[tuple[str, int]] = field(default_factory=list)
    concerning: list[tuple[int, Statement]] = field(default_factory=list)
    odd: list[Broken] = field(default_factory=list)


class Reader:
    """Reads entries and hands on what concerns this organisation."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._handlers: dict[str, OnEntry] = {}

    def on_entry(self, kind: str, handler: OnEntry) -> None:
        """Await `handler(statement)` for each entry of `kind`, proved to be in the log; it may come twice."""
        assert kind not in self._handlers, f"{kind} has a handler"
        self._handlers[kind] = handler

    async def read(self, followed: Pointer, checkpoint: Checkpoint, note: str) -> Read:
        """Read from `followed` up to `checkpoint`, whose note is `note`.

        Raises:
            Broken: the entries do not lead there.
            ComityError: transport errors; nothing was learned then.
        """
        found = Read(followed.tree())
        while found.tree.size < checkpoint.size:  # bounded: each turn appends an entry or raises
            limit = min(ENTRIES_AT_ONCE, checkpoint.size - found.tree.size)
            request = ledger_pb2.ListEntriesRequest(start=found.tree.size, limit=limit)
            page = await ask(self._node.dialer.ledger().ListEntries, request)
            if not page.statements or len(page.statements) > limit:
                raise Broken("altered", "the coordinator does not serve what its checkpoint covers", note)
            for data in page.statements:
                self._enter(found, data, followed)
        if found.tree.root() != checkpoint.root:
            raise await self._why(followed, checkpoint, note)
        return found

    async def hand_on(self, found: Read) -> None:
        """Give proved entries to whoever asked for their kind; one that is refused there does not stop the others."""
        for index, statement in found.concerning:
            handler = self._handlers.get(statement.kind)
            if handler is None:
                continue
            try:
                await handler(statement)
            except ComityError as error:
                if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                    raise
                log.info("ledger.entry_refused", kind=statement.kind, index=index, error=str(error))

    def _enter(self, found: Read, data: bytes, followed: Pointer) -> None:
        index = found.tree.size
        found.tree.append(merkle.leaf_hash(data))
        found.places.append((hashlib.sha256(data).hexdigest(), index))
        me = self._node.settings.org
        kind, issuer = _heading(data)
        if issuer not in (me, COORDINATOR) and kind not in self._handlers:
            return
        try:
            statement = Statement.from_bytes(data, max_bytes=STATEMENT_BYTES_MAX)
            if issuer == me:
                self._check_own(statement)
        except ComityError:
            digest = found.places[-1][0]
            if issuer == me:
                detail = f"entry {index} is in this organisation's name and not signed by it"
                found.odd.append(Broken("forged", detail, followed.note, digest))
            return
        if issuer == COORDINATOR and followed.at_s:
            floor = instants.from_epoch_s(followed.at_s) - timedelta(seconds=CLOCK_SKEW_S)
            if statement.issued_at < instants.to_text(floor):
                detail = f"entry {index} ({kind}) is dated {statement.issued_at}, before what was read already"
                found.odd.append(Broken("back-dated", detail, followed.note, statement.digest))
        if kind in self._handlers:
            found.concerning.append((index, statement))

    def _check_own(self, statement: Statement) -> None:
        """Refuse what no key of ours, now or formerly, has signed. Raises `SIGNATURE_INVALID`."""
        keys = self._node.charters.statement_keys(self._node.settings.org) | {self._node.keys.public.statement}
        for key in keys:
            try:
                verify_statement(statement, key)
                return
            except ComityError:
                continue
        raise ComityError(ErrorCode.SIGNATURE_INVALID)

    async def _why(self, followed: Pointer, checkpoint: Checkpoint, note: str) -> Broken:
        """Ask whether the checkpoint extends what was read before, and return what is wrong."""
        if followed.size:
            request = ledger_pb2.GetConsistencyProofRequest(old_size=followed.size, new_size=checkpoint.size)
            try:
                proof = await ask(self._node.dialer.ledger().GetConsistencyProof, request)
                hashes = read_hashes(proof.hashes)
                merkle.verify_consistency(followed.size, checkpoint.size, followed.root, checkpoint.root, hashes)
            except ComityError as error:
                if error.code not in (ErrorCode.PROOF_INVALID, ErrorCode.MALFORMED, ErrorCode.LEDGER_INVALID):
                    raise
                detail = f"the log of {checkpoint.size} entries does not extend that of {followed.size}"
                return Broken("rewrite", detail, followed.note, note)
        return Broken("altered", "the entries served are not those of the signed checkpoint", followed.note, note)


def _heading(data: bytes) -> tuple[str, str]:
    """Return kind and issuer of an entry, "" where it has no form: its signature is the business of others."""
    try:
        value: Any = canonical.read(data)
    except ComityError:
        return "", ""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, dict):
        return "", ""
    return str(content.get("kind")), str(content.get("issuer"))
