"""Durable messages on their way out: rule 1 of `link.py` lives here.

The journal keeps each message until the coordinator has committed it; this process remembers the newest ones besides,
so that the journal is read only for what an earlier process or connection left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection

from comity.v1 import exchange_pb2
from comity.wire.errors import ComityError
from comity_node.journal import Journal
from comity_node.transport import store
from comity_node.transport.model import Message, write_envelope
from comity_node.transport.session import Session

WINDOW = 64  # durable messages of ours under way and not acknowledged
# Acknowledged messages are forgotten this many at a time, or when nothing happens for a moment.
FORGOTTEN_TOGETHER = 16
QUIET_S = 1.0


class Outbox:
    """Outlives connections; `pump` serves one of them."""

    def __init__(self, journal: Journal, org: str) -> None:
        """`org` is the sender's name in what it reads back."""
        self._journal = journal
        self._org = org
        self._fresh: deque[Message] = deque(maxlen=WINDOW)
        self._newest_seq = 0  # put in by this process
        self._acked_seq = 0
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, conn: Connection, message: Message) -> None:
        """Number `message` and keep it, in the transaction of `conn`. Raises `BUSY` when too many wait."""
        seq = store.append(conn, message.id, message.kind, message.run, message.body, message.trace)
        self._journal.after_commit(conn, partial(self._committed, replace(message, seq=seq)))

    def open(self, received_seq: int) -> None:
        """Begin with a connection whose other end has committed everything up to `received_seq`."""
        self._loop = asyncio.get_running_loop()
        self._acked_seq = received_seq

    def acknowledged(self, up_to_seq: int) -> None:
        """Note that the coordinator has committed everything up to a number."""
        self._acked_seq = max(self._acked_seq, up_to_seq)
        self._wake.set()

    async def pump(self, session: Session) -> None:
        """Send in order, at most `WINDOW` beyond what is acknowledged; forget what is. Runs until cancelled."""
        try:
            await self._send(session)
        finally:
            # Another coordinator may come next, and would be sent what this one has committed.
            with contextlib.suppress(ComityError):
                await self._turn(self._acked_seq, 0, 0)

    async def _send(self, session: Session) -> None:
        sent_seq = forgotten_seq = session.greeting.received_seq
        more, read_seq = True, 0
        while True:
            self._wake.clear()
            acked_seq, newest_seq = self._acked_seq, self._newest_seq
            room = WINDOW - (sent_seq - acked_seq)
            batch = [] if more else self._at_hand(sent_seq, room)
            unread = room > 0 and not batch and (more or newest_seq > max(read_seq, sent_seq))
            if unread or acked_seq - forgotten_seq >= FORGOTTEN_TOGETHER:
                left = await self._turn(acked_seq, sent_seq, room if unread else 0)
                batch, forgotten_seq = batch or left, acked_seq
                if unread:
                    more, read_seq = len(left) == room, newest_seq
            elif not batch and await self._quiet(acked_seq > forgotten_seq):
                await self._turn(acked_seq, sent_seq, 0)
                forgotten_seq = acked_seq
            for message in batch:
                await session.write(exchange_pb2.ConnectRequest(envelope=write_envelope(message)))
                sent_seq = message.seq

    async def _quiet(self, to_forget: bool) -> bool:
        """Wait for something to do; True if there was nothing for a moment and there is something to forget."""
        try:
            async with asyncio.timeout(QUIET_S if to_forget else None):
                await self._wake.wait()
        except TimeoutError:
            return True
        return False

    def _at_hand(self, after_seq: int, room: int) -> list[Message]:
        """Return what was put in last, as far as it follows `after_seq` without a gap."""
        batch: list[Message] = []
        while self._fresh and len(batch) < room and self._fresh[0].seq <= after_seq + 1:
            message = self._fresh.popleft()
            if message.seq == after_seq + 1:
                batch.append(message)
                after_seq = message.seq
        return batch

    async def _turn(self, acked_seq: int, after_seq: int, limit: int) -> list[Message]:
        """Forget what is acknowledged; return at most `limit` messages after `after_seq`."""

        def turn(conn: Connection) -> list[Message]:
            store.acknowledged(conn, acked_seq)
            return store.waiting(conn, after_seq, limit, self._org) if limit > 0 else []

        return await self._journal.run(turn)

    def _committed(self, message: Message) -> None:
        """Runs on the journal's thread."""
        self._fresh.append(message)
        self._newest_seq = max(self._newest_seq, message.seq)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)
