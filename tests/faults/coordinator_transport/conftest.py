"""A real coordinator edge over loopback: authority, certificates, TLS port, hub and spool."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Connection

from comity.v1 import enrolment_pb2_grpc, exchange_pb2, exchange_pb2_grpc, membership_pb2_grpc, payload_pb2_grpc
from comity.wire import canonical
from comity_coordinator.db import Database
from comity_coordinator.governance.service import Governance, genesis_in_force
from comity_coordinator.membership.registry import Registry
from comity_coordinator.membership.service import Authority, Enrolment, Membership
from comity_coordinator.membership.servicer import EnrolmentServicer, MembershipServicer
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.payload_servicer import PayloadServicer
from comity_coordinator.transport.payloads import Spool, SpoolLimits
from comity_coordinator.transport.server import Edge, ServerTls, build_server
from comity_coordinator.transport.servicer import ExchangeServicer
from comity_coordinator.transport.session import HubLimits
from comity_crypto import x509
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import Statement, sign_statement
from comity_crypto.tokens import JoinToken, enrolment_message

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.databases import modes

CONSORTIUM = "demo"
WAIT_S = 5.0


@dataclass
class Node:
    """A test's node: certificate and the raw stream."""

    org: str
    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes
    port: int
    keys: OrgKeys
    channel: Any = None
    call: Any = None
    seq: int = 0

    def open_channel(self) -> Any:
        credentials = grpc.ssl_channel_credentials(self.authority_pem, self.key_pem, self.certificate_pem)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)

    async def connect(self, received_seq: int = 0) -> Any:
        self.channel = self.open_channel()
        self.call = exchange_pb2_grpc.ExchangeServiceStub(self.channel).Connect()
        hello = exchange_pb2.Hello(protocol=1, software="test", received_seq=received_seq, isolation="process")
        await self.call.write(exchange_pb2.ConnectRequest(hello=hello))
        return (await self.read("welcome")).welcome

    async def read(self, kind: str | None = None, *, skip: tuple[str, ...] = ("presence",)) -> Any:
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = await self.call.read()
                if frame is grpc.aio.EOF:
                    raise EOFError
                if frame.HasField("envelope") and frame.envelope.kind in skip:
                    continue
                assert kind is None or frame.WhichOneof("frame") == kind, frame
                return frame

    async def ended(self, frames: list[Any] | None = None) -> grpc.aio.AioRpcError:
        """Read until the stream ends with an error, and return it; `frames` gets what came before."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    frame = await self.call.read()
                except grpc.aio.AioRpcError as error:
                    return error
                assert frame is not grpc.aio.EOF, "ended without an error"
                if frames is not None:
                    frames.append(frame)

    async def send(self, kind: str, body: Any, *, seq: int | None = None, **more: Any) -> str:
        if seq is None:
            self.seq += 1
            seq = self.seq
        message_id = more.pop("id", f"{self.org}-{kind}-{seq}")
        envelope = exchange_pb2.Envelope(
            id=message_id,
            seq=seq,
            kind=kind,
            sender=more.pop("sender", self.org),
            body=canonical.canonical(body),
            **more,
        )
        await self.call.write(exchange_pb2.ConnectRequest(envelope=envelope))
        return message_id

    async def ack(self, up_to_seq: int) -> None:
        await self.call.write(exchange_pb2.ConnectRequest(ack=exchange_pb2.Ack(up_to_seq=up_to_seq)))

    async def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
        if self.channel is not None:
            await self.channel.close()


@dataclass
class Rig:
    """The coordinator's edge and what it is made of."""

    database: Database
    authority: Authority
    keys: OrgKeys
    membership: Membership
    governance: Governance
    registry: Registry
    hub: Hub
    spool: Spool
    port: int
    appended: list[Statement] = field(default_factory=list)
    parties: dict[str, frozenset[str]] = field(default_factory=dict)
    opened: list[Any] = field(default_factory=list)
    calm: bool = True

    def once_only(self) -> None:
        """Leave out a test that counts how often its own handler runs."""
        if not self.calm:
            pytest.skip("transactions run more than once in this mode")

    async def token(self, org: str, valid_s: int = 600) -> JoinToken:
        return await self.database.run(partial(self.membership.own_token, org=org, valid_s=valid_s))

    def request(self, token: JoinToken, keys: OrgKeys, csr: bytes, **changes: Any) -> Enrolment:
        member_keys = canonical.canonical(keys.public.to_json())
        values: dict[str, Any] = {
            "org": token.org,
            "invitation": token.invitation.to_bytes(),
            "csr_pem": csr,
            "member_keys": member_keys,
            "binding_signature": keys.sign(enrolment_message(token.token_id, csr, member_keys)),
            "title": token.org.title(),
            "owner": f"{token.org} trust",
        }
        return Enrolment(**{**values, **changes})

    async def enrol(self, org: str) -> Node:
        """Enrol without the wire: for tests about what comes after."""
        token, keys = await self.token(org), OrgKeys.generate()
        key_pem, csr_pem = x509.make_csr(org)
        request = self.request(token, keys, csr_pem)
        fingerprint = x509.fingerprint(token.join_certificate_pem.encode())
        certificate_pem = await self.database.run(
            partial(self.membership.enrol, token_id=token.token_id, fingerprint=fingerprint, request=request)
        )
        node = Node(org, key_pem, certificate_pem, self.authority.certificate_pem, self.port, keys)
        self.opened.append(node)
        return node

    def channel(self, key_pem: bytes | None, certificate_pem: bytes | None) -> Any:
        credentials = grpc.ssl_channel_credentials(self.authority.certificate_pem, key_pem, certificate_pem)
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{self.port}", credentials, options=[("grpc.enable_http_proxy", 0)]
        )
        self.opened.append(channel)
        return channel


