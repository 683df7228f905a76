"""This organisation's answers to the orders of an intersection: called like the process of an app, and no process.

The rules stand in `model.py`. The journal notes what a party has answered before the answer is made, so that a node
that was restarted answers the same order alike and refuses another one in its place.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.events import Reply
from comity_crypto.psi.messages import Kind, Message
from comity_node.intersections import model, store
from comity_node.intersections.carried import carried, carry
from comity_node.intersections.own import OwnSide
from comity_node.journal import Journal
from comity_policies.documents import IntersectStep


class PartyOfIntersection:
    """One run's work at one party."""

    def __init__(self, journal: Journal, side: OwnSide, step: IntersectStep, run: str, me: str) -> None:
        self._journal = journal
        self._side = side
        self._step = step
        self._run = run
        self._partner = me == step.partner

    async def start(self) -> None:
        """Nothing is started: a worker process lives for one job."""

    async def call(
        self, header: Mapping[str, Any], blob_fd: int, size: int, deadline_s: float, reply_bytes_max: int
    ) -> Reply:
        """Serve one order.

        Raises:
            ComityError: `ORDER_MISMATCH`, `ORDER_REPLAYED`, `MALFORMED`, `TOO_LARGE`, `CIPHERTEXT_INVALID`,
                `DATASET_COLUMNS`, `WORKER_TIMEOUT`, `WORKER_DIED`, `REPLY_TOO_LARGE`.
        """
        data = carried(blob_fd, size)
        try:
            async with asyncio.timeout(deadline_s):
                message = await self._answer(int(header["seq"]), data)
        except TimeoutError as error:
            raise ComityError(ErrorCode.WORKER_TIMEOUT, limit_s=int(deadline_s)) from error
        answer = message.to_bytes()
        if len(answer) > reply_bytes_max:
            raise ComityError(ErrorCode.REPLY_TOO_LARGE, limit_bytes=reply_bytes_max)
        return Reply({"op": "reply", "id": header.get("id")}, *carry(answer))

    async def close(self) -> None:
        """Nothing is held that does not go with this object."""

    async def _answer(self, seq: int, data: bytes) -> Message:
        digest = hashlib.sha256(data).hexdigest()
        known = await self._journal.run(lambda conn: store.party(conn, self._run))
        plan = await asyncio.to_thread(model.take, known, seq, self._partner, data, digest)
        if isinstance(plan, model.Mask):
            own, points = await self._side.masked()
            await self._note(lambda party: replace(party, masked=own.count))
            return Message(Kind.MASKED, points)
        await self._note(lambda party: replace(party, compared=digest))
        matched = await self._side.doubled(plan.theirs)
        return await asyncio.to_thread(model.answer, self._step.mode, matched, plan.mine)

    async def _note(self, change: Callable[[model.Party], model.Party]) -> None:
        def write(conn: Connection) -> None:
            store.put(conn, self._run, change(store.party(conn, self._run)))

        await self._journal.run(write)
