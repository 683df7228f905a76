"""Handing messages to their handlers; rules 2, 3 and 4 of `link.py` live here.

The inbox outlives connections: a handler at work when the stream breaks goes on, and what the coordinator sends again
meanwhile is recognised by its number. Every line is bounded; a full one holds back the reading of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from comity.observability import spans
from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import Journal
from comity_node.observability import metrics
from comity_node.transport import store
from comity_node.transport.model import Message

DURABLE_WAITING_MAX = 256
EVENTS_WAITING_MAX = 4_096
RELAYED_AT_ONCE_MAX = 64
ATTEMPTS_MAX = 5
# Messages come in bursts: those of a moment are journalled as taken in, and acknowledged, together.
SETTLE_AFTER_S = 0.03
SETTLED_TOGETHER = 32
PAUSE_FIRST_S = 0.1

Handler = Callable[[Message], Awaitable[None]]
log = structlog.get_logger("comity.node.inbox")


class Inbox:
    """Durable messages in order, relayed ones at once, events (presence, refusals) in their own order."""

    def __init__(self, journal: Journal, acknowledge: Callable[[int], Awaitable[None]]) -> None:
        self._journal = journal
        self._acknowledge = acknowledge
        self._handlers: dict[str, Handler] = {}
        self._durable: asyncio.Queue[Message] = asyncio.Queue(DURABLE_WAITING_MAX)
        self._events: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._relayed: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(RELAYED_AT_ONCE_MAX)
        self._broken: asyncio.Future[None] | None = None
        self._known = False  # whether the two numbers are the journal's
        self._received_seq = self._settled_seq = 0

    def register(self, kind: str, handler: Handler) -> None:
        """Hand messages of `kind` to `handler`; one handler a kind."""
        assert kind not in self._handlers, f"{kind} has a handler"
        self._handlers[kind] = handler

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._run_durable())
                tasks.create_task(self._run_events())
        finally:
            for task in self._relayed:
                task.cancel()
            await asyncio.gather(*self._relayed, return_exceptions=True)
            while not self._events.empty():
                self._events.get_nowait().close()

    async def broken(self) -> None:
        """Wait until a durable message cannot be taken in, then raise why; the connection ends with it."""
        self._broken = asyncio.get_running_loop().create_future()
        await self._broken

    def tell(self, event: Coroutine[Any, Any, None]) -> None:
        """Run a callback after those told before it. Raises `BUSY` when too many wait: the connection starts anew."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull as error:
            event.close()
            raise ComityError(ErrorCode.BUSY, "too many events wait at this node") from error

    async def put(self, message: Message) -> None:
        """Take a message from the stream; waits while the line is full."""
        if message.durable:
            await self._durable.put(message)
            return
        handler = self._handlers.get(message.kind)
        if handler is None:
            log.warning("message.unknown", kind=message.kind, sender=message.sender)
            return
        metrics.RECEIVED.add(message.kind)
        await self._room.acquire()
        task = asyncio.create_task(self._hand_relayed(handler, message))
        self._relayed.add(task)
        task.add_done_callback(self._relayed.discard)

    async def _hand_relayed(self, handler: Handler, message: Message) -> None:
        try:
            with spans.received(f"take {message.kind}", message.trace, run=message.run):
                await handler(message)
        except ComityError as error:
            log.warning("message.refused", kind=message.kind, sender=message.sender, error=str(error))
        except Exception as error:  # noqa: BLE001 - one sender's message must not end the node; the sender resends
            metrics.FAILED.add(message.kind)
            log.error("message.failed", kind=message.kind, sender=message.sender, error=type(error).__name__)
        finally:
            self._room.release()

    async def _run_events(self) -> None:
        while True:
            event = await self._events.get()
            try:
                await event
            except ComityError as error:
                log.warning("event.refused", error=str(error))
            except Exception as error:  # a callback's mistake must not end the link
                log.error("event.failed", error=type(error).__name__, exc_info=error)

    async def _run_durable(self) -> None:
        while True:
            try:
                message = await self._next_durable()
                await self._take_in(message)
                if self._received_seq - self._settled_seq >= SETTLED_TOGETHER:
                    await self._settle()
            except ComityError as error:
                # The journal takes no writes, or a number is missing: what waits will be sent again, from the gap on.
                self._known, self._received_seq = False, self._settled_seq
                while not self._durable.empty():
                    self._durable.get_nowait()
                if self._broken is not None and not self._broken.done():
                    self._broken.set_exception(error)

    async def _next_durable(self) -> Message:
        """Wait for a message; what was taken in before it is settled after a moment without one."""
        if self._settled_seq < self._received_seq:
            try:
                async with asyncio.timeout(SETTLE_AFTER_S):
                    return await self._durable.get()
            except TimeoutError:
                await self._settle()
        return await self._durable.get()

    async def _take_in(self, message: Message) -> None:
        # Only this task advances the number, so the journal is asked for it once, and again after any trouble.
        if not self._known:
            self._received_seq = self._settled_seq = (await self._journal.run(store.position)).received_seq
            self._known = True
        if message.seq > self._received_seq + 1:
            raise ComityError(ErrorCode.MALFORMED, "a message is missing before this one", seq=message.seq)
        if message.seq <= self._received_seq:
            await self._settle()  # its sender has not heard
            return
        failure = await self._hand_durable(message)
        self._received_seq = message.seq
        if failure:
            await self._journal.run(lambda conn: store.failed(conn, message, failure))

    async def _settle(self) -> None:
        """Journal how far messages were taken in, then acknowledge them."""
        if self._settled_seq < self._received_seq:
            seq = self._received_seq
            await self._journal.run(lambda conn: store.received(conn, seq))
            self._settled_seq = seq
        await self._acknowledge(self._settled_seq)

    async def _hand_durable(self, message: Message) -> str:
        """Return "" if the message was taken, else why no attempt succeeded. Raises `JOURNAL_UNWRITABLE` only."""
        handler = self._handlers.get(message.kind)
        if handler is None:
            log.warning("message.unknown", kind=message.kind, seq=message.seq)
            return "no handler"
        metrics.RECEIVED.add(message.kind)
        failure = ""
        for attempt in range(ATTEMPTS_MAX):
            try:
                with spans.received(f"take {message.kind}", message.trace, run=message.run):
                    await handler(message)
                return ""
            except ComityError as error:
                if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                    raise
                log.warning("message.refused", kind=message.kind, seq=message.seq, error=str(error))
                return ""
            except Exception as error:  # rule 3: tried again, then recorded; never stops all others
                failure = type(error).__name__
                metrics.FAILED.add(message.kind)
                log.error("message.failed", kind=message.kind, seq=message.seq, attempt=attempt, exc_info=error)
            if attempt + 1 < ATTEMPTS_MAX:
                await asyncio.sleep(PAUSE_FIRST_S * 2**attempt)
        return failure
