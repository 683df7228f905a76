"""Two replicas on one database, over real TLS: where streams are, what crosses, what is found when links are down."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc
import pytest

from comity.v1 import exchange_pb2_grpc, payload_pb2, payload_pb2_grpc, replica_pb2, replica_pb2_grpc
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.grpc_errors import from_rpc
from comity.wire.ids import COORDINATOR, spiffe_replica
from comity_coordinator.replicas import service, store, wiring
from comity_coordinator.replicas.link import Identity
from comity_coordinator.replicas.service import Replicas
from comity_coordinator.replicas.spool import SharedSpool
from comity_coordinator.settings import CoordinatorSettings
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.payload_servicer import PayloadServicer
from comity_coordinator.transport.server import ServerTls, build_server
from comity_coordinator.transport.servicer import ExchangeServicer
from comity_crypto import x509

CONSORTIUM = "demo"
RUN = "run-1"


@dataclass
class Replica:
    name: str
    hub: Hub
    replicas: Replicas
    spool: SharedSpool
    server: Any
    port: int
    task: Any = None

    def at(self, node: Any) -> Any:
        """Return another place of the same node, whose stream shall be here."""
        return replace(node, port=self.port, channel=None, call=None)


async def build(rig: Any, folder: Any, name: str) -> Replica:
    authority = rig.authority
    key_pem, certificate_pem = x509.issue_server(
        authority.key_pem, authority.certificate_pem, CONSORTIUM, ["localhost"], ["127.0.0.1"]
    )
    hub = Hub(rig.database, rig.registry.admit, rig.hub.limits)
    me = Identity(
        name,
        service.new_boot(),
        spiffe_replica(CONSORTIUM, name),
        authority.certificate_pem,
        rig.keys.public.statement,
        partial(x509.issue_replica, authority.key_pem, authority.certificate_pem, CONSORTIUM, name, 600),
    )
    replicas = Replicas(rig.database, hub, me)
    spool = SharedSpool(folder / f"spool-{name}", rig.spool.limits, replicas.channels)
    tls = ServerTls(key_pem, certificate_pem, authority.certificate_pem)
    edge = wiring.edge(CONSORTIUM, rig.registry.admit, replicas)
    server, port = build_server(edge, tls, "127.0.0.1:0")
    digest = bytes.fromhex(x509.fingerprint(certificate_pem))
    exchange_pb2_grpc.add_ExchangeServiceServicer_to_server(ExchangeServicer(hub, digest, rig.keys.sign), server)
    payload_pb2_grpc.add_PayloadServiceServicer_to_server(PayloadServicer(spool), server)
    wiring.serve(server, hub, replicas, spool, digest, rig.keys.sign)
    hub.authorise_runs(lambda _conn, run: rig.parties.get(run, frozenset()))
    hub.join(replicas)
    await server.start()
    return Replica(name, hub, replicas, spool, server, port)


@pytest.fixture
async def pair(rig: Any, tmp_path: Any) -> AsyncIterator[tuple[Replica, Replica]]:
    rig.parties[RUN] = frozenset({"alpha", "beta"})
    made = [await build(rig, tmp_path, name) for name in ("a", "b")]
    for each in made:
        await each.replicas.start(f"127.0.0.1:{each.port}")
        each.task = asyncio.create_task(each.replicas.run())
    yield made[0], made[1]
    for node in rig.opened:
        await node.close()
    for each in made:
        each.task.cancel()
        await asyncio.gather(each.task, return_exceptions=True)
        await each.server.stop(0.2)
        each.spool.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(8):
        while not condition():
            await asyncio.sleep(0.01)


async def linked(*replicas: Replica) -> None:
    await until(lambda: all(each.replicas.living() for each in replicas))


async def joined(rig: Any, replica: Replica, org: str) -> Any:
    node = replica.at(await rig.enrol(org))
    rig.opened.append(node)
    node.welcome = await node.connect()
    return node


async def test_messages_words_and_presence_cross(rig: Any, pair: Any) -> None:
    a, b = pair
    await linked(a, b)
    alpha = await joined(rig, a, "alpha")
    await until(lambda: "alpha" in b.hub.connected())
    beta = await joined(rig, b, "beta")
    assert list(beta.welcome.connected) == ["alpha"]
    here = await alpha.read("envelope", skip=())
    assert here.envelope.kind == "presence"
    assert b'"connected":true' in here.envelope.body

    await alpha.send("order", {"n": 1}, seq=0, run=RUN, receivers=["beta"])
    order = await beta.read("envelope")
    assert (order.envelope.kind, order.envelope.sender, order.envelope.body) == ("order", "alpha", b'{"n":1}')
    assert a.hub.tell("beta", "secagg.notice", {"run": RUN}, run=RUN)
    word = await beta.read("envelope")
    assert (word.envelope.kind, word.envelope.sender) == ("secagg.notice", COORDINATOR)

    await beta.close()
    gone = await alpha.read("envelope", skip=())
    assert b'"connected":false' in gone.envelope.body
    assert a.hub.connected() == {"alpha"}


async def test_who_has_no_room_is_named_to_the_sender(rig: Any, pair: Any, monkeypatch: Any) -> None:
    a, b = pair
    await linked(a, b)
    alpha, beta = await joined(rig, a, "alpha"), await joined(rig, b, "beta")
    await until(lambda: "beta" in a.hub.connected())
    monkeypatch.setattr(b.hub.streams()["beta"].queue, "offer", lambda *_: False)
    message = await alpha.send("order", {}, seq=0, run=RUN, receivers=["beta"])
    refusal = (await alpha.read("refusal")).refusal
    assert refusal.id == message
    assert b"BUSY" in refusal.error
    assert b"beta" in refusal.error
    await beta.close()


async def test_the_newest_stream_wins_at_whichever_replica(rig: Any, pair: Any, error_of: Any) -> None:
    a, b = pair
    first = await joined(rig, a, "alpha")
    second = b.at(first)
    rig.opened.append(second)
    await second.connect()
    assert error_of(await first.ended()) == ErrorCode.CONFLICT
    await until(lambda: not a.hub.here())
    assert b.hub.here() == {"alpha"}
    await until(lambda: a.hub.connected() == {"alpha"})


@pytest.mark.parametrize("with_links", [True, False])
async def test_durable_messages_find_the_stream(rig: Any, pair: Any, monkeypatch: Any, with_links: bool) -> None:
    a, b = pair
    alpha = await joined(rig, b, "alpha")
    if with_links:
        await linked(a, b)
        await until(lambda: "alpha" in a.hub.connected())
        monkeypatch.setattr(b.hub, "reconcile", lambda *_: None)
    else:
        monkeypatch.setattr(a.replicas, "wake", lambda _: None)
    await rig.database.run(lambda conn: a.hub.enqueue(conn, "alpha", "ledger.proof", {"n": 7}))
    assert (await alpha.read("envelope")).envelope.body == b'{"n":7}'


async def test_a_durable_message_counts_once_wherever_it_comes_again(rig: Any, pair: Any) -> None:
    a, b = pair
    taken: list[str] = []
    for each in (a, b):
        each.hub.register("sum-proofs", lambda _conn, org, message: taken.append(message.id))
    rig.once_only()
    alpha = await joined(rig, a, "alpha")
    sent = await alpha.send("sum-proofs", {})
    assert (await alpha.read("ack")).ack.up_to_seq == 1
    again = b.at(alpha)
    rig.opened.append(again)
    assert (await again.connect()).received_seq == 1
    await again.send("sum-proofs", {}, seq=1, id=sent)
    assert (await again.read("ack")).ack.up_to_seq == 1
    assert taken == [sent]


async def test_a_payload_is_read_through(rig: Any, pair: Any) -> None:
    a, b = pair
    await linked(a, b)
    data = bytes(range(256)) * 4_500  # two whole chunks and a part
    digest = hashlib.sha256(data).hexdigest()
    reading = asyncio.create_task(_read(b.spool, "beta", digest, 0))
    await asyncio.sleep(0.05)
    upload = a.spool.begin("alpha", digest, len(data), frozenset({"beta", COORDINATOR}), 0)
    for start in range(0, len(data), 512 << 10):
        await upload.add(data[start : start + (512 << 10)])
    assert await reading == data
    assert await _read(b.spool, "beta", digest, 512 << 10) == data[512 << 10 :]
    with pytest.raises(ComityError) as refusal:
        await _read(b.spool, "gamma", digest, 0)
    assert refusal.value.code is ErrorCode.PAYLOAD_MISSING

    descriptor = await b.spool.whole(COORDINATOR, "alpha", digest)
    with os.fdopen(descriptor, "rb") as file:
        assert file.read() == data


async def _read(spool: SharedSpool, org: str, digest: str, offset_bytes: int) -> bytes:
    return b"".join([bytes(chunk) async for chunk in spool.read(org, digest, offset_bytes)])


async def test_a_run_has_one_keeper_until_it_dies(rig: Any, pair: Any) -> None:
    a, b = pair
    await until(lambda: a.replicas.standing()["living"] == ["b"] and b.replicas.standing()["living"] == ["a"])
    assert await a.replicas.observer_of(RUN) == ""
    assert await b.replicas.observer_of(RUN) == "a"
    shown: list[str] = []
    for each in (a, b):
        each.hub.observe("secagg", lambda message, each=each: shown.append(f"{each.name}:{message.sender}"))
    await linked(a, b)
    beta = await joined(rig, b, "beta")
    await beta.send("secagg", {}, seq=0, run=RUN, receivers=["alpha"])
    await until(lambda: shown == ["a:beta"])
    a.task.cancel()
    await asyncio.gather(a.task, return_exceptions=True)
    await until(lambda: not b.replicas.standing()["living"])
    assert await b.replicas.observer_of(RUN) == ""


class Silent:
    """A database behind a network that loses every packet until it is healed."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.healed = asyncio.Event()

    async def run(self, fn: Any) -> Any:
        await self.healed.wait()
        return await self._database.run(fn)

    async def look(self, fn: Any) -> Any:
        await self.healed.wait()
        return await self._database.look(fn)


