"""The link: the node's one stream to the coordinator, kept open for ever and resumed from the journal.

Rules:
1. What `send` was given inside a transaction reaches the coordinator at least once and, by its id, counts once.
2. A durable message from the coordinator is handed to its handler in order, one at a time, and acknowledged only once
   the journal says that it was taken in, together with others of the same moment. A crash before that hands it over
   again: handlers are idempotent, or call `complete` inside their own transaction, which makes the effect and the
   number one and the same commit.
3. A handler's `ComityError` means that the message was judged: it counts as taken. Only a journal that cannot be
   written is no judgement: the connection ends and the message comes again. Anything unexpected is tried
   `ATTEMPTS_MAX` times with pauses and then recorded in `link_failed`, so that one message cannot stop all others.
4. Relayed messages are handed over at once, many at a time within bounds; nothing keeps them but their sender.
5. A coordinator that has seen more from us than our journal remembers talks to a restored backup: `JOURNAL_BEHIND`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.observability import scope
from comity.v1 import exchange_pb2
from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keystore import KeyStore
from comity_crypto.statements import Statement
from comity_node.journal import Journal
from comity_node.observability import metrics
from comity_node.settings import NodeSettings
from comity_node.transport import store
from comity_node.transport.addresses import Addresses
from comity_node.transport.dial import dial
from comity_node.transport.inbox import Handler, Inbox
from comity_node.transport.model import Message, read_envelope, write_envelope
from comity_node.transport.outbox import Outbox
from comity_node.transport.session import CONNECTED_MAX, Session, open_session

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
BACKOFF_REFUSED_S = 15.0
RELAYED_KINDS_KEPT = 1_024

# Another address of the same coordinator may do better.
_OUT_OF_REACH = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL})

# Refusals that a quick retry cannot heal; a person or another organisation has to do something.
_LASTING = frozenset(
    {
        ErrorCode.REVOKED,
        ErrorCode.NOT_A_MEMBER,
        ErrorCode.FORBIDDEN,
        ErrorCode.CERTIFICATE_INVALID,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.SIGNATURE_INVALID,
        ErrorCode.UNSUPPORTED,
        ErrorCode.JOURNAL_BEHIND,
        ErrorCode.JOURNAL_UNWRITABLE,
        ErrorCode.KEY_UNREADABLE,
    }
)

Presence = Callable[[frozenset[str], bool], Awaitable[None]]
RefusedBody = Callable[[Connection, bytes], None]
Refused = Callable[[str, str, ComityError], Awaitable[None]]
log = structlog.get_logger("comity.node.link")


@dataclass(frozen=True, slots=True)
class LinkState:
    """What people see of the link. `error` is why it is down, if it is."""

    connected: bool
    since: str
    attempts: int = 0
    error: ComityError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the form of the local API."""
        error = self.error.to_json() if self.error else None
        return {"connected": self.connected, "since": self.since, "attempts": self.attempts, "error": error}


