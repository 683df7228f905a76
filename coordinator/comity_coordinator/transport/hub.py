"""The hub: every open stream, durable messages both ways, relaying between nodes, presence.

Rules
1. A durable message from a node is handled inside one transaction together with the note that it was taken. A
   handler's `ComityError` undoes the handler's own writes, becomes a refusal, and the message counts as taken.
2. A handler that fails otherwise ends the stream, so that the node sends again; at the third failure of the same
   message it is refused as INTERNAL and counts as taken, or one bad message would shut its sender out for ever.
3. `enqueue` writes the message in the caller's transaction; it leaves after the commit, in order, until acknowledged.
4. A message is relayed only between parties of its run, only to nodes that are connected, and is never stored.
5. The newest stream of an organisation wins. The organisation's standing is asked at every message, both ways.
6. Who is not here may be at another replica (`elsewhere.py`): relayed messages, words and presence go there.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from comity.observability import spans
from comity.v1 import exchange_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import new_id
from comity_coordinator.db import Database, after_commit, attempt
from comity_coordinator.observability import metrics
from comity_coordinator.transport import store
from comity_coordinator.transport.elsewhere import Alone, Elsewhere
from comity_coordinator.transport.identity import Peer
from comity_coordinator.transport.model import (
    RELAYED_KINDS,
    Message,
    Place,
    from_coordinator,
    place,
    to_wire,
)
from comity_coordinator.transport.presence import PresenceBoard
from comity_coordinator.transport.resuming import fetch, resume
from comity_coordinator.transport.session import HubLimits, Session
from comity_coordinator.transport.together import Together

Handler = Callable[[Connection, str, Message], None]
PartiesOf = Callable[[Connection, str], frozenset[str]]
Observer = Callable[[Message], None]
Admit = Callable[[Peer], Awaitable[None]]

STRIKES_MAX = 3
_RUNS_KEPT = 1_024
_STRIKES_KEPT = 1_024

log = structlog.get_logger()


@dataclass(slots=True)
class _Outcome:
    """What a batch of durable messages came to."""

    received_seq: int
    refusals: list[tuple[str, ComityError]] = field(default_factory=list)
    fatal: ComityError | None = None


class _HandlerError(Exception):
    """A handler failed in a way that is nobody's message's fault; its cause says how."""

    def __init__(self, org: str, message_id: str, kind: str) -> None:
        super().__init__(f"the handler of {kind} failed")
        self.org, self.id, self.kind = org, message_id, kind


class Hub:
    """One per coordinator process. `enqueue` may be called in any thread, everything else in the event loop."""

    def __init__(self, database: Database, admit: Admit, limits: HubLimits | None = None) -> None:
        self.limits = limits or HubLimits()
        self._database = database
        self._admit = admit
        self._sessions: dict[str, Session] = {}
        self._handlers: dict[str, Handler] = {}
        self._elsewhere: Elsewhere = Alone()
        self.presence = PresenceBoard(self._sessions, self.connected)
        self._observers: dict[str, Observer] = {}
        self._parties_of: PartiesOf | None = None
        self._runs: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._strikes: dict[tuple[str, str], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._taking = Together(database, self._handle_batch)
        self._fetching = Together(database, fetch)

    # What capabilities use.

    def connected(self) -> frozenset[str]:
        """Return the organisations whose stream is open, here or at another replica."""
        return self._elsewhere.connected().union(self._sessions)

    def here(self) -> frozenset[str]:
        """Return the organisations whose stream is open at this replica."""
        return frozenset(self._sessions)

    def join(self, elsewhere: Elsewhere) -> None:
        """Take part in a coordinator of several replicas; in the event loop, before the first stream."""
        self._elsewhere, self._loop = elsewhere, asyncio.get_running_loop()

    def waiting(self) -> tuple[int, int, int]:
        """Return how many frames wait to be sent, in all and at the longest queue, and messages to be committed."""
        queued = [len(session.queue) for session in self._sessions.values()]
        return sum(queued), max(queued, default=0), sum(each.inbound.qsize() for each in self._sessions.values())

    def register(self, kind: str, handler: Handler) -> None:
        """Handle durable messages of `kind` with `handler(conn, org, message)`, in the database's thread (rule 1)."""
        if kind in self._handlers or kind in RELAYED_KINDS:
            raise ValueError(f"{kind} has a handler already or is relayed")
        self._handlers[kind] = handler

    def observe(self, kind: str, observer: Observer) -> None:
        """Show relayed messages of `kind` to `observer` too, in order, before they go on; it must not block."""
        if kind not in RELAYED_KINDS or kind in self._observers:
            raise ValueError(f"{kind} is not relayed or has an observer")
        self._observers[kind] = observer

    def tell(self, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> bool:
        """Send `org` a word that nothing keeps; say whether its stream took it. Raises `MALFORMED`, `TOO_LARGE`."""
        session = self._sessions.get(org)
        frame = to_wire(from_coordinator(new_id("word"), kind, body, run=run))
        return self._elsewhere.tell(org, frame) if session is None else session.queue.offer(frame)

    def enqueue(self, conn: Connection, org: str, kind: str, body: dict[str, Any], *, run: str = "") -> None:
        """Send a durable message to `org`, in the transaction of `conn` (rule 3). Raises `MALFORMED`."""
        store.append(conn, org, from_coordinator(new_id("msg"), kind, body, run=run))
        after_commit(conn, functools.partial(self._soon, functools.partial(self._wake, org)))

    def enqueue_all(self, conn: Connection, orgs: Iterable[str], kind: str, body: dict[str, Any]) -> None:
        """As `enqueue`, the same body to each of `orgs`; it is encoded once. Raises `MALFORMED`."""
        first = from_coordinator(new_id("msg"), kind, body)
        messages = {org: replace(first, id=new_id("msg")) for org in orgs}
        if messages:
            store.append_all(conn, messages)
            after_commit(conn, functools.partial(self._soon, functools.partial(self._wake, *messages)))

    def authorise_runs(self, parties_of: PartiesOf) -> None:
        """Let `parties_of(conn, run)` say who may exchange messages of a run; an empty set is an unknown run."""
        self._parties_of = parties_of

    def drop(self, org: str, reason: ComityError) -> None:
        """End the stream of `org`, if one is open."""
        session = self._sessions.get(org)
        if session is not None:
            session.end(reason)

    def drop_all(self, reason: ComityError) -> None:
        """End every stream: the coordinator stops, and nodes dial again."""
        for session in list(self._sessions.values()):
            session.end(reason)

    def drop_after_commit(self, conn: Connection, org: str, reason: ComityError) -> None:
        """End the stream of `org` once the transaction of `conn` has committed."""
        after_commit(conn, functools.partial(self._soon, functools.partial(self.drop, org, reason)))
        after_commit(conn, functools.partial(self._soon, functools.partial(self._elsewhere.drop, org)))

    # What the servicer uses.

    async def open(self, peer: Peer, received_seq: int, *, reads_presence: bool = False) -> Session:
        """Start the session of a node that said Hello; the organisation's older stream ends.

        Raises:
            ComityError: `CONFLICT` if the node has received more than was ever sent to it.
        """
        self._loop = asyncio.get_running_loop()
        cursor, epoch = await self._database.run(
            functools.partial(self._resume, org=peer.name, received_seq=received_seq)
        )
        session = Session(peer, self.limits, cursor, received_seq, epoch=epoch, reads_presence=reads_presence)
        self.drop(peer.name, ComityError(ErrorCode.CONFLICT, "a newer stream of this organisation took over"))
        self._sessions[peer.name] = session
        self._elsewhere.opened(peer.name)
        self.presence.opened(peer.name)
        return session

    def close(self, session: Session) -> None:
        """Forget an ended session."""
        if self._sessions.get(session.org) is session:
            del self._sessions[session.org]
            self._elsewhere.ended(session.org)
            self.presence.ended(session.org)

    async def check(self, session: Session) -> None:
        """Ask for the organisation's standing. Raises REVOKED and the like, which must end the stream."""
        await self._admit(session.peer)

    async def receive(self, session: Session, message: Message) -> None:
        """Take one envelope off a stream. Raises what must end the stream: REVOKED and the like."""
        await self._admit(session.peer)
        if message.kind in RELAYED_KINDS:
            with spans.received(f"relay {message.kind}", message.trace, org=session.org, run=message.run):
                await self._relay(session, message)
            metrics.RECEIVED.add(message.kind)
        else:
            await session.inbound.put(message)

    async def take_durable(self, session: Session) -> None:
        """Commit durable messages as they come, in batches, and acknowledge them; runs until the stream ends."""
        while True:
            batch = await session.next_batch()
            try:
                outcome = await self._taking.ask((session.org, batch))
            except _HandlerError as defect:
                self._strike(defect)
                raise
            for message in batch:
                self._strikes.pop((session.org, message.id), None)
                metrics.RECEIVED.add(message.kind if message.kind in self._handlers else metrics.UNKNOWN)
            session.received_seq = outcome.received_seq
            ack = exchange_pb2.Ack(up_to_seq=outcome.received_seq)
            for message_id, error in outcome.refusals:
                metrics.REFUSED.add(error.code)
                session.refuse(message_id, error)
            session.send_control(exchange_pb2.ConnectResponse(ack=ack))
            if outcome.fatal is not None:
                raise outcome.fatal

    async def pump(self, session: Session) -> None:
        """Send durable messages as they are enqueued and acknowledged; runs until the stream ends."""
        while True:
            await session.wake.wait()
            session.wake.clear()
            await self._admit(session.peer)
            errand = session.errand()
            messages = await self._fetching.ask((session.org, errand))
            session.fetched(errand, len(messages))
            for message in messages:
                session.sent_seq = message.seq
                metrics.SENT.add(message.kind)
                await session.queue.put(to_wire(message))

    # What other replicas use, and the servicer behind `receive`.

    async def deliver(self, frame: bytes, orgs: Iterable[str], sender: str, kind: str) -> list[str]:
        """Offer a frame to those of `orgs` that are here; return for whom there was no room."""
        full: list[str] = []
        for org in orgs:
            receiver = self._sessions.get(org)
            if receiver is None or not await self._may_receive(receiver):
                continue
            if not receiver.queue.offer(frame, sender):
                full.append(org)
            else:
                metrics.SENT.add(kind)
        return full

    def refuse_full(self, org: str, message_id: str, full: Sequence[str]) -> None:
        """Tell a sender, if it is here, who did not get its message."""
        session = self._sessions.get(org)
        if session is not None:
            session.refuse(message_id, ComityError(ErrorCode.BUSY, organisations=",".join(full)))

    def show(self, message: Message) -> None:
        """Show an observed message that came to another replica."""
        observer = self._observers.get(message.kind)
        if observer is not None:
            observer(message)

    def wake(self, orgs: Iterable[str]) -> None:
        """Look for durable messages of those of `orgs` that are here."""
        for org in orgs:
            session = self._sessions.get(org)
            if session is not None:
                session.enqueued()

    def streams(self) -> dict[str, Session]:
        """Return the streams that are open here now."""
        return dict(self._sessions)

    def reconcile(self, before: Mapping[str, Session], streams: Mapping[str, tuple[int, int]]) -> None:
        """Compare with the database: end streams that are newer elsewhere, fetch what was enqueued elsewhere.

        Args:
            before: the streams that were open before the database was asked.
            streams: by organisation whose stream is this replica's, the epoch and the newest number enqueued.
        """
        for org, session in before.items():
            epoch, sent_seq = streams.get(org, (-1, 0))
            if epoch != session.epoch:
                session.end(ComityError(ErrorCode.CONFLICT, "a newer stream of this organisation took over"))
            elif sent_seq > session.sent_seq:
                session.enqueued()

    # Inside.

    async def _relay(self, session: Session, message: Message) -> None:
        parties = await self._parties(message.run)
        if session.org not in parties or not parties.issuperset(message.receivers):
            error = ComityError(ErrorCode.FORBIDDEN, "sender and receivers must be parties of the run")
            session.refuse(message.id, error)
            return
        observed = message.kind in self._observers
        observer = await self._elsewhere.observer_of(message.run) if observed else ""
        if observed and not observer:
            self._observers[message.kind](message)
        frame = to_wire(message)
        far = [org for org in message.receivers if org not in self._sessions]
        full = self._elsewhere.hand_on(message, frame, far, observer) if far or observer else []
        full += await self.deliver(frame, message.receivers, session.org, message.kind)
        if full:
            self.refuse_full(session.org, message.id, full)

    async def _may_receive(self, receiver: Session) -> bool:
        try:
            await self._admit(receiver.peer)
        except ComityError as error:
            receiver.end(error)
            return False
        return True

    async def _parties(self, run: str) -> frozenset[str]:
        known = self._runs.get(run)
        if known is not None:
            return known
        parties_of = self._parties_of
        if parties_of is None:
            return frozenset()
        parties = await self._database.run(lambda conn: parties_of(conn, run))
        if parties:
            self._runs[run] = parties
            if len(self._runs) > _RUNS_KEPT:
                self._runs.popitem(last=False)
        return parties

    def _handle_batch(self, conn: Connection, asked: tuple[str, Sequence[Message]]) -> _Outcome:
        org, batch = asked
        received_seq, _, _ = store.ensure_cursor(conn, org)
        outcome = _Outcome(received_seq)
        for message in batch:
            known = store.is_taken(conn, org, message.id)
            standing = place(outcome.received_seq, message.seq, id_known=known)
            if standing is Place.GAP:
                outcome.fatal = ComityError(
                    ErrorCode.MALFORMED, "a message is missing before this one", expected=outcome.received_seq + 1
                )
                break
            if standing is Place.REWOUND:
                outcome.refusals.append((message.id, ComityError(ErrorCode.JOURNAL_BEHIND, seq=message.seq)))
            if standing is not Place.NEXT:
                continue
            error = None if known else self._handle(conn, org, message)
            if error is not None:
                outcome.refusals.append((message.id, error))
            store.take(conn, org, message.id, message.seq, known=known)
            outcome.received_seq = message.seq
        return outcome

    def _handle(self, conn: Connection, org: str, message: Message) -> ComityError | None:
        handler = self._handlers.get(message.kind)
        if handler is None:
            return ComityError(ErrorCode.UNSUPPORTED, "a message of an unknown kind")
        try:
            with spans.received(f"take {message.kind}", message.trace, org=org, run=message.run):
                attempt(conn, lambda: handler(conn, org, message))
        except ComityError as error:
            return error
        except DBAPIError:
            raise
        except Exception as error:  # a handler's defect: rule 2
            if self._strikes.get((org, message.id), 0) + 1 >= STRIKES_MAX:
                log.exception("message.failed", org=org, kind=message.kind, id=message.id, attempt=STRIKES_MAX)
                return ComityError(ErrorCode.INTERNAL, "the message could not be handled")
            raise _HandlerError(org, message.id, message.kind) from error
        return None

    def _strike(self, defect: _HandlerError) -> None:
        """Count a failed delivery of a message, however often the message was tried in it."""
        key = (defect.org, defect.id)
        strikes = self._strikes.pop(key, 0) + 1
        log.error("message.failed", org=defect.org, kind=defect.kind, id=defect.id, attempt=strikes, exc_info=defect)
        if len(self._strikes) >= _STRIKES_KEPT:
            self._strikes.clear()
        self._strikes[key] = strikes

    def _soon(self, call: Callable[[], None]) -> None:
        """Do `call` in the event loop; there is nothing to do before the first stream."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    def _wake(self, *orgs: str) -> None:
        self.wake(orgs)
        self._elsewhere.wake(org for org in orgs if org not in self._sessions)

    def _resume(self, conn: Connection, *, org: str, received_seq: int) -> tuple[int, int]:
        return resume(conn, org, received_seq), self._elsewhere.claim(conn, org)
