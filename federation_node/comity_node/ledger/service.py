"""Proofs as they come, checkpoints against each other, and exports that an auditor can verify alone.

Rules:
1. A proof counts only under a checkpoint that carries the signature of the log which the charter names.
2. Checkpoints are compared in the background, a few at a time, so that no run waits for it; a fork raises an alarm that
   stops new work.
3. An export is given out only after its root was computed from its entries and found to be the checkpoint's.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from sqlalchemy import Connection

from comity.v1 import ledger_pb2
from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import merkle
from comity_crypto.notes import Checkpoint, verify_note
from comity_crypto.statements import STATEMENT_BYTES_MAX, Statement
from comity_node.context import NodeContext
from comity_node.governance.service import GovernanceService
from comity_node.governance.store import CHARTER_KIND
from comity_node.ledger import incidents, pointers
from comity_node.ledger.describing import describe
from comity_node.ledger.following import Follower
from comity_node.ledger.reading import Reader
from comity_node.ledger.store import PROOF_HASHES_MAX, EntryState, LedgerStore, Proof, Seen, read_hashes
from comity_node.transport.dial import ask
from comity_node.transport.model import Message
from comity_policies.incidents import INCIDENT

EXPORT_FORMAT = "comity-ledger-export/1"
ENTRIES_AT_ONCE = 256
EXPORT_ENTRIES_MAX = 10_000_000
NOTE_CHARS_MAX = 16_384
ASKED_AGAIN_MAX = 256
PROOFS_AT_ONCE_MAX = 64
PAUSE_S = 2.0
# Checkpoints come with every proof; those of a moment are compared together, away from what brought them.
COMPARE_AFTER_S = 5.0
FORK = "checkpoints do not extend each other"
log = structlog.get_logger("comity.node.ledger")


class LedgerService:
    """The ledger's use cases."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.reader = Reader(node)
        self.follower = Follower(node, self.reader, self._read_note, self._wake.set)
        self.reader.on_entry(INCIDENT, self.follower.on_incident)
        self.reader.on_entry(CHARTER_KIND, node.services.get(GovernanceService).entered)
        node.link.register("ledger.proof", self._proof)
        node.link.register("ledger.asked", self._told)
        node.link.register("ledger.final", self._told)
        node.link.on_connected(self.ask_again)

    async def start(self) -> None:
        """Go on comparing checkpoints and reading the log where the journal says that this node stopped."""
        self._loop = asyncio.get_running_loop()
        await self._node.journal.run(self._node.ledger.load)
        self._node.ledger.on_news(self._heard)
        self._wake.set()
        self._tasks = [asyncio.create_task(self._compare()), asyncio.create_task(self.follower.run())]

    async def stop(self) -> None:
        """End both tasks; they resume at the next start."""
        self._node.ledger.on_news(lambda: None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def state(self) -> dict[str, Any]:
        """Return for people how far this node has come, what is final and who is awaited, and incidents."""
        return await describe(self._node, self.follower)

    async def acknowledge(self, incident: str, user: str, reason: str) -> dict[str, Any]:
        """Note that an admin knows of an incident; work goes on with what the coordinator shows now.

        Raises:
            ComityError: `NOT_FOUND`, `ILLEGAL_EVENT`.
        """
        now = instants.to_text(self._node.clock())

        def write(conn: Connection) -> incidents.Seen:
            seen = incidents.acknowledge(conn, incident, user, reason, now)
            if not incidents.stopping(conn):
                pointers.wipe_insisted(conn, list(seen.incident.evidence))
                self._node.ledger.begin_anew(conn)
            return seen

        seen = await self._node.journal.run(write)
        await self._node.journal.run(self._node.ledger.load)
        log.warning("ledger.acknowledged", incident=incident, user=user, reason=reason)
        self.follower.wake()
        return seen.to_json()

    async def _told(self, message: Message) -> None:
        """Take the coordinator's word that there is something to look at; what it is, signatures say."""
        if message.sender != ids.COORDINATOR:
            raise ComityError(ErrorCode.FORBIDDEN, "only the coordinator tells of checkpoints")
        note = message.document().get("note")
        if not isinstance(note, str) or len(note) > NOTE_CHARS_MAX:
            raise ComityError(ErrorCode.MALFORMED, "a signed note expected")
        if message.kind == "ledger.asked":
            self.follower.news(asked=note)
        else:
            self.follower.news(final=note)

    def _heard(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.follower.heard)

    async def ask_again(self) -> None:
        """Ask for proofs that never came: sent before a crash, or before this node knew the charter."""
        self._wake.set()
        self.follower.wake()
        if self._node.charters.current() is None:
            return
        store = self._node.ledger
        for digest in await self._node.journal.run(lambda conn: store.unproved(conn, ASKED_AGAIN_MAX)):
            request = ledger_pb2.GetInclusionProofRequest(statement_digest=digest)
            try:
                found = await ask(self._node.dialer.ledger().GetInclusionProof, request)
                await self._take([(digest, found.index, found.hashes)], found.note)
            except ComityError as error:
                if error.code is not ErrorCode.NOT_FOUND:
                    raise
                # Not there yet is no news: its proof comes by itself once it is.
                await self._node.journal.run(partial(store.asked, digest=digest))

    async def export(self, path: Path) -> dict[str, Any]:
        """Write the whole ledger to `path` as JSON lines, verified; returns its header.

        On an error the file is the caller's to remove.

        Raises:
            ComityError: `LEDGER_INVALID` if the entries do not lead to the checkpoint, and transport errors.
        """
        found = await ask(self._node.dialer.ledger().GetCheckpoint, ledger_pb2.GetCheckpointRequest())
        checkpoint = self._read_note(found.note)
        if checkpoint.size > EXPORT_ENTRIES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "ledger export", limit=EXPORT_ENTRIES_MAX)
        header = {
            "format": EXPORT_FORMAT,
            "consortium": self._node.settings.consortium,
            "size": checkpoint.size,
            "checkpoint": found.note,
        }
        final = self._node.ledger.final  # what this node itself found to be final, not the coordinator's word
        if 0 < final.size <= checkpoint.size and final.note.startswith(f"{checkpoint.origin}\n"):
            header["final"] = final.note
        with path.open("wb") as file:
            file.write(canonical.canonical(header) + b"\n")
            root = await self._write_entries(file, checkpoint.size)
        if root != checkpoint.root:
            raise ComityError(ErrorCode.LEDGER_INVALID, "the entries do not lead to the signed checkpoint")
        return header

    async def prove(self, digest: str) -> dict[str, Any]:
        """Fetch the entry `digest` with its proof, and verify both.

        Raises:
            ComityError: `NOT_FOUND` if the ledger has no such entry; `PROOF_INVALID`; transport errors.
        """
        request = ledger_pb2.GetInclusionProofRequest(statement_digest=digest)
        found = await ask(self._node.dialer.ledger().GetInclusionProof, request)
        page = await ask(
            self._node.dialer.ledger().ListEntries, ledger_pb2.ListEntriesRequest(start=found.index, limit=1)
        )
        checkpoint, data = self._read_note(found.note), b"".join(page.statements[:1])
        statement = Statement.from_bytes(data)
        if statement.digest != digest:
            raise ComityError(ErrorCode.PROOF_INVALID, "another entry stands at that place", index=found.index)
        hashes = read_hashes(found.hashes)
        merkle.verify_inclusion(merkle.leaf_hash(data), found.index, checkpoint.size, hashes, checkpoint.root)
        return {
            "statement": digest,
            "kind": statement.kind,
            "issuer": statement.issuer,
            "issued_at": statement.issued_at,
            "index": found.index,
            "size": checkpoint.size,
            "root": checkpoint.root.hex(),
            "hashes": [base64.b64encode(each).decode() for each in hashes],
            "note": found.note,
            "entry": base64.b64encode(data).decode(),
            "final": found.index < self._node.ledger.final.size,
        }

    async def _write_entries(self, file: BinaryIO, size: int) -> bytes:
        tree = merkle.Tree()
        while tree.size < size:
            request = ledger_pb2.ListEntriesRequest(start=tree.size, limit=ENTRIES_AT_ONCE)
            page = await ask(self._node.dialer.ledger().ListEntries, request)
            if not page.statements or len(page.statements) > ENTRIES_AT_ONCE:
                raise ComityError(ErrorCode.LEDGER_INVALID, "the coordinator withholds entries", index=tree.size)
            for statement in page.statements[: size - tree.size]:
                if len(statement) > STATEMENT_BYTES_MAX:
                    raise ComityError(ErrorCode.TOO_LARGE, "a ledger entry", index=tree.size)
                entry = {"index": tree.size, "statement": base64.b64encode(statement).decode()}
                file.write(canonical.canonical(entry) + b"\n")
                tree.append(merkle.leaf_hash(statement))
        return tree.root()

    async def _proof(self, message: Message) -> None:
        document = message.document()
        proofs = document.get("proofs") if isinstance(document, dict) else None
        if not isinstance(proofs, list) or not 1 <= len(proofs) <= PROOFS_AT_ONCE_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"1 to {PROOFS_AT_ONCE_MAX} ledger proofs come together")
        await self._take([_read_proof(proof) for proof in proofs], str(document.get("note")))

    async def _take(self, proofs: Sequence[tuple[str, int, Sequence[bytes]]], note: str) -> None:
        """Judge proofs (statement digest, index, hashes) that rest on one note, and keep them, in one transaction."""
        checkpoint, store = self._read_note(note), self._node.ledger
        read = [
            Proof(digest, index, read_hashes(hashes), checkpoint.size, checkpoint.root)
            for digest, index, hashes in proofs
        ]
        seen = Seen(checkpoint.size, checkpoint.root, note)

        def write(conn: Connection) -> tuple[list[EntryState], bool]:
            return [store.prove(conn, proof) for proof in read], store.see(conn, seen)

        states, pending = await self._node.journal.run(write)
        for proof, state in zip(read, states, strict=True):
            if state is EntryState.BROKEN:
                log.error("ledger.alarm", reason="an inclusion proof does not hold", statement=proof.digest)
        if EntryState.UNCLAIMED in states:
            self.follower.wake()  # something was entered that this node is told of and did not wait for: an incident
        if pending:
            self._wake.set()

    def _read_note(self, note: str) -> Checkpoint:
        if len(note) > NOTE_CHARS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "checkpoint", limit=NOTE_CHARS_MAX)
        charter = self._node.charters.in_force()
        return verify_note(note, charter.log_name, charter.log_public_key)

    async def _compare(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(COMPARE_AFTER_S)
            self._wake.clear()
            try:
                await self._compare_all()
            except ComityError as error:
                log.info("ledger.compare_later", error=str(error))
                await asyncio.sleep(PAUSE_S)
                if self._node.link.connected:
                    self._wake.set()

    async def _compare_all(self) -> None:
        """Prove that all checkpoints seen are of one history, step by step; nothing more once an alarm was raised."""
        store, journal = self._node.ledger, self._node.journal
        while compared := await journal.run(store.to_compare):
            oldest, newer, *further = compared
            request = ledger_pb2.GetConsistencyProofRequest(
                old_size=oldest.size, new_size=newer.size, further_sizes=[seen.size for seen in further]
            )
            try:
                found = await ask(self._node.dialer.ledger().GetConsistencyProof, request)
            except ComityError as error:
                if error.code is not ErrorCode.PROOF_INVALID:
                    raise
                # It has signed all of these: whoever cannot prove that they are one history has shown two.
                await journal.run(partial(_fork, store=store, notes=[seen.note for seen in compared[-2:]]))
                return
            proofs = [found.hashes, *(step.hashes for step in found.further)]
            for (smaller, larger), hashes in zip(itertools.pairwise(compared), proofs, strict=False):
                if not _extends(smaller, larger, hashes):
                    log.error("ledger.alarm", reason=FORK, sizes=[smaller.size, larger.size])
                    await journal.run(partial(_fork, store=store, notes=(smaller.note, larger.note)))
                    return
            if len(proofs) != len(compared) - 1:
                raise ComityError(ErrorCode.PROOF_INVALID, "the coordinator did not prove every step")
            await journal.run(partial(store.consistent, compared=compared))


def _fork(conn: Connection, store: LedgerStore, notes: Sequence[str]) -> None:
    store.alarm(conn, FORK, *notes)


def _extends(smaller: Seen, larger: Seen, hashes: Sequence[bytes]) -> bool:
    try:
        merkle.verify_consistency(smaller.size, larger.size, smaller.root, larger.root, read_hashes(hashes))
    except ComityError:
        return False
    return True


def _read_proof(value: Any) -> tuple[str, int, list[bytes]]:
    """Return statement digest, index and hashes of a proof as it travels. Raises `MALFORMED`."""
    fields = value if isinstance(value, dict) else {}
    digest, index, hashes = fields.get("statement"), fields.get("index"), fields.get("hashes")
    if not isinstance(digest, str) or not isinstance(index, int) or not isinstance(hashes, list):
        raise ComityError(ErrorCode.MALFORMED, "a ledger proof has not its form")
    if len(hashes) > PROOF_HASHES_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a ledger proof is too long")
    try:
        raw = [base64.b64decode(str(each), validate=True) for each in hashes]
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "a ledger proof holds no base64") from error
    return ids.sha256_hex(digest), index, raw


def build(node: NodeContext) -> LedgerService:
    """Return the capability."""
    service = LedgerService(node)
    node.services.add(service)
    return service
