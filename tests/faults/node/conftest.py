"""A coordinator for the link's tests: real mutual TLS, one script a connection."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from comity.v1 import exchange_pb2, exchange_pb2_grpc
from comity.wire import canonical, ids
from comity.wire.errors import ComityError
from comity.wire.grpc_errors import abort
from comity_crypto import x509
from comity_crypto.keys import OrgKeys
from comity_crypto.keystore import FileKeyStore
from comity_crypto.tokens import welcome_message
from comity_node.journal import Journal
from comity_node.settings import NodeSettings
from comity_node.transport.link import Link

CONSORTIUM, ORG = "demo", "hospital-a"


@dataclass
class Stream:
    """One connection as the coordinator sees it."""

    hello: exchange_pb2.Hello
    requests: Any
    context: Any

    async def welcome(self, keys: OrgKeys, received_seq: int, connected: tuple[str, ...] = (), org: str = ORG) -> None:
        digest = bytes(32)
        message = welcome_message(digest, ids.spiffe_org(CONSORTIUM, org))
        await self.context.write(
            exchange_pb2.ConnectResponse(
                welcome=exchange_pb2.Welcome(
                    protocol=1,
                    received_seq=received_seq,
                    certificate_digest=digest,
                    signature=keys.sign(message),
                    connected=connected,
                )
            )
        )

    async def next(self) -> exchange_pb2.ConnectRequest:
        return await asyncio.wait_for(anext(self.requests), 10)

    async def send(self, seq: int, kind: str, body: Any, *, sender: str = ids.COORDINATOR, run: str = "") -> None:
        envelope = exchange_pb2.Envelope(
            id=f"msg-{seq}-{kind}",
            seq=seq,
            kind=kind,
            sender=sender,
            receivers=() if sender == ids.COORDINATOR else (ORG,),
            run=run,
            body=canonical.canonical(body),
        )
        await self.context.write(exchange_pb2.ConnectResponse(envelope=envelope))

    async def ack(self, up_to_seq: int) -> None:
        await self.context.write(exchange_pb2.ConnectResponse(ack=exchange_pb2.Ack(up_to_seq=up_to_seq)))


Script = Callable[[Stream], Awaitable[None]]


@dataclass
class FakeCoordinator:
    """Runs `scripts` one a connection; the last one repeats."""

    keys: OrgKeys
    authority: tuple[bytes, bytes]
    port: int
    scripts: list[Script] = field(default_factory=list)
    hellos: list[exchange_pb2.Hello] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    server: grpc.aio.Server | None = None

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        first = await anext(request_iterator)
        self.hellos.append(first.hello)
        script = self.scripts[min(len(self.hellos), len(self.scripts)) - 1]
        try:
            await script(Stream(first.hello, request_iterator, context))
        except ComityError as error:
            await abort(context, error)
        except StopAsyncIteration:
            pass  # the node left
        except AssertionError as error:
            self.failures.append(error)
            raise

    async def start(self) -> None:
        key, certificate = x509.issue_server(*self.authority, CONSORTIUM, ["localhost"], ["127.0.0.1"])
        credentials = grpc.ssl_server_credentials([(key, certificate)], self.authority[1], require_client_auth=True)
        self.server = grpc.aio.server()
        exchange_pb2_grpc.add_ExchangeServiceServicer_to_server(self, self.server)
        assert self.server.add_secure_port(f"127.0.0.1:{self.port}", credentials) == self.port
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    made = FakeCoordinator(OrgKeys.generate(), x509.create_authority(CONSORTIUM), free_port())
    await made.start()
    yield made
    await made.stop()
    assert made.failures == []


@pytest.fixture
def settings(tmp_path: Path, coordinator: FakeCoordinator) -> NodeSettings:
    home = tmp_path / "node"
    store = FileKeyStore(home / "keys")
    home.mkdir(mode=0o700)
    store.create()
    key, csr = x509.make_csr(ORG)
    certificate = x509.issue_node(*coordinator.authority, csr, CONSORTIUM, ORG)
    store.store_tls(key, certificate, coordinator.authority[1])
    return NodeSettings(
        home=home,
        org=ORG,
        consortium=CONSORTIUM,
        title="A",
        owner="A",
        coordinator=f"127.0.0.1:{coordinator.port}",
        log_key=base64.b64encode(coordinator.keys.public.statement).decode(),
    )


@dataclass
class Harness:
    """A link with its journal; `restart` is what `kill -9` and a new process leave: the journal alone."""

    settings: NodeSettings
    prepare: Callable[[Link, Journal], None] = lambda link, journal: None
    journal: Journal | None = None
    link: Link | None = None
    task: asyncio.Task[None] | None = None

    async def start(self) -> Link:
        self.journal = Journal.open(self.settings.journal_file)
        self.journal.create_all()
        self.link = Link(self.settings, FileKeyStore(self.settings.keys_folder), self.journal)
        self.prepare(self.link, self.journal)
        self.task = asyncio.create_task(self.link.run())
        return self.link

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        if self.journal is not None:
            self.journal.close()


@pytest.fixture
async def harness(settings: NodeSettings) -> AsyncIterator[Harness]:
    made = Harness(settings)
    yield made
    await made.stop()


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds, or fail."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Awaitable[None]]:
    return eventually
