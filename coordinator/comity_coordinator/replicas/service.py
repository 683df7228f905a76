"""One replica among others on one database: it says that it lives, sees the others, and carries between them.

Rules
1. The database decides: who lives (a lease), at which replica an organisation's newest stream is (an epoch), who keeps
   the state of a run's sums. Links and hints only make it quick; every look at the database is at most `LOOK_EVERY_S`
   after what it finds, so that nothing depends on them.
2. A link that breaks takes the organisations behind it away, and brings them back when it stands again: whoever relayed
   to them in between sends again.
3. What a replica that died kept in memory (sums under way, the engine's untold news) is taken up by the others: the
   sums by whoever hears of the run next, the engine's by a scan.
4. The newest process of a name wins; an older one that sees it ends.
5. A replica that no longer reaches the database while others do sends its nodes to them (`model.py`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.v1 import replica_pb2
from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.replicas import store
from comity_coordinator.replicas.link import Heard, Identity, PeerLink
from comity_coordinator.replicas.model import Outlook
from comity_coordinator.replicas.store import Row
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.model import Message
from comity_coordinator.transport.session import SendQueue

LEASE_S = 6
BEAT_EVERY_S = 1.5
LOOK_EVERY_S = 0.5
TIDY_EVERY_S = 60.0
KEEPERS_KEPT = 1_024
EVENT_BYTES_MAX = 64 << 10
OUTBOX, LEDGER, REVOKED, EVENT = "outbox", "ledger", "revoked", "event"
AWAY = "this replica does not reach its database; another one may"

Hinted = Callable[[tuple[str, ...], bytes], None]
log = structlog.get_logger("comity.replicas")


def new_boot() -> str:
    """Return a name for a process."""
    return secrets.token_hex(16)


class Replicas:
    """Implements `transport.elsewhere.Elsewhere`. `start`, then `run` as a task; to be used in the event loop."""

    def __init__(self, database: Database, hub: Hub, me: Identity) -> None:
        self._database = database
        self._hub = hub
        self._me = me
        self._address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[str, tuple[PeerLink, asyncio.Task[None]]] = {}
        self._listeners: dict[SendQueue, asyncio.Event] = {}
        self._keepers: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._on_hint: dict[str, Hinted] = {}
        self._on_lost: list[Callable[[], None]] = []
        self._on_away: list[Callable[[ComityError], None]] = []
        self._beaten_at = self._tidied_at = float("-inf")
        self._outlook = Outlook(LEASE_S)
        self._seen: frozenset[tuple[str, str]] = frozenset()
        self.on_hint(OUTBOX, lambda orgs, _: hub.wake(orgs))
        self.on_hint(REVOKED, self._revoked)

    # What the composition root uses.

    def on_hint(self, kind: str, act: Hinted) -> None:
        """Call `act(subjects, body)` in the event loop when another replica hints at `kind`; it must not block."""
        self._on_hint[kind] = act

    def on_lost(self, act: Callable[[], None]) -> None:
        """Call `act()` when a replica that lived does no more."""
        self._on_lost.append(act)

    def on_away(self, act: Callable[[ComityError], None]) -> None:
        """Call `act(reason)` when nodes are better off elsewhere (rule 5)."""
        self._on_away.append(act)

    def living(self) -> tuple[str, ...]:
        """Return the names of the other replicas whose link stands."""
        return tuple(sorted(name for name, (link, _) in self._links.items() if link.up))

    def standing(self) -> dict[str, Any]:
        """Return this replica's name, the others that live by the database, and those whose link stands."""
        return {
            "name": self._me.name,
            "living": sorted(name for name, _ in self._seen),
            "linked": list(self.living()),
            "streams": sorted(self._hub.here()),
            "takes_nodes": not self._outlook.away,
        }

    def check(self) -> None:
        """Raises `UNAVAILABLE` while nodes are sent to other replicas (rule 5)."""
        if self._outlook.away:
            raise ComityError(ErrorCode.UNAVAILABLE, AWAY, replica=self._me.name)

    def channels(self) -> tuple[grpc.aio.Channel, ...]:
        """Return connections for sealed payloads to the other replicas."""
        return tuple(link.payloads() for link, _ in self._links.values() if link.up)

    async def start(self, address: str) -> None:
        """Say that this replica lives at `address` (host:port). Raises as `Database.run`."""
        self._loop = asyncio.get_running_loop()
        self._address = address
        await self._beat(first=True)
        await self._look()

    async def run(self) -> None:
        """Work until cancelled. Raises `CONFLICT` when another process has taken this replica's name."""
        loop = asyncio.get_running_loop()
        outlook = asyncio.create_task(self._watch())
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                try:
                    if loop.time() - self._beaten_at >= BEAT_EVERY_S:
                        await self._beat(first=False)
                    await self._look()
                    if loop.time() - self._tidied_at >= TIDY_EVERY_S:
                        self._tidied_at = loop.time()
                        await self._database.run(store.forget_sums)
                except (ComityError, SQLAlchemyError) as error:
                    code = getattr(error, "code", "")
                    if code is ErrorCode.CONFLICT:
                        raise
                    log.error("replica.not_looked", error=type(error).__name__, code=str(code))
        finally:
            self._loop = None
            outlook.cancel()
            await asyncio.gather(outlook, return_exceptions=True)
            await self._close()

    def hint(self, kind: str, subjects: Iterable[str] = (), body: bytes = b"") -> None:
        """Have the other replicas look; what finds no room is found by their own looking."""
        asked = replica_pb2.CarryRequest(hint=replica_pb2.Hint(kind=kind, subjects=list(subjects), body=body))
        for link, _ in self._links.values():
            link.offer(asked)

    def soon(self, kind: str, body: bytes = b"") -> None:
        """As `hint`, from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(partial(self.hint, kind, body=body))

    def publish(self, event: dict[str, Any]) -> None:
        """Show an event to those who watch at other replicas; from any thread."""
        body = canonical.canonical(event)
        if len(body) <= EVENT_BYTES_MAX:
            self.soon(EVENT, body)

    # What the servicer uses.

    def listen(self, queue: SendQueue) -> asyncio.Event:
        """Tell `queue` of the streams here, from all of them on; the event is set when it has no room for that."""
        full = self._listeners[queue] = asyncio.Event()
        _say(queue, full, opened=self._hub.here())
        return full

    def unlisten(self, queue: SendQueue) -> None:
        """Tell it no more."""
        self._listeners.pop(queue, None)

    def hinted(self, kind: str, subjects: tuple[str, ...], body: bytes) -> None:
        """Act on a hint; one of a kind that this version does not know is passed over."""
        act = self._on_hint.get(kind)
        if act is not None:
            act(subjects, body)

    # What the hub uses (`transport/elsewhere.py` says what each does).

    def connected(self) -> frozenset[str]:
        """Return the organisations whose stream is open at another replica."""
        return frozenset().union(*(link.orgs for link, _ in self._links.values()))

    def claim(self, conn: Connection, org: str) -> int:
        """Note that the stream of `org` is here now; return its epoch."""
        return store.claim(conn, org, self._me.name, self._me.boot)

    def opened(self, org: str) -> None:
        """Tell the others."""
        for queue, full in self._listeners.items():
            _say(queue, full, opened=(org,))

    def ended(self, org: str) -> None:
        """Tell the others."""
        for queue, full in self._listeners.items():
            _say(queue, full, ended=(org,))

    async def observer_of(self, run: str) -> str:
        """Return the replica that keeps the state of a run's sums; "" for this one. Asked once for each run."""
        known = self._keepers.get(run)
        if known is None or (known != self._own and known not in self._seen):
            ask = partial(store.keeper, run=run, name=self._me.name, boot=self._me.boot, now=instants.now_text())
            known = await self._database.run(ask)
            self._keepers[run] = known
            if len(self._keepers) > KEEPERS_KEPT:
                self._keepers.popitem(last=False)
        return "" if known == self._own else known[0]

    def hand_on(self, message: Message, frame: bytes, orgs: Iterable[str], observer: str) -> list[str]:
        """Send a relayed frame to those of `orgs` that are elsewhere, and to `observer`; return who had no room."""
        wanted, full = set(orgs), []
        for name, (link, _) in self._links.items():
            there = [org for org in wanted if link.has(org)]
            if not there and name != observer:
                continue
            handed = replica_pb2.Handed(
                frame=frame, orgs=there, sender=message.sender, id=message.id, observe=name == observer
            )
            if not link.offer(replica_pb2.CarryRequest(handed=handed), message.sender):
                full += there
        return full

    def tell(self, org: str, frame: bytes) -> bool:
        """Send a word of the coordinator; say whether the link to where `org` is took it."""
        for link, _ in self._links.values():
            if link.has(org):
                return link.offer(replica_pb2.CarryRequest(handed=replica_pb2.Handed(frame=frame, orgs=[org])))
        return False

    def wake(self, orgs: Iterable[str]) -> None:
        """Have the replicas of `orgs` look for what was enqueued."""
        wanted = list(orgs)
        for link, _ in self._links.values():
            there = [org for org in wanted if link.has(org)]
            if there:
                link.offer(replica_pb2.CarryRequest(hint=replica_pb2.Hint(kind=OUTBOX, subjects=there)))

    def drop(self, org: str) -> None:
        """End the stream of `org` elsewhere."""
        self.hint(REVOKED, (org,))

    # Inside.

    @property
    def _own(self) -> tuple[str, str]:
        return self._me.name, self._me.boot

    def _revoked(self, orgs: tuple[str, ...], _: bytes) -> None:
        for org in orgs:
            self._hub.drop(org, ComityError(ErrorCode.REVOKED))

    def _other_reached(self, name: str) -> None:
        self._outlook.other_reached(name, asyncio.get_running_loop().time())

    async def _watch(self) -> None:
        """Beside `run`, which waits for the database: send nodes away while it does not answer."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            links = {name: link.up for name, (link, _) in self._links.items()}
            if self._outlook.look(loop.time(), links):
                log.error("replica.away", streams=len(self._hub.here()))
                for act in self._on_away:
                    act(ComityError(ErrorCode.UNAVAILABLE, AWAY, replica=self._me.name))

    async def _beat(self, *, first: bool) -> None:
        until = instants.to_text(instants.now() + timedelta(seconds=LEASE_S))
        row = Row(self._me.name, self._address, self._me.boot, until)
        if not await self._database.run(partial(store.beat, row=row, first=first)):
            raise ComityError(ErrorCode.CONFLICT, "another process has this replica's name", replica=self._me.name)
        self._beaten_at = asyncio.get_running_loop().time()
        if self._outlook.away:
            log.info("replica.back")
        self._outlook.reached(self._beaten_at)
        reached = replica_pb2.CarryResponse(beat=replica_pb2.ReplicaBeat(reached_database=True))
        for queue, full in self._listeners.items():
            _answer(queue, full, reached)

    async def _look(self) -> None:
        """See who lives, which streams are still ours, and what was enqueued elsewhere."""
        before = self._hub.streams()
        rows, streams = await self._database.look(self._read)
        self._hub.reconcile(before, streams)
        others = {row.name: row for row in rows if row.name != self._me.name}
        for name, (link, task) in list(self._links.items()):
            row = others.get(name)
            if row is None or (row.address, row.boot) != (link.row.address, link.row.boot):
                del self._links[name]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for name, row in others.items():
            if name not in self._links:
                link = PeerLink(row, self._me, Heard(self._changed, self._hub.refuse_full, self._other_reached))
                self._links[name] = (link, asyncio.create_task(link.run()))
        seen = frozenset((row.name, row.boot) for row in others.values())
        lost, self._seen = self._seen - seen, seen
        if lost:
            log.warning("replica.lost", replicas=sorted(name for name, _ in lost))
            for act in self._on_lost:
                act()

    def _read(self, conn: Connection) -> tuple[tuple[Row, ...], Any]:
        return store.living(conn, instants.now_text()), store.mine(conn, self._me.name, self._me.boot)

    def _changed(self, _: str, opened: frozenset[str], ended: frozenset[str]) -> None:
        if opened:
            self._hub.presence.opened(*opened)
        if ended:
            self._hub.presence.ended(*ended)

    async def _close(self) -> None:
        links, self._links = list(self._links.values()), {}
        for _, task in links:
            task.cancel()
        await asyncio.gather(*(task for _, task in links), return_exceptions=True)
        try:
            await self._database.run(partial(store.leave, name=self._me.name, boot=self._me.boot))
        except (ComityError, SQLAlchemyError) as error:
            log.warning("replica.not_left", error=type(error).__name__)  # its lease ends by itself


def _say(queue: SendQueue, full: asyncio.Event, *, opened: Iterable[str] = (), ended: Iterable[str] = ()) -> None:
    streams = replica_pb2.Streams(opened=sorted(opened), ended=sorted(ended))
    _answer(queue, full, replica_pb2.CarryResponse(streams=streams))


def _answer(queue: SendQueue, full: asyncio.Event, response: replica_pb2.CarryResponse) -> None:
    try:
        queue.control(response.SerializeToString())
    except ComityError:
        full.set()
