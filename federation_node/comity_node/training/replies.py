"""Answers on their way to leads: sent once stored, sent again until confirmed, byte for byte the same.

An answer is sent when its order ends, when the lead or this node comes back, when the order comes again, and every
`RESEND_S` seconds until the lead's signed confirmation is here or the run is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import SealedRef
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.training import store
from comity_node.training.behind import WriteBehind
from comity_node.training.profiles.base import Protected
from comity_node.training.tables import OrderRow
from comity_node.transport.model import Message
from comity_policies.documents import OrderHeader, ReplyHeader

RESEND_S = 15.0
RESENT_AT_ONCE_MAX = 256

log = structlog.get_logger("comity.node.training")


class Replies:
    """Signs, sends and repeats answers."""

    def __init__(
        self, node: NodeContext, behind: WriteBehind, confirmed: Callable[[str, str], Awaitable[None]]
    ) -> None:
        """`confirmed` hears the digest of each order whose answer its lead keeps, and that answer's outcome."""
        self._node = node
        self._behind = behind
        self._confirmed = confirmed
        self._sent_at: dict[str, float] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send again what is not confirmed."""
        self._keeper = asyncio.create_task(self._keep_sending())

    async def stop(self) -> None:
        """End; what is unconfirmed stays in the journal."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def on_ack(self, message: Message) -> None:
        """Note that the lead has an answer. Raises `SIGNATURE_INVALID`, `ORDER_MISMATCH`."""
        statement = message.statement("reply-ack")
        charter = self._node.charters.current()
        if charter is None:
            return
        settings, key = self._node.settings, charter.member(statement.issuer).keys.statement
        verify_statement(statement, key, kind="reply-ack", consortium=settings.consortium)
        if statement.body.get("receiver") != settings.org:
            raise ComityError(ErrorCode.ORDER_MISMATCH, "the confirmation is for another party", field="receiver")
        digest, lead = str(statement.body.get("order")), statement.issuer
        self._sent_at.pop(digest, None)
        self._behind.add(lambda conn: store.ack_order(conn, digest, lead))
        # A lead of an earlier version names no outcome: it confirms what was sent to it.
        await self._confirmed(digest, str(statement.body.get("outcome", "result")))

    def statement(
        self,
        order: OrderHeader,
        order_digest: str,
        outcome: str,
        error: ComityError | None,
        protected: Protected | None = None,
    ) -> Statement:
        """Sign the answer to an order."""
        settings = self._node.settings
        body = ReplyHeader(
            agreement=order.agreement,
            run=order.run,
            step=order.step,
            order=order_digest,
            seq=order.seq,
            outcome=outcome,
            error=None if error is None else error.to_json(),
            payload=None if protected is None else protected.payload,
            content_digest=None if protected is None else protected.content_digest,
        )
        return sign_statement(
            self._node.keys, kind="reply", consortium=settings.consortium, issuer=settings.org, body=body.to_json()
        )

    async def send(
        self, lead: str, run: str, order_digest: str, reply: Statement, protected: Protected | None = None
    ) -> None:
        """Relay an answer; a file goes to the spool at the same time, where the lead follows it. Never raises."""
        self._sent_at[order_digest] = time.monotonic()
        inline = b"" if protected is None else protected.inline or b""
        try:
            await self._node.link.relay("reply", reply, (lead,), run=run, inline=inline)
            if protected is not None and protected.file is not None and protected.payload is not None:
                path = self._node.settings.payloads_folder / protected.file
                await self._node.payloads.put(path, SealedRef.from_json(protected.payload), (lead,))
        except (ComityError, OSError) as error:
            log.warning("reply.waiting", run=run, error=str(error))  # it is stored, and sent again

    async def send_stored(self, row: OrderRow) -> None:
        """Send a stored answer again."""
        if row.reply is None:
            return
        statement = Statement.from_bytes(row.reply)
        payload: dict[str, Any] | None = statement.body.get("payload")
        protected = None
        if payload is not None:
            protected = Protected(payload, "", "", row.inline, row.file, row.size_bytes or 0)
        await self.send(row.lead, row.run, row.digest, statement, protected)

    async def resend(self, leads: frozenset[str] | None = None, *, older_s: float = 0.0) -> None:
        """Send unconfirmed answers again, to some leads or to all, unless they were sent less than `older_s` ago."""
        rows = await self._node.journal.run(lambda conn: store.unacked_orders(conn, RESENT_AT_ONCE_MAX))
        for row in rows:
            due = time.monotonic() - self._sent_at.get(row.digest, float("-inf")) >= older_s
            if due and row.lead != self._node.settings.org and (leads is None or row.lead in leads):
                await self.send_stored(row)

    async def _keep_sending(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            try:
                await self.resend(older_s=RESEND_S)
            except ComityError as error:
                log.warning("replies.waiting", error=str(error))
