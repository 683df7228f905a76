"""Results: the final model with its card, sealed to the recipients that the terms name, kept by each of them.

The sealed payload is 32 random bytes, the card's length (u32, big-endian), the card as JSON, then the content. The card
holds metrics, so it travels inside the seal; the statement beside it names only what the coordinator may know.
In `<home>/results/<run>/`: `model.npz` (arrays by name, no pickles), `content.bin` (the whole content), `card.json`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import NUMPY_STYPE, read_blob
from comity_crypto.sealing import HEADER_BYTES_MAX, SealedRef, sealed_size, write_all
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.retention import store as retention
from comity_node.settings import write_private
from comity_node.training import blobs, store
from comity_node.training.blobs import SALT_BYTES, Blob
from comity_node.training.enforcement import run_ids
from comity_node.training.events import RunEvents
from comity_node.training.ports import FINAL, Agreements
from comity_node.training.tables import INLINE_BYTES_MAX, ResultRow
from comity_node.transport.model import Message
from comity_policies.documents import Agreement

RESEND_S = 15.0
CARD_BYTES_MAX = 8 << 20
_LENGTH_BYTES = 4

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Result:
    """What `<home>/results/<run>` holds."""

    run: str
    folder: Path
    card: dict[str, Any]


def recipients_of(agreement: Agreement) -> tuple[str, ...]:
    """Return who gets the final artefact: those that the terms name, else all parties."""
    named = agreement.terms.get("result_recipients")
    return tuple(sorted(agreement.parties if named is None else set(named)))


class Results:
    """Keeps, sends and receives results. `on_result` and `on_ack` are the link's handlers."""

    def __init__(self, node: NodeContext, agreements: Agreements, events: RunEvents) -> None:
        self._node = node
        self._agreements = agreements
        self._events = events
        self._keeper: asyncio.Task[None] | None = None
        self._receiving: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to send what recipients have not confirmed."""
        self._keeper = asyncio.create_task(self._keep_sending())

    async def stop(self) -> None:
        """End; unconfirmed results stay in the journal."""
        tasks = [*self._receiving.values(), *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, run: str) -> Result:
        """Return a result that this node keeps. Raises `NOT_FOUND`."""
        folder = self._node.settings.results_folder / run
        try:
            card = json.loads(await asyncio.to_thread((folder / "card.json").read_bytes))
        except OSError as error:
            raise ComityError(ErrorCode.NOT_FOUND, "this node keeps no result of that run", run=run[:64]) from error
        return Result(run, folder, card)

    async def publish(self, run: str, agreement: Agreement, content: Blob, card: dict[str, Any]) -> ResultRow:
        """Seal a result of our own run to its recipients; keep it if we are one. Returns the row to journal.

        Raises:
            ComityError: `NOT_A_MEMBER`, `SPOOL_FULL`.
        """
        node, charter = self._node, self._node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        recipients = recipients_of(agreement)
        plain = await blobs.sha256_of(content)
        card = {**card, "content": {"sha256": plain, "size_bytes": content.size}}
        if node.settings.org in recipients:
            await asyncio.to_thread(store_files, node.settings.results_folder / run, content, card)
        keys = {org: charter.member(org).keys.sealing for org in recipients}
        salt = secrets.token_bytes(SALT_BYTES)
        whole = await asyncio.to_thread(_joined, card, content)
        try:
            digest = blobs.content_digest(salt, await blobs.sha256_of(whole))
            folder = node.settings.payloads_folder
            sealed = await blobs.seal(
                whole, folder, keys, result_context(run), salt=salt, header=node.ledger.carried, fsync=True
            )
        finally:
            whole.close()
        public = {key: card[key] for key in ("app", "rounds", "aggregation", "participants") if key in card}
        body = {
            "run": run,
            "agreement": agreement.digest,
            "payload": sealed.ref.to_json(),
            "content_digest": digest,
            "card": public,
        }
        statement = sign_statement(
            node.keys, kind="result", consortium=node.settings.consortium, issuer=node.settings.org, body=body
        )
        now = instants.to_text(node.clock())
        return ResultRow(run, agreement.digest, statement.to_bytes(), sealed.file, sealed.inline, now)

    async def resend(self, orgs: frozenset[str] | None = None) -> None:
        """Send unconfirmed results again, to some organisations or to all."""
        me = self._node.settings.org
        for row, targets in await self._node.journal.run(store.unconfirmed_results):
            wanted = tuple(each for each in targets if each != me and (orgs is None or each in orgs))
            if wanted:
                await self._send(row, wanted)

    async def on_result(self, message: Message) -> None:
        """Take another organisation's result; fetched and kept in a task. Raises `SIGNATURE_INVALID`, `MALFORMED`."""
        statement = message.statement("result")
        run = str(statement.body.get("run"))
        await self._check(statement)
        if run not in self._receiving:
            task = asyncio.create_task(self._receive(statement, run, message.inline))
            self._receiving[run] = task
            task.add_done_callback(lambda _: self._receiving.pop(run, None))

    async def on_ack(self, message: Message) -> None:
        """Note that a recipient keeps a result. Raises `SIGNATURE_INVALID`."""
        statement = message.statement("result-ack")
        charter = self._node.charters.current()
        if charter is None:
            return
        key = charter.member(statement.issuer).keys.statement
        verify_statement(statement, key, kind="result-ack", consortium=self._node.settings.consortium)
        run, org = str(statement.body.get("run")), statement.issuer
        file = await self._node.journal.run(lambda conn: store.confirm_result(conn, run, org))
        if file is not None:
            path = self._node.settings.payloads_folder / file
            await asyncio.to_thread(path.unlink, missing_ok=True)
        self._events.tell(run, "copy", org=org)

    async def _check(self, statement: Statement) -> Agreement:
        """Check that the lead of an agreement that we hold sends us what it owes us."""
        node, body, charter = self._node, statement.body, self._node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        key = charter.member(statement.issuer).keys.statement
        verify_statement(statement, key, kind="result", consortium=node.settings.consortium)
        stored = await node.journal.run(lambda conn: self._agreements.find(conn, str(body.get("agreement"))))
        agreement = stored.agreement
        if stored.state != FINAL or body.get("run") not in run_ids(agreement, str(body.get("agreement"))):
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "the result belongs to no run of it")
        if all(step.lead != statement.issuer for step in agreement.proposal.steps):
            raise ComityError(ErrorCode.ORDER_NOT_LEAD, lead=statement.issuer)
        if node.settings.org not in recipients_of(agreement):
            raise ComityError(ErrorCode.FORBIDDEN, "this organisation is no recipient of the result")
        return agreement

    async def _receive(self, statement: Statement, run: str, inline: bytes) -> None:
        node, settings = self._node, self._node.settings
        try:
            ref, folder = SealedRef.from_json(statement.body.get("payload")), settings.results_folder / run
            gone = await node.journal.run(lambda conn: retention.is_dropped(conn, run))
            if not gone and not (folder / "card.json").exists():
                limit = settings.limits.payload_bytes_max
                if ref.size > sealed_size(limit, HEADER_BYTES_MAX):
                    raise ComityError(ErrorCode.TOO_LARGE, "the result", limit_bytes=limit)
                chunks = node.payloads.get(ref) if ref.size > INLINE_BYTES_MAX else blobs.pieces(inline, ref)
                whole, salt = await blobs.open_stream(
                    node.keys,
                    settings.org,
                    ref,
                    result_context(run),
                    chunks,
                    size_max=limit,
                    salt_bytes=SALT_BYTES,
                    heard=node.ledger.hear,
                )
                try:
                    digest = blobs.content_digest(salt, await blobs.sha256_of(whole))
                    if digest != statement.body.get("content_digest"):
                        raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the result is not the one that was signed")
                    await asyncio.to_thread(_unpack, folder, whole)
                finally:
                    whole.close()
                self._events.tell(run, "result", digest=digest)
            await self._confirm(statement, run)
        except ComityError as error:
            log.warning("result.waiting", run=run, error=str(error))  # its sender repeats it

    async def _confirm(self, statement: Statement, run: str) -> None:
        settings = self._node.settings
        body = {"run": run, "receiver": settings.org}
        signed = sign_statement(
            self._node.keys, kind="result-ack", consortium=settings.consortium, issuer=settings.org, body=body
        )
        await self._node.link.relay("result.ack", signed, (statement.issuer,), run=run)

    async def _send(self, row: ResultRow, targets: tuple[str, ...]) -> None:
        statement = Statement.from_bytes(row.statement)
        try:
            await self._node.link.relay("result", statement, targets, run=row.run, inline=row.inline or b"")
            if row.file is not None:
                path = self._node.settings.payloads_folder / row.file
                await self._node.payloads.put(path, SealedRef.from_json(statement.body["payload"]), targets)
        except (ComityError, OSError) as error:
            log.warning("result.waiting", run=row.run, error=str(error))

    async def _keep_sending(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            try:
                await self.resend()
            except ComityError as error:
                log.warning("results.waiting", error=str(error))


def result_context(run: str) -> bytes:
    """The context that a result is sealed under."""
    return f"comity/result/v1/{run}".encode()


def owed(conn: Connection, row: ResultRow, recipients: tuple[str, ...], me: str) -> None:
    """Record a result and to whom it is owed, within the transaction that ends the run."""
    store.put_result(conn, row, tuple(org for org in recipients if org != me))


def _joined(card: dict[str, Any], content: Blob) -> Blob:
    text = json.dumps(card, separators=(",", ":"), sort_keys=True).encode()
    if len(text) > CARD_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "the model card", limit_bytes=CARD_BYTES_MAX)
    with memory.mapped(content.fd, content.size) as view:
        return Blob(*memory.write_parts([len(text).to_bytes(_LENGTH_BYTES, "big"), text, view]))


