"""The node: everything is built and joined here, and nowhere else.

Order of life: lock the home, open the journal, build the capabilities, create tables, start the services, serve the
local API, dial. It ends in the other order. A second process on the same home is refused before it touches anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog

from comity.observability import scope, starting
from comity.wire import heap, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keystore import FileKeyStore
from comity_node.access.service import AccessService
from comity_node.context import NodeContext, Service
from comity_node.governance.service import GovernanceService
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger.describing import brief
from comity_node.ledger.service import LedgerService
from comity_node.ledger.store import LedgerStore
from comity_node.negotiation.service import NegotiationService
from comity_node.observability import metrics
from comity_node.observability.gauges import Gauges
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.engine import ReloadablePolicy
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy
from comity_node.rest import LocalServer, PortServer, build_api
from comity_node.settings import NodeSettings
from comity_node.transport import store as link_store
from comity_node.transport.addresses import Addresses
from comity_node.transport.dial import Dialer
from comity_node.transport.link import Link
from comity_node.transport.payloads import Payloads

# Built in this order and stopped in the other: `service.build(node)` if there is one, `api.router(node)` likewise.
CAPABILITIES = (
    *("access", "membership", "governance", "ledger", "policy", "reviews", "attestation", "negotiation", "training"),
    *("intersections", "statistics", "retention"),
)
READY_TIMEOUT_S = 10.0
TOKEN_CHARS_MIN = 32
STOP_TIMEOUT_S = 5.0
log = structlog.get_logger("comity.node")


class Node:
    """One organisation's node in this process. Use `run`."""

    def __init__(self, settings: NodeSettings) -> None:
        """Open keys, journal and policy, and build every capability. Raises what any of them refuses."""
        settings.make_folders()
        self._keystore = FileKeyStore(settings.keys_folder)
        keys = self._keystore.load()
        own_policy = ReloadablePolicy(settings, lambda: keys.public.statement)
        journal = Journal.open(settings.journal_file)
        charters = CharterStore(settings, journal)
        self._consortium_policy = ConsortiumPolicy(settings, charters.current)
        policy = RecordedPolicy(
            own_policy, self._consortium_policy, DecisionLog(settings.decisions_file, settings.decision_log)
        )
        ledger = LedgerStore()
        isolation = settings.isolation if settings.isolation != "best" else _best_isolation()
        addresses = Addresses(settings.coordinator, settings.coordinators)
        link = Link(
            settings,
            self._keystore,
            journal,
            isolation=isolation,
            on_statement=ledger.expect,
            on_refused=ledger.forget,
            addresses=addresses,
        )
        self.context = NodeContext(
            settings=settings,
            keys=keys,
            keystore=self._keystore,
            journal=journal,
            link=link,
            dialer=Dialer(addresses, self._keystore),
            payloads=Payloads(addresses, self._keystore),
            charters=charters,
            ledger=ledger,
            policy=policy,
            clock=instants.now,
        )
        self._access = AccessService(journal, own_policy, instants.now, settings.oidc_resolved)
        self.context.services.add(self._access)
        self._started_at = instants.now_text()
        self._isolation = isolation
        self._listening = ""
        self._metrics_port = 0
        self._services = [service for name in CAPABILITIES if (service := _build(name, self.context)) is not None]
        reader = self.context.services.get(LedgerService).reader
        reader.on_entry("withdrawal", self.context.services.get(NegotiationService).on_withdrawal)
        journal.create_all()
        self.context.charters.load()
        self._consortium_policy.load(journal)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Work until SIGTERM or SIGINT; `on_ready` is called once the local API answers and the link dials.

        Raises:
            ComityError: what keeps the node from starting, or ended it.
        """
        node = self.context
        token = _read_token(node.settings.token_file)
        stop = asyncio.create_task(_stop_event().wait())
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(stop.cancel)
            stack.callback(node.journal.close)
            stack.callback(node.policy.close)
            stack.push_async_callback(node.dialer.close)
            stack.push_async_callback(node.payloads.close)
            self._metrics_port = await self._tell(stack)
            routers = [_router(name, node) for name in CAPABILITIES]
            api = build_api(self._access.over_socket(token), routers, self.status)
            for service in self._services:
                stack.push_async_callback(service.stop)
                await service.start()
            server = LocalServer(api, node.settings.socket_file)
            serving = asyncio.create_task(server.run())
            stack.push_async_callback(_finish, serving, server.stop)
            async with asyncio.timeout(READY_TIMEOUT_S):
                await server.ready()
            ends = [serving, stop, *await self._serve_people(stack, routers)]
            linking = asyncio.create_task(node.link.run())
            stack.push_async_callback(_finish, linking, linking.cancel)
            log.info("node.ready", org=node.settings.org, consortium=node.settings.consortium)
            on_ready()
            await asyncio.wait([*ends, linking], return_when=asyncio.FIRST_COMPLETED)
            log.info("node.stopping", asked=stop.done())

    async def _tell(self, stack: contextlib.AsyncExitStack) -> int:
        """Begin with metrics and traces, if the settings name a place for them; returns the port of the metrics."""
        settings, gauges = self.context.settings, Gauges(self.context)
        telling = starting.Telling("comity-node", metrics.BOOK, gauges.read, metrics.READ_ERRORS, settings.org)
        return await starting.begin(stack, telling, settings.metrics, settings.traces)

    async def _serve_people(self, stack: contextlib.AsyncExitStack, routers: list[Any]) -> list[asyncio.Task[Any]]:
        """Serve the port for people, if the settings name one; returns the task that serves it."""
        wanted = self.context.settings.listen
        if wanted is None:
            return []
        server = PortServer(build_api(self._access.over_port, routers, self.status), wanted, self.context.settings.home)
        serving = asyncio.create_task(server.run())
        stack.push_async_callback(_finish, serving, server.stop)
        async with asyncio.timeout(READY_TIMEOUT_S):
            await server.ready()
        self._listening = server.address
        log.info("node.listening", address=server.address)
        return [serving]

    async def status(self) -> dict[str, Any]:
        """Return the node's state for people."""
        node = self.context
        position = await node.journal.run(link_store.position)
        charter = node.charters.current()
        return {
            "org": node.settings.org,
            "consortium": node.settings.consortium,
            "fingerprint": node.keys.public.fingerprint(),
            "genesis": node.charters.genesis_name(),
            "charter_version": charter.version if charter else None,
            "members": list(charter.organisations) if charter else [],
            "suspended": list(charter.suspended) if charter else [],
            "charter_proposals": await node.services.get(GovernanceService).decisions.awaited(),
            "link": node.link.state.to_json(),
            "connected_orgs": sorted(node.link.connected_orgs),
            "outbox": {
                "waiting": await node.journal.run(link_store.waiting_count),
                "sent_seq": position.sent_seq,
                "received_seq": position.received_seq,
                "failed": await node.journal.run(link_store.failures),
            },
            "ledger": brief(await node.services.get(LedgerService).state()),
            "policy": {"engine": node.policy.name, "bundle": node.policy.bundle_digest},
            "isolation": self._isolation,
            "listen": self._listening or None,
            "metrics_port": self._metrics_port or None,
            "started_at": self._started_at,
            "pid": os.getpid(),
        }


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home for this process. Raises `CONFLICT` if another one has it."""
    descriptor = os.open(home / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ComityError(ErrorCode.CONFLICT, "a node is running on this home") from error
    try:
        yield
    finally:
        os.close(descriptor)


def run_node(home: Path, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run the node of `home` until it is told to stop."""
    os.umask(0o077)  # whatever this process and its children write is their organisation's alone
    settings = NodeSettings.load(home)
    with locked(home):
        asyncio.run(_run(settings, on_ready))


async def _run(settings: NodeSettings, on_ready: Callable[[], None]) -> None:
    node = Node(settings)
    heap.settle()
    with scope.about(org=settings.org):
        await node.run(on_ready)


def _build(name: str, node: NodeContext) -> Service | None:
    if name in ("access", "membership", "policy", "intersections", "statistics"):
        return None  # they act only when a person, or another capability, asks
    service: Service = import_module(f"comity_node.{name}.service").build(node)
    return service


def _router(name: str, node: NodeContext) -> Any:
    return import_module(f"comity_node.{name}.api").router(node)


def _best_isolation() -> str:
    from comity_agents.sandbox import best_isolation

    return best_isolation().term


def _read_token(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ComityError(ErrorCode.KEY_UNREADABLE, "api.token") from error
    if len(token) < TOKEN_CHARS_MIN:
        raise ComityError(ErrorCode.KEY_UNREADABLE, "api.token is too short")
    return token


def _stop_event() -> asyncio.Event:
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


async def _finish(task: asyncio.Task[Any], end: Callable[[], object]) -> None:
    """End `task` within the grace; an error that ended it earlier is the node's error."""
    end()
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await task
