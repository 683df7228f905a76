"""The lead's record of answers: journalled behind the round's back, confirmed to their senders once on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.wire.errors import ComityError
from comity_agents import memory
from comity_agents.flower.codec import read_blob
from comity_crypto.statements import sign_statement
from comity_node.context import NodeContext
from comity_node.training import blobs, store
from comity_node.training.behind import WriteBehind
from comity_node.training.events import RunEvents
from comity_node.training.profiles.base import Delivery
from comity_node.training.tables import AnswerRow
from comity_policies.documents import OrderHeader

log = structlog.get_logger("comity.node.training")


class AnswerBook:
    """One run's answers at its lead."""

    def __init__(
        self,
        node: NodeContext,
        run: str,
        behind: WriteBehind,
        events: RunEvents,
        own_kept: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`own_kept` hears the digest of each order whose own answer is on disk, and that answer's outcome."""
        self._own_kept = own_kept
        self._node = node
        self._run = run
        self._behind = behind
        self._events = events
        self._kept: dict[tuple[int, str], str] = {}
        self._heard: set[tuple[int, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Learn what an earlier process recorded."""
        rows = await self._node.journal.run(lambda conn: store.list_outcomes(conn, self._run))
        self._kept.update(rows)

    async def judge(self, delivery: Delivery) -> ComityError | None:
        """Return why a content must not reach the app, or None: it comes from another organisation's node."""
        return await asyncio.to_thread(_readable, delivery)

    async def keep(self, row: AnswerRow, order_digest: str) -> None:
        """Journal an answer soon and confirm it to its sender then."""
        task = asyncio.create_task(self._keep(row, order_digest))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def keep_now(self, row: AnswerRow, order_digest: str) -> None:
        """Journal an answer before this returns. Raises `JOURNAL_UNWRITABLE`."""
        await self._node.journal.run(lambda conn: store.put_answer(conn, row))
        self._recorded(row, order_digest)

    async def settled(self) -> None:
        """Wait until all answers taken so far are on disk."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._behind.flush()

    async def confirm_if_kept(self, run: str, seq: int, org: str, order_digest: str) -> None:
        """Confirm an answer that came again, if it is on disk."""
        self._heard.add((seq, org))
        await self.confirm(seq, org, order_digest)

    async def confirm(self, seq: int, org: str, order_digest: str) -> None:
        """Confirm an answer that is on disk, and say what it is."""
        if (seq, org) in self._kept:
            await self._confirm(org, order_digest, self._kept[seq, org])

    def unheard(self, org: str) -> int | None:
        """Return the newest question whose sum has an organisation's part, while no answer came from it itself."""
        found = [seq for (seq, who), outcome in self._kept.items() if who == org and outcome == "result"]
        return max((seq for seq in found if (seq, org) not in self._heard), default=None)

    def closed(self, order: OrderHeader, took_part: list[str], dropped: dict[str, str]) -> None:
        """Record that a question takes no more answers, and tell who is watching."""
        run, seq = order.run, order.seq
        self._behind.add(lambda conn: store.close_question(conn, run, seq))
        self.tell("question", round=order.round, type=order.message_type, participants=took_part, dropped=dropped)

    def tell(self, kind: str, **body: Any) -> None:
        """Tell who is watching the run."""
        self._events.tell(self._run, kind, **body)

    async def _keep(self, row: AnswerRow, order_digest: str) -> None:
        if row.file is not None and row.reference is not None:
            await blobs.sync(self._node.settings.payloads_folder / row.file, uncache=True)

        def write(conn: Connection) -> None:
            store.put_answer(conn, row)

        self._behind.add(write, lambda: self._recorded(row, order_digest))

    def _recorded(self, row: AnswerRow, order_digest: str) -> None:
        self._kept[row.seq, row.org] = row.outcome
        own = row.org == self._node.settings.org
        told = self._own_recorded if own else partial(self._confirm, row.org)
        task = asyncio.create_task(told(order_digest, row.outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _own_recorded(self, order_digest: str, outcome: str) -> None:
        try:
            await self._own_kept(order_digest, outcome)
        except ComityError as error:
            log.warning("own.kept", run=self._run, error=str(error))  # what it holds goes with the run

    def heard(self, seq: int, org: str) -> None:
        """Note that an organisation has answered a question by itself."""
        self._heard.add((seq, org))

    async def _confirm(self, org: str, order_digest: str, outcome: str) -> None:
        settings = self._node.settings
        body = {"run": self._run, "order": order_digest, "receiver": org, "outcome": outcome}
        statement = sign_statement(
            self._node.keys, kind="reply-ack", consortium=settings.consortium, issuer=settings.org, body=body
        )
        try:
            await self._node.link.relay("reply.ack", statement, (org,), run=self._run)
        except ComityError as error:
            log.warning("ack.lost", run=self._run, org=org, error=str(error))  # its sender asks again


def _readable(delivery: Delivery) -> ComityError | None:
    blob, wrong = delivery.blob, None
    with memory.mapped(blob.fd, blob.size) as view:
        try:
            read_blob(view)
        except ComityError as error:
            # Another one: the frames of this one hold on to the view, which could not be closed.
            wrong = ComityError(error.code, error.detail)
    return wrong