def _unpack(folder: Path, whole: Blob) -> None:
    with memory.mapped(whole.fd, whole.size) as view:
        length = int.from_bytes(view[:_LENGTH_BYTES], "big")
        if length > min(CARD_BYTES_MAX, whole.size - _LENGTH_BYTES):
            raise ComityError(ErrorCode.REPLY_SHAPE, "the result has no card")
        text = bytes(view[_LENGTH_BYTES : _LENGTH_BYTES + length])
        canonical.check_nesting(text)
        try:
            card = json.loads(text)
        except ValueError as error:
            raise ComityError(ErrorCode.REPLY_SHAPE, "the result's card is not JSON") from error
        with view[_LENGTH_BYTES + length :] as rest:
            content = Blob(*memory.write_parts([rest]))
    try:
        if not isinstance(card, dict):
            raise ComityError(ErrorCode.REPLY_SHAPE, "the result's card is not an object")
        store_files(folder, content, card)
    finally:
        content.close()


def store_files(folder: Path, content: Blob, card: dict[str, Any]) -> None:
    """Write a result's files; the card comes last, so that a folder with a card is whole."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with memory.mapped(content.fd, content.size) as view:
        digest = hashlib.sha256(view).hexdigest()
        if digest != card.get("content", {}).get("sha256"):
            raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the card belongs to another content")
        _write(folder / "content.bin", view)
        _write_arrays(folder / "model.npz", view)
    write_private(folder / "card.json", json.dumps(card, indent=2, sort_keys=True).encode() + b"\n")


def _write(path: Path, view: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(descriptor, view)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_arrays(path: Path, view: memoryview) -> None:
    """Write the arrays as npz, for people with numpy; opaque ones stay in `content.bin` only."""
    content = read_blob(view)
    entries = [entry for entry in content.entries if entry.stype == NUMPY_STYPE]
    names = [entry.key.replace("/", "_") or "array" for entry in entries]
    if len(set(names)) != len(names):
        names = [f"array_{index}" for index in range(len(entries))]
    arrays = {name: entry.numpy() for name, entry in zip(names, entries, strict=True)}
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