def _parties_of(rig_parties: dict[str, frozenset[str]], _conn: Connection, run: str) -> frozenset[str]:
    return rig_parties.get(run, frozenset())


@pytest.fixture
def hub_limits() -> HubLimits:
    return HubLimits(heartbeat_s=30.0)


@pytest.fixture
def spool_limits() -> SpoolLimits:
    return SpoolLimits(payload_bytes=64 << 20, owner_bytes=96 << 20, total_bytes=128 << 20, wait_s=2.0)


@pytest.fixture(params=modes(("sqlite", "once")))
async def rig(
    request: Any, tmp_path: Path, databases: Any, hub_limits: HubLimits, spool_limits: SpoolLimits
) -> AsyncIterator[Rig]:
    database: Database = databases.in_mode(request.param, tmp_path)
    ca_key, ca_cert = x509.create_authority(CONSORTIUM)
    key_pem, certificate_pem = x509.issue_server(ca_key, ca_cert, CONSORTIUM, ["localhost"], ["127.0.0.1"])
    keys = OrgKeys.generate()
    authority = Authority(CONSORTIUM, ca_key, ca_cert, "127.0.0.1:7443")
    registry = Registry(database)
    hub = Hub(database, registry.admit, hub_limits)
    spool = Spool(tmp_path / "spool", spool_limits)
    membership = Membership(authority, keys, genesis_in_force)
    appended: list[Statement] = []

    def append(conn: Connection, statement: Statement, recipients: Any = ()) -> bool:
        appended.append(statement)
        return True

    def sign(kind: str, body: dict[str, Any]) -> Statement:
        return sign_statement(keys, kind=kind, consortium=CONSORTIUM, issuer="coordinator", body=body)

    governance = Governance(CONSORTIUM, "localhost/demo", keys.public.statement, sign, append, hub.enqueue)
    governance.ballots.register(hub)
    membership.on_enrolled(governance.ballots.candidate)
    server, port = build_server(
        Edge(CONSORTIUM, registry.admit), ServerTls(key_pem, certificate_pem, ca_cert), "127.0.0.1:0"
    )
    digest = bytes.fromhex(x509.fingerprint(certificate_pem))
    exchange_pb2_grpc.add_ExchangeServiceServicer_to_server(ExchangeServicer(hub, digest, keys.sign), server)
    payload_pb2_grpc.add_PayloadServiceServicer_to_server(PayloadServicer(spool), server)
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(
        EnrolmentServicer(database, membership, authority, keys.public.statement), server
    )
    membership_pb2_grpc.add_MembershipServiceServicer_to_server(
        MembershipServicer(database, membership, governance, authority), server
    )
    made = Rig(database, authority, keys, membership, governance, registry, hub, spool, port, appended)
    made.calm = request.param[1] == "once"
    hub.authorise_runs(partial(_parties_of, made.parties))
    await server.start()
    yield made
    for opened in made.opened:
        await opened.close()
    await server.stop(0.2)
    spool.close()
    database.close()


@pytest.fixture
def error_of() -> Callable[[grpc.aio.AioRpcError], str]:
    from comity.wire.grpc_errors import from_rpc

    return lambda error: str(from_rpc(error).code)
