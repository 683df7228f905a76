"""Whether this node's journal is behind its own receipts: the sign of a restored backup (architecture.md section 4).

Rules:
1. No order is served before the ledger was asked, once after each start of the node.
2. Only a receipt that this organisation signed counts as evidence; nobody can stop a node with a claim.
3. Once the journal is found behind, the node refuses work until `comity node recover`, whatever is said later.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog
from sqlalchemy import Connection

from comity.v1 import ledger_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, key_id, verify_statement
from comity_node.context import NodeContext
from comity_node.training import store
from comity_node.transport.dial import ask
from comity_policies.documents import Receipt

WAIT_S = 20.0
AGAIN_S = 1.0
log = structlog.get_logger("comity.node.training")


class Standing:
    """Asks after each start; `wait` holds work back until the answer is here."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._known = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return once the ledger was asked. Raises `UNAVAILABLE` if it does not answer."""
        if self._known.is_set():
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await self._known.wait()
        except TimeoutError as error:
            raise ComityError(
                ErrorCode.UNAVAILABLE, "the ledger was not asked yet whether this journal is new"
            ) from error

    async def on_connected(self) -> None:
        """Ask in the background, unless this process did."""
        if not self._known.is_set() and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._ask())

    async def stop(self) -> None:
        """End asking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        while not self._known.is_set():  # until this process ends: nothing is served meanwhile
            try:
                found = await ask(self._node.dialer.ledger().GetStanding, ledger_pb2.GetStandingRequest())
                newest = read_receipt(self._node, found.receipt)
                await self._node.journal.run(partial(self._compare, newest=newest))
                self._known.set()
            except ComityError as error:
                log.warning("standing.unknown", error=str(error))
                await asyncio.sleep(AGAIN_S)

    def _compare(self, conn: Connection, newest: Statement | None) -> None:
        if newest is None:
            return
        number = Receipt.from_json(newest.body).journal_seq
        if not store.knows_receipt(conn, number, newest.to_bytes()):
            log.error("journal.behind", receipt=number)
            self._node.ledger.behind(conn, f"the ledger has receipt {number} of this organisation, which is not here")


def read_receipt(node: NodeContext, data: bytes) -> Statement | None:
    """Return this organisation's own receipt, None for no bytes. Raises `SIGNATURE_INVALID`, `MALFORMED`."""
    if not data:
        return None
    settings, statement = node.settings, Statement.from_bytes(data)
    if statement.issuer != settings.org:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the receipt is not ours")
    # A receipt may be older than the last rotation of our keys; the charters say which keys were ours.
    ours = {node.keys.public.statement, *node.charters.statement_keys(settings.org)}
    named = next((key for key in ours if key_id(key) == statement.key_id), node.keys.public.statement)
    verify_statement(statement, named, kind="receipt", consortium=settings.consortium)
    return statement
