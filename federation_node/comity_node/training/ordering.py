"""From a question of the ServerApp to a signed, sealed order on its way."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass
from datetime import timedelta

import structlog

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import Ask
from comity_crypto.sealing import SealedRef
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.training import blobs, store
from comity_node.training.answers import AnswerBook
from comity_node.training.blobs import SALT_BYTES, Blob, SealedBlob, order_context
from comity_node.training.led import LedRun
from comity_node.training.room import Room
from comity_node.training.tables import OPEN, QuestionRow
from comity_policies.documents import OrderHeader

# By then an answer that was on its way to the disk, or to this node, is there.
SETTLED_S = 0.5

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Written:
    """An order that nobody has heard yet, and its row for the journal."""

    order: OrderHeader
    statement: Statement
    sealed: SealedBlob
    row: QuestionRow
    timeout_s: float


class OrderWriter:
    """Writes and sends one run's orders."""

    def __init__(self, node: NodeContext, led: LedRun) -> None:
        self._node = node
        self._led = led
        self._room = Room(node.settings.payloads_folder, node.settings.limits.payload_store_bytes)

    async def write(self, ask: Ask, receivers: tuple[str, ...], number: int, content: Blob) -> Written:
        """Seal and sign; hashing and sealing run side by side. Raises `NOT_A_MEMBER`, `SPOOL_FULL`."""
        led, node, salt = self._led, self._node, secrets.token_bytes(SALT_BYTES)
        self._room.check()
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        # To nobody but ourselves: sealed all the same, so that an order has one form.
        sealed_to = tuple(org for org in receivers if org != led.me) or (led.me,)
        keys = {org: charter.member(org).keys.sealing for org in sealed_to}
        context = order_context(led.run, ask.seq)
        plain, sealed = await asyncio.gather(
            blobs.sha256_of(content),
            blobs.seal(
                content,
                node.settings.payloads_folder,
                keys,
                context,
                salt=salt,
                header=node.ledger.carried,
                fsync=False,
            ),
        )
        timeout_s = max(1.0, min(float(led.step.reply_timeout_s), ask.timeout_s or float("inf")))
        asked_at = node.clock()
        order = OrderHeader(
            agreement=led.digest,
            run=led.run,
            step=led.step.id,
            round=number,
            seq=ask.seq,
            message_type=ask.type,
            lead=led.me,
            receivers=receivers,
            payload=sealed.ref.to_json(),
            content_digest=blobs.content_digest(salt, plain),
            reply_by=instants.to_text(asked_at + timedelta(seconds=timeout_s)),
        )
        statement = sign_statement(
            node.keys, kind="order", consortium=node.settings.consortium, issuer=led.me, body=order.to_json()
        )
        row = QuestionRow(
            run=led.run,
            seq=ask.seq,
            message_type=ask.type,
            round=number,
            receivers=json.dumps(receivers),
            content_sha256=plain,
            salt=salt,
            statement=statement.to_bytes(),
            inline=sealed.inline,
            file=sealed.file,
            state=OPEN,
            asked_at=instants.to_text(asked_at),
        )
        return Written(order, statement, sealed, row, timeout_s)

    async def relay(self, statement: Statement, sealed: SealedBlob, targets: tuple[str, ...]) -> None:
        """Send an order to `targets`; what does not arrive is repeated by the caller."""
        if not targets:
            return
        try:
            await self._node.link.relay("order", statement, targets, run=self._led.run, inline=sealed.inline or b"")
        except ComityError as error:
            log.warning("order.waiting", run=self._led.run, error=str(error))

    async def remind(self, org: str, book: AnswerBook) -> None:
        """Send an order again that a sum has answered for an organisation: it may have died after its upload.

        It learns from the order and the confirmation behind it how its own order ended.
        """
        await asyncio.sleep(SETTLED_S)
        run, seq = self._led.run, book.unheard(org)
        here = org in self._node.link.connected_orgs
        row = (
            None
            if seq is None or not here
            else await self._node.journal.run(lambda conn: store.find_question(conn, run, seq))
        )
        if row is None:
            return
        statement = Statement.from_bytes(row.statement)
        order = OrderHeader.from_json(statement.body)
        sealed = SealedBlob(SealedRef.from_json(order.payload), row.inline, row.file)
        await self.relay(statement, sealed, (org,))
        if sealed.file is not None:
            await self.upload(sealed, tuple(each for each in order.receivers if each != self._led.me))
        await book.confirm(row.seq, org, statement.digest)

    async def upload(self, sealed: SealedBlob, receivers: tuple[str, ...]) -> None:
        """Put an order's payload into the spool; what fails is repeated with the order."""
        path = self._node.settings.payloads_folder / str(sealed.file)
        try:
            await self._node.payloads.put(path, sealed.ref, receivers)
        except (ComityError, OSError) as error:
            log.warning("order.upload", run=self._led.run, error=str(error))
