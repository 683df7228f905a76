"""Streams over a real port: TLS, identity, revocation, resume, relaying, bounds."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
from functools import partial
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection

from comity.v1 import exchange_pb2, exchange_pb2_grpc, ledger_pb2, ledger_pb2_grpc, payload_pb2, payload_pb2_grpc
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.transport.model import Message
from comity_coordinator.transport.server import refuse_old_tls
from comity_coordinator.transport.session import HubLimits
from comity_crypto import x509
from comity_crypto.tokens import rotation_message, welcome_message


async def _openssl(port: int, *arguments: str) -> str:
    def call() -> str:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments],
            input=b"",
            capture_output=True,
            timeout=10,
            check=False,
        )
        return (done.stdout + done.stderr).decode(errors="replace")

    return await asyncio.to_thread(call)


async def test_tls_1_2_is_refused_and_1_3_is_not(rig: Any, tmp_path: Any) -> None:
    node = await rig.enrol("alpha")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    key.write_bytes(node.key_pem)
    cert.write_bytes(node.certificate_pem)
    files = ("-key", str(key), "-cert", str(cert), "-alpn", "h2")
    old = await _openssl(rig.port, "-tls1_2", *files)
    assert "Cipher is (NONE)" in old or "alert" in old
    assert "TLSv1.3" not in old
    new = await _openssl(rig.port, "-tls1_3", *files)
    assert "New, TLSv1.3, Cipher is" in new
    await refuse_old_tls("127.0.0.1", rig.port)


async def test_no_client_certificate_is_refused(rig: Any) -> None:
    stub = payload_pb2_grpc.PayloadServiceStub(rig.channel(None, None))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificate_of_another_authority_is_refused(rig: Any) -> None:
    await rig.enrol("alpha")
    other_key, other_cert = x509.create_authority("demo")
    key_pem, csr_pem = x509.make_csr("alpha")
    certificate_pem = x509.issue_node(other_key, other_cert, csr_pem, "demo", "alpha")
    stub = payload_pb2_grpc.PayloadServiceStub(rig.channel(key_pem, certificate_pem))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_certificate_of_another_consortium_or_of_nobody_is_refused(rig: Any, error_of: Any) -> None:
    for consortium, org, code in (("other", "alpha", "FORBIDDEN"), ("demo", "stranger", "NOT_A_MEMBER")):
        key_pem, csr_pem = x509.make_csr(org)
        certificate_pem = x509.issue_node(
            rig.authority.key_pem, rig.authority.certificate_pem, csr_pem, consortium, org
        )
        stub = payload_pb2_grpc.PayloadServiceStub(rig.channel(key_pem, certificate_pem))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64), timeout=5)
        assert error_of(caught.value) == code


async def test_welcome_is_signed_for_this_node(rig: Any) -> None:
    alpha = await rig.enrol("alpha")
    welcome = await alpha.connect()
    message = welcome_message(welcome.certificate_digest, "spiffe://demo/org/alpha")
    Ed25519PublicKey.from_public_bytes(rig.keys.public.statement).verify(welcome.signature, message)
    assert len(welcome.certificate_digest) == 32


async def test_first_frame_must_be_hello_of_this_protocol(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    for first in (
        exchange_pb2.ConnectRequest(ack=exchange_pb2.Ack(up_to_seq=1)),
        exchange_pb2.ConnectRequest(hello=exchange_pb2.Hello(protocol=2)),
        exchange_pb2.ConnectRequest(hello=exchange_pb2.Hello(protocol=1, received_seq=7)),
    ):
        channel = alpha.open_channel()
        call = exchange_pb2_grpc.ExchangeServiceStub(channel).Connect()
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert error_of(caught.value) in {"MALFORMED", "UNSUPPORTED", "CONFLICT"}
        await channel.close()


async def test_revoked_organisation_is_refused_at_the_next_message_of_an_open_stream(rig: Any, error_of: Any) -> None:
    alpha, beta = await rig.enrol("alpha"), await rig.enrol("beta")
    rig.parties["run-1"] = frozenset({"alpha", "beta"})
    await alpha.connect()
    await beta.connect()
    await alpha.send("order", {"n": 1}, seq=0, run="run-1", receivers=["beta"])
    assert (await beta.read("envelope")).envelope.kind == "order"
    await rig.database.run(partial(rig.membership.revoke, org="alpha"))
    await alpha.send("order", {"n": 2}, seq=0, run="run-1", receivers=["beta"], id="second")
    assert error_of(await alpha.ended()) == "REVOKED"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await beta.read()
    again = alpha.open_channel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await payload_pb2_grpc.PayloadServiceStub(again).StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64))
    assert error_of(caught.value) == "REVOKED"
    await again.close()


async def test_revocation_by_another_process_counts_at_once(rig: Any, error_of: Any) -> None:
    from comity_coordinator.db import open_database

    alpha = await rig.enrol("alpha")
    await alpha.connect()
    other = open_database(rig.database.engine.url.render_as_string(hide_password=False))
    await other.run(partial(rig.membership.revoke, org="alpha"))
    other.close()
    await alpha.call.write(exchange_pb2.ConnectRequest(heartbeat=exchange_pb2.Heartbeat(at="now")))
    assert error_of(await alpha.ended()) == "REVOKED"


async def test_nothing_is_relayed_to_a_revoked_receiver(rig: Any, error_of: Any) -> None:
    alpha, beta = await rig.enrol("alpha"), await rig.enrol("beta")
    rig.parties["run-1"] = frozenset({"alpha", "beta"})
    await alpha.connect()
    await beta.connect()
    await rig.database.run(partial(rig.membership.revoke, org="beta"))
    await alpha.send("order", {"n": 1}, seq=0, run="run-1", receivers=["beta"])
    frames: list[Any] = []
    assert error_of(await beta.ended(frames)) == "REVOKED"
    assert not frames


async def test_rotated_certificate_replaces_the_old_one(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    await alpha.connect()
    key_pem, csr_pem = x509.make_csr("alpha")
    signature = alpha.keys.sign(rotation_message("alpha", csr_pem))
    fresh = await rig.database.run(partial(rig.membership.rotate, org="alpha", csr_pem=csr_pem, signature=signature))
    beat = exchange_pb2.ConnectRequest(heartbeat=exchange_pb2.Heartbeat(at="now"))
    await alpha.call.write(beat)  # the old one holds until the new one is seen
    stub = payload_pb2_grpc.PayloadServiceStub(rig.channel(key_pem, fresh))
    await stub.StatPayload(payload_pb2.StatPayloadRequest(digest="0" * 64), timeout=5)
    await alpha.call.write(beat)
    assert error_of(await alpha.ended()) == "CERTIFICATE_INVALID"
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        await rig.database.run(partial(rig.membership.rotate, org="alpha", csr_pem=csr_pem, signature=bytes(64)))


def _collect(into: list[tuple[str, str]]) -> Any:
    def handler(conn: Connection, org: str, message: Message) -> None:
        into.append((org, message.id))
        if message.document().get("refuse"):
            raise ComityError(ErrorCode.ILLEGAL_EVENT, "not now")

    return handler


async def test_durable_messages_are_handled_once_across_breaks(rig: Any) -> None:
    rig.once_only()
    handled: list[tuple[str, str]] = []
    rig.hub.register("note", _collect(handled))
    alpha = await rig.enrol("alpha")
    assert (await alpha.connect()).received_seq == 0
    for number in (1, 2, 3):
        await alpha.send("note", {"n": number})
    while (await alpha.read("ack")).ack.up_to_seq < 3:
        pass
    await alpha.close()
    assert (await alpha.connect()).received_seq == 3
    # The acks were lost, as far as this node knows: it sends again, then goes on.
    await alpha.send("note", {"n": 2}, seq=2)
    await alpha.send("note", {"n": 3}, seq=3)
    await alpha.send("note", {"n": 4})
    while (await alpha.read("ack")).ack.up_to_seq < 4:
        pass
    assert handled == [("alpha", f"alpha-note-{number}") for number in (1, 2, 3, 4)]


async def test_refused_message_counts_as_taken_and_leaves_no_trace(rig: Any) -> None:
    handled: list[tuple[str, str]] = []

    def handler(conn: Connection, org: str, message: Message) -> None:
        rig.hub.enqueue(conn, "alpha", "echo", {"of": message.id})
        _collect(handled)(conn, org, message)

    rig.hub.register("note", handler)
    alpha = await rig.enrol("alpha")
    await alpha.connect()
    await alpha.send("note", {"refuse": True})
    refusal = (await alpha.read("refusal")).refusal
    assert refusal.id == "alpha-note-1"
    assert canonical.parse(refusal.error)["code"] == "ILLEGAL_EVENT"
    assert (await alpha.read("ack")).ack.up_to_seq == 1
    await alpha.send("mystery", {})
    assert canonical.parse((await alpha.read("refusal")).refusal.error)["code"] == "UNSUPPORTED"
    await alpha.send("note", {})
    seen = [await alpha.read() for _ in range(3)]
    echoes = [frame.envelope for frame in seen if frame.HasField("envelope")]
    assert [(echo.seq, canonical.parse(echo.body)) for echo in echoes] == [(1, {"of": "alpha-note-3"})]


async def test_gap_ends_the_stream_and_rewound_journal_is_told(rig: Any, error_of: Any) -> None:
    rig.hub.register("note", _collect([]))
    alpha = await rig.enrol("alpha")
    await alpha.connect()
    await alpha.send("note", {}, seq=1)
    await alpha.read("ack")
    await alpha.send("note", {}, seq=1, id="another-message-under-an-old-number")
    assert canonical.parse((await alpha.read("refusal")).refusal.error)["code"] == "JOURNAL_BEHIND"
    await alpha.send("note", {}, seq=5)
    assert error_of(await alpha.ended()) == "MALFORMED"


async def test_failing_handler_is_tried_three_times_then_refused(rig: Any, error_of: Any) -> None:
    rig.once_only()
    tries = []

    def broken(conn: Connection, org: str, message: Message) -> None:
        tries.append(message.id)
        raise KeyError("a defect")

    rig.hub.register("note", broken)
    alpha = await rig.enrol("alpha")
    for _ in range(2):
        await alpha.connect()
        await alpha.send("note", {}, seq=1)
        assert error_of(await alpha.ended()) == "INTERNAL"
        await alpha.close()
    await alpha.connect()
    await alpha.send("note", {}, seq=1)
    assert canonical.parse((await alpha.read("refusal")).refusal.error)["code"] == "INTERNAL"
    assert (await alpha.read("ack")).ack.up_to_seq == 1
    assert len(tries) == 3


async def test_a_delivery_that_shares_a_transaction_is_one_attempt(rig: Any, error_of: Any) -> None:
    rig.once_only()
    tries = []

    def broken(conn: Connection, org: str, message: Message) -> None:
        tries.append(org)
        if org == "alpha":
            raise KeyError("a defect")

    rig.hub.register("note", broken)
    alpha, beta, gamma = [await rig.enrol(name) for name in ("alpha", "beta", "gamma")]
    for each in (beta, gamma):
        await each.connect()
    for round_no in (1, 2):
        await alpha.connect()
        # Whatever the first occupies the database with, the next two come together.
        await asyncio.gather(
            *(each.send("note", {}, seq=seq) for each, seq in ((gamma, round_no), (beta, round_no), (alpha, 1)))
        )
        assert error_of(await alpha.ended()) == "INTERNAL"
        for each in (beta, gamma):
            assert (await each.read("ack")).ack.up_to_seq == round_no
        await alpha.close()
    await alpha.connect()
    await alpha.send("note", {}, seq=1)
    assert canonical.parse((await alpha.read("refusal")).refusal.error)["code"] == "INTERNAL"
    assert 3 <= tries.count("alpha") <= 5


async def test_outbox_is_resent_until_acknowledged(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    enqueue = rig.hub.enqueue
    await rig.database.run(lambda conn: [enqueue(conn, "alpha", "offer", {"n": n}) for n in (1, 2, 3)] and None)
    await alpha.connect()
    assert [(await alpha.read("envelope")).envelope.seq for _ in range(3)] == [1, 2, 3]
    await alpha.close()
    await alpha.connect(received_seq=1)
    first = (await alpha.read("envelope")).envelope
    assert (first.seq, canonical.parse(first.body)) == (2, {"n": 2})
    assert (await alpha.read("envelope")).envelope.seq == 3
    await alpha.ack(3)
    await rig.database.run(lambda conn: enqueue(conn, "alpha", "offer", {"n": 4}))
    assert (await alpha.read("envelope")).envelope.seq == 4
    await alpha.ack(9)
    assert error_of(await alpha.ended()) == "MALFORMED"


async def test_many_durable_messages_flow_within_the_window(rig: Any) -> None:
    alpha = await rig.enrol("alpha")
    await alpha.connect()
    count = 200
    await rig.database.run(
        lambda conn: [rig.hub.enqueue(conn, "alpha", "offer", {"n": n}) for n in range(count)] and None
    )
    for number in range(1, count + 1):
        assert (await alpha.read("envelope")).envelope.seq == number
        await alpha.ack(number)


async def test_rolled_back_transaction_sends_nothing(rig: Any) -> None:
    alpha = await rig.enrol("alpha")
    await alpha.connect()

    def fail(conn: Connection) -> None:
        rig.hub.enqueue(conn, "alpha", "offer", {})
        raise ComityError(ErrorCode.CONFLICT)

    with pytest.raises(ComityError):
        await rig.database.run(fail)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await alpha.read()


async def test_relay_reaches_parties_only(rig: Any) -> None:
    alpha, beta, gamma = [await rig.enrol(org) for org in ("alpha", "beta", "gamma")]
    for node in (alpha, beta, gamma):
        await node.connect()
    rig.parties["run-1"] = frozenset({"alpha", "beta"})
    body, inline = {"order": 1}, b"\x01" * 1000
    await alpha.send("order", body, seq=0, run="run-1", receivers=["beta"], inline_payload=inline)
    got = (await beta.read("envelope")).envelope
    assert (got.sender, got.seq, got.kind, got.run) == ("alpha", 0, "order", "run-1")
    assert (got.body, got.inline_payload) == (canonical.canonical(body), inline)
    for bad in (
        {"run": "run-1", "receivers": ["gamma"]},
        {"run": "run-1", "receivers": ["beta", "gamma"]},
        {"run": "run-2", "receivers": ["beta"]},
        {"run": "run-1", "receivers": ["beta"], "sender": "beta"},
        {"run": "", "receivers": ["beta"]},
        {"run": "run-1", "receivers": []},
        {"run": "run-1", "receivers": ["Not an org"]},
        {"run": "run-1", "receivers": ["beta"], "inline_payload": bytes((256 << 10) + 1)},
    ):
        await alpha.send("order", body, seq=0, **bad)
        assert canonical.parse((await alpha.read("refusal")).refusal.error)["code"] in {
            "FORBIDDEN",
            "MALFORMED",
            "TOO_LARGE",
        }
    await gamma.send("reply", body, seq=0, run="run-1", receivers=["alpha"])
    assert canonical.parse((await gamma.read("refusal")).refusal.error)["code"] == "FORBIDDEN"
    # A party that is away is no error: its sender hears of it by presence.
    await beta.close()
    await alpha.read(skip=())
    await alpha.send("order", body, seq=0, run="run-1", receivers=["beta"])
    await beta.connect()
    back = (await alpha.read("envelope", skip=())).envelope
    assert (back.kind, canonical.parse(back.body)) == ("presence", {"org": "beta", "connected": True})


async def test_newer_stream_wins(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    await alpha.connect()
    old_call, old_channel = alpha.call, alpha.channel
    await alpha.connect()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await old_call.read()
    assert error_of(caught.value) == "CONFLICT"
    assert rig.hub.connected() == {"alpha"}
    await old_channel.close()


async def test_service_without_grant_is_closed(rig: Any, error_of: Any) -> None:
    alpha = await rig.enrol("alpha")
    channel = alpha.open_channel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ledger_pb2_grpc.LedgerReadServiceStub(channel).GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await channel.close()


class TestSlowReader:
    """A receiver that does not read costs its sender a BUSY, and the coordinator a bounded queue."""

    @pytest.fixture
    def hub_limits(self) -> HubLimits:
        return HubLimits(queue_frames=8, queue_bytes=1 << 20, heartbeat_s=30.0)

    async def test_relay_to_a_full_queue_is_busy(self, rig: Any) -> None:
        alpha, beta = await rig.enrol("alpha"), await rig.enrol("beta")
        rig.parties["run-1"] = frozenset({"alpha", "beta"})
        await alpha.connect()
        await beta.connect()
        inline = hashlib.sha256(b"x").digest() * 8192
        refusals: asyncio.Task[Any] = asyncio.create_task(alpha.read("refusal"))
        for number in range(400):
            if refusals.done():
                break
            await alpha.send(
                "order", {}, seq=0, run="run-1", receivers=["beta"], inline_payload=inline, id=f"m-{number}"
            )
        error = canonical.parse((await refusals).refusal.error)
        assert (error["code"], error["facts"]) == ("BUSY", {"organisations": "beta"})


class TestSilentNode:
    @pytest.fixture
    def hub_limits(self) -> HubLimits:
        return HubLimits(heartbeat_s=0.05, lease_s=0.3)

    async def test_silence_ends_the_stream(self, rig: Any, error_of: Any) -> None:
        alpha = await rig.enrol("alpha")
        await alpha.connect()
        assert (await alpha.read()).HasField("heartbeat")
        assert error_of(await alpha.ended()) == "TIMEOUT"
        assert rig.hub.connected() == frozenset()