async def test_a_replica_without_its_database_sends_its_nodes_to_the_others(
    rig: Any, pair: Any, monkeypatch: Any, error_of: Any
) -> None:
    a, b = pair
    await linked(a, b)
    first = await joined(rig, a, "alpha")
    monkeypatch.setattr(service, "BEAT_EVERY_S", 0.1)
    monkeypatch.setattr(service, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(a.spool, "limits", replace(a.spool.limits, wait_s=60.0))
    silent = Silent(rig.database)
    monkeypatch.setattr(a.replicas._outlook, "lease_s", 1.0)
    monkeypatch.setattr(a.replicas, "_database", silent)
    reading = payload_pb2_grpc.PayloadServiceStub(first.channel).GetPayload(
        payload_pb2.GetPayloadRequest(digest="0" * 64)
    )
    assert error_of(await first.ended()) == ErrorCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as under_way:
        await asyncio.wait_for(reading.read(), 8)
    assert error_of(under_way.value) == ErrorCode.UNAVAILABLE
    assert not a.replicas.standing()["takes_nodes"]
    again, there, back = a.at(first), b.at(first), a.at(first)
    rig.opened += [again, there, back]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await again.connect()
    assert error_of(refusal.value) == ErrorCode.UNAVAILABLE
    await there.connect()
    assert b.hub.here() == {"alpha"}
    silent.healed.set()
    await until(lambda: a.replicas.standing()["takes_nodes"])
    await back.connect()
    assert a.hub.here() == {"alpha"}


async def test_the_newest_process_of_a_name_wins(rig: Any, pair: Any, tmp_path: Any) -> None:
    a, _ = pair
    newer = await build(rig, tmp_path, "a")
    await newer.replicas.start(f"127.0.0.1:{newer.port}")
    with pytest.raises(ComityError) as refusal:
        await asyncio.wait_for(a.task, 8)
    assert refusal.value.code is ErrorCode.CONFLICT
    rows = await rig.database.run(partial(store.living, now=""))
    assert {row.name: row.address for row in rows}["a"].endswith(f":{newer.port}")
    await newer.server.stop(0)
    newer.spool.close()


async def test_nobody_else_calls_a_replica(rig: Any, pair: Any) -> None:
    _, b = pair
    node = b.at(await rig.enrol("alpha"))
    channel = node.open_channel()
    hello = replica_pb2.CarryRequest(hello=replica_pb2.ReplicaHello(protocol=1, replica="a", boot="x"))
    stub = replica_pb2_grpc.ReplicaServiceStub(channel)
    for call, request in (
        (stub.Carry(iter([hello])), None),
        (stub.FetchPayload(replica_pb2.FetchPayloadRequest(reader="beta", digest="0" * 64)), None),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            assert await call.read() is None, request
        assert from_rpc(refusal.value).code is ErrorCode.FORBIDDEN
    await channel.close()
    liar = Identity(
        "c", "x", b.replicas._me.spiffe, b.replicas._me.authority_pem, b.replicas._me.log_key, b.replicas._me.issue
    ).dial(f"127.0.0.1:{b.port}")
    call = replica_pb2_grpc.ReplicaServiceStub(liar).Carry(iter([hello]))
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        assert await call.read() is None
    assert from_rpc(refusal.value).code is ErrorCode.FORBIDDEN
    await liar.close()


@pytest.mark.parametrize(
    ("database", "replica", "code"),
    [
        ("", "a", ErrorCode.UNSUPPORTED),
        ("postgresql+psycopg://comity@127.0.0.1:1/none", "a", ErrorCode.UNSUPPORTED),
        ("postgresql+psycopg://comity@127.0.0.1:1/none", "", None),
    ],
)
def test_what_cannot_work_together_is_refused(
    rig: Any, tmp_path: Any, monkeypatch: Any, database: str, replica: str, code: ErrorCode | None
) -> None:
    from comity_coordinator.db import open_database

    monkeypatch.delenv("TEMPORAL_ADDRESS", raising=False)
    settings = CoordinatorSettings(
        home=tmp_path, consortium=CONSORTIUM, address="h:1", listen="h:1", log_name="h/demo",
        database_url=database, replica=replica,
    )  # fmt: skip
    opened = open_database(settings.database)
    try:
        if code is None:
            assert wiring.replicas(settings, rig.authority, rig.keys, opened, rig.hub) is None
            return
        with pytest.raises(ComityError) as refusal:
            wiring.replicas(settings, rig.authority, rig.keys, opened, rig.hub)
        assert refusal.value.code is code
    finally:
        opened.close()