class Link:
    """The node's stream. Build it, register handlers, then `run()` it as one task."""

    def __init__(
        self,
        settings: NodeSettings,
        keystore: KeyStore,
        journal: Journal,
        *,
        isolation: str = "process",
        on_statement: Callable[[Connection, Statement], None] | None = None,
        on_refused: RefusedBody | None = None,
        addresses: Addresses | None = None,
    ) -> None:
        """Build it; nothing is dialled before `run`.

        `on_statement` sees each statement that `send` takes, in the same transaction (the ledger expects them);
        `on_refused` sees the body of each durable message that the coordinator refused.
        """
        self._settings = settings
        self._addresses = addresses or Addresses(settings.coordinator, settings.coordinators)
        self._keystore = keystore
        self._journal = journal
        self._isolation = isolation
        self._on_statement = on_statement
        self._on_refused = on_refused
        self._on_refused_kind: dict[str, RefusedBody] = {}
        self._inbox = Inbox(journal, self._acknowledge)
        self._outbox = Outbox(journal, settings.org)
        self._connected_callbacks: list[Callable[[], Awaitable[None]]] = []
        self._presence_callbacks: list[Presence] = []
        self._refused_callbacks: list[Refused] = []
        self._relayed_kinds: OrderedDict[str, str] = OrderedDict()
        self._session: Session | None = None
        self._online: set[str] = set()
        self._seen_seq = 0
        self._redial = asyncio.Event()
        self._dialled = ""
        self.state = LinkState(False, instants.now_text())

    # -- what capabilities use

    def register(self, kind: str, handler: Handler) -> None:
        """Hand messages of `kind` to `handler`; one handler a kind, before `run`."""
        self._inbox.register(kind, handler)

    def on_connected(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback` each time the stream opens, before any presence is told."""
        self._connected_callbacks.append(callback)

    def on_presence(self, callback: Presence) -> None:
        """Await `callback(orgs, connected)` on changes, and for all who are present each time the stream opens."""
        self._presence_callbacks.append(callback)

    def on_refused(self, kind: str, callback: RefusedBody) -> None:
        """Call `callback(conn, body)` in the transaction that notes the refusal of a durable message of `kind`."""
        self._on_refused_kind[kind] = callback

    def on_refusal(self, callback: Refused) -> None:
        """Await `callback(message id, kind, error)` when the coordinator did not take one of our messages."""
        self._refused_callbacks.append(callback)

    @property
    def connected_orgs(self) -> frozenset[str]:
        """Other organisations that are connected now; empty while this node is not."""
        return frozenset(self._online)

    @property
    def connected(self) -> bool:
        """Whether the stream is open."""
        return self._session is not None

    def send(self, conn: Connection, kind: str, body: Statement | Mapping[str, Any], *, run: str = "") -> str:
        """Put a durable message into the outbox, inside the journal transaction of `conn`; returns its id.

        Raises:
            ComityError: `TOO_LARGE`, `MALFORMED`, `BUSY` when 100,000 messages wait already.
        """
        data = body.to_bytes() if isinstance(body, Statement) else canonical.canonical(dict(body))
        message = Message(ids.new_id("m"), 0, ids.name(kind), self._settings.org, (), run, data, trace=scope.trace())
        write_envelope(message)  # refuses what the wire would not carry, while the caller can still be told
        self._outbox.put(conn, message)
        metrics.SENT.add(kind)
        if isinstance(body, Statement) and self._on_statement is not None:
            self._on_statement(conn, body)
        return message.id

    async def relay(
        self, kind: str, statement: Statement, receivers: tuple[str, ...], *, run: str, inline: bytes = b""
    ) -> str | None:
        """Send a relayed message now; returns its id, or None if the stream is down.

        Nothing keeps it: whoever relays resends on presence until it is answered.

        Raises:
            ComityError: `TOO_LARGE`, `BUSY` when too many wait for the stream.
        """
        data = statement.to_bytes()
        message = Message(
            ids.new_id("m"), 0, ids.name(kind), self._settings.org, receivers, run, data, inline, scope.trace()
        )
        envelope = write_envelope(message)
        session = self._session
        if session is None:
            return None
        self._remember(message.id, kind)
        try:
            await session.write(exchange_pb2.ConnectRequest(envelope=envelope))
        except ComityError as error:
            if error.code is ErrorCode.UNAVAILABLE:
                return None
            raise
        metrics.SENT.add(kind)
        return message.id

    def complete(self, conn: Connection, message: Message) -> bool:
        """Note inside a handler's own transaction that `message` is taken in; False if it was before.

        With False the handler must change nothing: the earlier delivery did everything.
        """
        return store.received(conn, message.seq)

    def redial(self) -> None:
        """Dial again now, with the key files as they are: after a rotation, or when a person asks."""
        self._redial.set()
        if self._session is not None:
            self._session.close()

    # -- the connection's life

    async def run(self) -> None:
        """Keep the stream open until cancelled."""
        attempts = 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._inbox.run())
            while True:
                self.state = LinkState(False, instants.now_text(), attempts, self.state.error)
                error = await self._connect_once()
                attempts = 1 if self.state.connected else attempts + 1
                self.state = LinkState(False, instants.now_text(), attempts, error)
                log.info("link.down", error=str(error), attempts=attempts)
                await self._pause(error, attempts)

    async def _pause(self, error: ComityError, attempts: int) -> None:
        if self._certificate() != self._dialled:
            return
        longest = BACKOFF_REFUSED_S if error.code in _LASTING else BACKOFF_MAX_S
        first = BACKOFF_REFUSED_S if error.code in _LASTING else BACKOFF_FIRST_S
        delay_s = min(longest, first * 2 ** min(attempts - 1, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._redial.wait()

    async def _connect_once(self) -> ComityError:
        """Open the stream and serve it until it ends; returns why it ended."""
        self._redial.clear()
        channel, address = None, self._addresses.current
        try:
            self._dialled = self._certificate()
            channel = dial(address, self._keystore.tls_paths())
            position = await self._journal.run(store.position)
            session = await open_session(
                channel,
                log_key=self._settings.log_key_bytes,
                spiffe_id=self._settings.spiffe_id,
                received_seq=position.received_seq,
                isolation=self._isolation,
            )
            if session.greeting.received_seq > position.sent_seq:
                # Numbers may have been given out while we dialled; only the journal's present state can be behind.
                position = await self._journal.run(store.position)
            if session.greeting.received_seq > position.sent_seq:
                session.close()
                return ComityError(ErrorCode.JOURNAL_BEHIND, "the coordinator holds later messages of this node")
            await self._serve(session)
        except ComityError as error:
            if error.code in _OUT_OF_REACH:
                self._addresses.failed(address)
            return error
        finally:
            self._session = None
            self._online.clear()
            if channel is not None:
                await channel.close()
        return ComityError(ErrorCode.UNAVAILABLE, "the stream ended")

    async def _serve(self, session: Session) -> None:
        self._session = session
        self._outbox.open(session.greeting.received_seq)
        self._seen_seq = 0
        self.state = LinkState(True, instants.now_text())
        metrics.RECONNECTIONS.add()
        log.info("link.up", received_seq=session.greeting.received_seq)
        self._online = set(session.greeting.connected) - {self._settings.org}
        self._inbox.tell(self._opened(frozenset(self._online)))
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(session), self._outbox.pump(session), session.keep_warm(), self._inbox.broken())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            session.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _opened(self, present: frozenset[str]) -> None:
        for callback in self._connected_callbacks:
            try:
                await callback()
            except ComityError as error:  # it is one capability's trouble, not the others'
                log.warning("link.callback", error=str(error))
        await self._tell_presence(present, True)

    async def _tell_presence(self, orgs: frozenset[str], connected: bool) -> None:
        if orgs:
            for callback in self._presence_callbacks:
                await callback(orgs, connected)

    async def _tell_refusal(self, message_id: str, kind: str, error: ComityError) -> None:
        metrics.REFUSED.add(error.code)
        log.warning("link.refused", id=message_id, kind=kind, error=str(error))
        for callback in self._refused_callbacks:
            await callback(message_id, kind, error)

    # -- outwards

    async def _acknowledge(self, up_to_seq: int) -> None:
        """Tell the coordinator what was taken in; a lost acknowledgement is repeated by the next Hello."""
        session = self._session
        # What an earlier connection brought is not acknowledged on this one before it came again: its sender would
        # not know the number yet.
        if session is not None and up_to_seq <= self._seen_seq:
            with contextlib.suppress(ComityError):
                await session.write(exchange_pb2.ConnectRequest(ack=exchange_pb2.Ack(up_to_seq=up_to_seq)))

    def _remember(self, message_id: str, kind: str) -> None:
        self._relayed_kinds[message_id] = kind
        while len(self._relayed_kinds) > RELAYED_KINDS_KEPT:
            self._relayed_kinds.popitem(last=False)

    # -- inwards

    async def _read(self, session: Session) -> None:
        async for frame in session.frames():
            what = frame.WhichOneof("frame")
            if what == "envelope":
                await self._take(read_envelope(frame.envelope, self._settings.org))
            elif what == "ack":
                self._outbox.acknowledged(frame.ack.up_to_seq)
            elif what == "refusal":
                await self._refusal(frame.refusal)
            elif what == "presence":
                self._present(frame.presence.connected, here=True)
                self._present(frame.presence.gone, here=False)
            elif what != "heartbeat":
                raise ComityError(ErrorCode.MALFORMED, "a frame of an unknown form")

    async def _take(self, message: Message) -> None:
        if message.kind == "presence" and message.sender == ids.COORDINATOR and not message.durable:
            document = message.document()
            self._present([str(document.get("org"))], here=document.get("connected") is True)
            return
        self._seen_seq = max(self._seen_seq, message.seq)
        await self._inbox.put(message)

    def _present(self, names: Collection[str], *, here: bool) -> None:
        """Note who came or went. Raises `MALFORMED`, `BUSY`."""
        if len(names) > CONNECTED_MAX:
            raise ComityError(ErrorCode.MALFORMED, "too many organisations")
        orgs = frozenset(ids.org_id(each) for each in names) - {self._settings.org}
        self._online = self._online | orgs if here else self._online - orgs
        if orgs:
            self._inbox.tell(self._tell_presence(orgs, here))

    async def _refusal(self, refusal: exchange_pb2.Refusal) -> None:
        message_id = ids.name(refusal.id)
        kind = self._relayed_kinds.pop(message_id, "")
        if not kind:
            kind = await self._journal.run(lambda conn: self._note_refusal(conn, message_id))
        error = ComityError.from_json(canonical.parse(refusal.error, max_bytes=4_096))
        self._inbox.tell(self._tell_refusal(message_id, kind, error))

    def _note_refusal(self, conn: Connection, message_id: str) -> str:
        found = store.find(conn, message_id)
        if found is None:
            return ""
        if (callback := self._on_refused_kind.get(found[0], self._on_refused)) is not None:
            callback(conn, found[1])
        return found[0]

    def _certificate(self) -> str:
        """Return a digest of the certificate on disk, to see whether it changed since we dialled; "" if unreadable."""
        try:
            return hashlib.sha256(self._keystore.tls_paths().cert.read_bytes()).hexdigest()
        except (OSError, ComityError):
            return ""
