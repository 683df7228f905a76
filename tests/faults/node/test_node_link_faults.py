"""The link under breaks, replays, restarts, hostile frames and a journal that takes no writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.journal import Journal, metadata
from comity_node.transport import store
from comity_node.transport.link import Link
from comity_node.transport.model import Message

_known = metadata.tables.get("test_link_effects")
effects = (
    _known
    if _known is not None
    else sa.Table(
        "test_link_effects",
        metadata,
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
    )
)


def effect_ids(journal: Journal) -> list[str]:
    query = sa.select(effects.c.id).order_by(effects.c.number)
    return journal.transact(lambda conn: list(conn.execute(query).scalars()))


def send(journal: Journal, link: Link, number: int) -> None:
    journal.transact(lambda conn: link.send(conn, "test.kind", {"number": number}))


async def forever(stream: Any) -> None:
    while True:
        await stream.next()


async def test_what_was_sent_while_away_arrives_in_order_and_is_forgotten(coordinator, harness, eventually) -> None:
    got: list[tuple[int, bytes]] = []

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        while True:
            request = await stream.next()
            got.append((request.envelope.seq, request.envelope.body))
            assert request.envelope.sender == "hospital-a"
            await stream.ack(request.envelope.seq)

    coordinator.scripts = [script]
    await coordinator.stop()
    link = await harness.start()
    for number in range(150):
        send(harness.journal, link, number)
    await asyncio.sleep(0.2)
    assert not link.connected
    await coordinator.start()
    await eventually(lambda: len(got) == 150)
    assert got == [(n + 1, b'{"number":%d}' % n) for n in range(150)]
    await eventually(lambda: harness.journal.transact(store.waiting_count) == 0)


async def test_only_unacknowledged_messages_come_again_after_a_break(coordinator, harness, eventually) -> None:
    got: list[int] = []

    async def breaks(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        for _ in range(3):
            got.append((await stream.next()).envelope.seq)

    async def resumes(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 2)  # the third was lost before it was committed
        while True:
            got.append((await stream.next()).envelope.seq)

    coordinator.scripts = [breaks, resumes]
    link = await harness.start()
    for number in range(3):
        send(harness.journal, link, number)
    await eventually(lambda: len(got) == 4)
    assert got == [1, 2, 3, 3]
    assert harness.journal.transact(store.waiting_count) == 1


async def test_at_most_a_window_is_under_way(coordinator, harness, eventually) -> None:
    got: list[int] = []

    async def silent(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        while True:
            got.append((await stream.next()).envelope.seq)

    coordinator.scripts = [silent]
    link = await harness.start()
    for number in range(100):
        send(harness.journal, link, number)
    await eventually(lambda: len(got) >= 64)
    await asyncio.sleep(0.2)
    assert got == list(range(1, 65))


async def test_a_number_is_never_used_twice_after_a_restart(coordinator, harness, eventually) -> None:
    seqs: list[int] = []

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, len(seqs))
        while True:
            request = await stream.next()
            seqs.append(request.envelope.seq)
            await stream.ack(request.envelope.seq)

    coordinator.scripts = [script]
    for number in range(3):
        link = await harness.start()
        send(harness.journal, link, number)
        await eventually(lambda: harness.journal.transact(store.waiting_count) == 0)
        await harness.stop()
    assert seqs == [1, 2, 3]


async def test_a_restored_backup_is_noticed(coordinator, harness, eventually) -> None:
    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 5)
        await forever(stream)

    coordinator.scripts = [script]
    link = await harness.start()
    await eventually(lambda: link.state.error is not None)
    assert link.state.error.code is ErrorCode.JOURNAL_BEHIND
    assert not link.connected


async def test_a_delivery_counts_once_through_breaks_and_restarts(coordinator, harness, eventually) -> None:
    """The coordinator sends again whatever was not acknowledged, with a break after every message."""
    crashed: list[str] = []

    def prepare(link: Link, journal: Journal) -> None:
        async def handler(message: Message) -> None:
            def take(conn: sa.Connection) -> None:
                if link.complete(conn, message):
                    conn.execute(effects.insert().values(id=message.id))

            await journal.run(take)
            if message.id not in crashed:  # the effect is on disk; the process "dies" before it can say so
                crashed.append(message.id)
                raise RuntimeError("killed")

        link.register("test.effect", handler)

    acked = 0

    async def script(stream: Any) -> None:
        nonlocal acked
        assert stream.hello.received_seq >= acked
        await stream.welcome(coordinator.keys, 0)
        start = stream.hello.received_seq
        for seq in range(start + 1, min(start + 3, 9)):
            await stream.send(seq, "test.effect", {"seq": seq})
        if start < 8:
            acked = max(acked, (await stream.next()).ack.up_to_seq)
            return
        await forever(stream)

    coordinator.scripts = [script]
    harness.prepare = prepare
    await harness.start()
    await eventually(lambda: len(effect_ids(harness.journal)) >= 4)
    await harness.stop()
    await harness.start()
    await eventually(lambda: coordinator.hellos[-1].received_seq == 8, 20)
    assert effect_ids(harness.journal) == [f"msg-{seq}-test.effect" for seq in range(1, 9)]


async def test_a_judged_message_counts_as_taken_and_a_failing_one_is_recorded(
    coordinator, harness, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("comity_node.transport.inbox.PAUSE_FIRST_S", 0.001)
    attempts: list[str] = []
    acks: list[int] = []

    def prepare(link: Link, journal: Journal) -> None:
        async def handler(message: Message) -> None:
            attempts.append(message.id)
            if message.seq == 1:
                raise ComityError(ErrorCode.AGREEMENT_INVALID)
            if message.seq == 2:
                raise ValueError("a mistake")

        link.register("test.odd", handler)

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        for seq in range(1, 4):
            await stream.send(seq, "test.odd", {})
        await stream.send(4, "test.unknown", {})
        while True:
            acks.append((await stream.next()).ack.up_to_seq)

    coordinator.scripts = [script]
    harness.prepare = prepare
    await harness.start()
    await eventually(lambda: acks[-1:] == [4])
    assert attempts == ["msg-1-test.odd"] + ["msg-2-test.odd"] * 5 + ["msg-3-test.odd"]
    failures = harness.journal.transact(store.failures)
    assert [(row["seq"], row["error"]) for row in failures] == [(4, "no handler"), (2, "ValueError")]


async def test_an_unwritable_journal_takes_nothing_and_loses_nothing(
    coordinator, harness, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("comity_node.transport.link.BACKOFF_REFUSED_S", 0.05)
    taken: list[int] = []
    broken = True

    def prepare(link: Link, journal: Journal) -> None:
        async def handler(message: Message) -> None:
            if broken:
                raise ComityError(ErrorCode.JOURNAL_UNWRITABLE)
            taken.append(message.seq)

        link.register("test.full", handler)

    acks: list[int] = []

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        assert stream.hello.received_seq == 0
        await stream.send(1, "test.full", {})
        await stream.send(2, "test.full", {})
        while True:
            acks.append((await stream.next()).ack.up_to_seq)

    coordinator.scripts = [script]
    harness.prepare = prepare
    link = await harness.start()
    await eventually(lambda: len(coordinator.hellos) >= 3)
    assert link.state.error is None or link.state.error.code is ErrorCode.JOURNAL_UNWRITABLE
    assert acks == []
    broken = False
    await eventually(lambda: acks[-1:] == [2])
    assert taken == [1, 2]


async def test_hostile_frames_end_the_connection_and_nothing_more(coordinator, harness, eventually) -> None:
    handled: list[str] = []

    def prepare(link: Link, journal: Journal) -> None:
        async def handler(message: Message) -> None:
            handled.append(message.id)

        link.register("test.kind", handler)
        link.register("order", handler)

    async def forged_number(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await stream.send(1, "order", {}, sender="hospital-b")
        await forever(stream)

    async def gap(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await stream.send(2, "test.kind", {})
        await forever(stream)

    async def bad_sender(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await stream.send(0, "order", {}, sender="../etc")
        await forever(stream)

    async def stranger(stream: Any) -> None:
        await stream.welcome(OrgKeys.generate(), 0)
        await stream.send(1, "test.kind", {})
        await forever(stream)

    async def other_node(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0, org="hospital-b")
        await forever(stream)

    async def honest(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await stream.send(1, "test.kind", {})
        await forever(stream)

    errors: list[ErrorCode] = []
    coordinator.scripts = [forged_number, gap, bad_sender, stranger, other_node, honest]
    harness.prepare = prepare
    link = await harness.start()
    for count in range(1, 6):
        await eventually(lambda count=count: len(coordinator.hellos) >= count and link.state.error is not None)
        await eventually(lambda: not link.connected and link.state.error is not None)
        errors.append(link.state.error.code)
        link.state = type(link.state)(False, "")
        link.redial()
    await eventually(lambda: handled == ["msg-1-test.kind"])
    malformed, forged = ErrorCode.MALFORMED, ErrorCode.SIGNATURE_INVALID
    assert errors == [malformed, malformed, malformed, forged, forged]


async def test_a_refusal_is_shown_and_a_new_certificate_ends_the_wait(coordinator, harness, eventually) -> None:
    async def revoked(stream: Any) -> None:
        raise ComityError(ErrorCode.REVOKED)

    async def admitted(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await forever(stream)

    coordinator.scripts = [revoked, admitted]
    link = await harness.start()
    await eventually(lambda: link.state.error is not None)
    assert link.state.error.code is ErrorCode.REVOKED
    await asyncio.sleep(0.3)
    assert len(coordinator.hellos) == 1  # a lasting refusal is not hammered at
    link.redial()
    await eventually(lambda: link.connected, 2)


async def test_dialling_again_while_open_and_writing(coordinator, harness, eventually) -> None:
    """A redial ends the stream under writers and readers; nobody is cancelled by it, and the link goes on."""
    statement = sign_statement(OrgKeys.generate(), kind="reply", consortium="demo", issuer="hospital-a", body={"x": 1})
    ended: list[str] = []

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0)
        await forever(stream)

    coordinator.scripts = [script]
    link = await harness.start()

    async def writer() -> None:
        for _ in range(300):
            await link.relay("reply", statement, ("hospital-b",), run="run-1", inline=bytes(200_000))
            await asyncio.sleep(0)
        ended.append("whole")

    await eventually(lambda: link.connected)
    writers = [asyncio.create_task(writer()) for _ in range(3)]
    for count in range(2, 6):
        await asyncio.sleep(0.05)
        link.redial()
        await eventually(lambda count=count: len(coordinator.hellos) >= count and link.connected, 5)
    await asyncio.gather(*writers)
    assert ended == ["whole"] * 3
    assert not harness.task.done()


async def test_relayed_messages_presence_and_refusals(coordinator, harness, eventually) -> None:
    slow = asyncio.Event()
    handled: list[str] = []
    presence: list[tuple[str, bool]] = []
    refused: list[tuple[str, str, ErrorCode]] = []
    opened: list[bool] = []

    def prepare(link: Link, journal: Journal) -> None:
        async def order(message: Message) -> None:
            if message.run == "run-slow":
                await slow.wait()
            handled.append(message.run)

        async def on_presence(orgs: frozenset[str], connected: bool) -> None:
            presence.extend((org, connected) for org in sorted(orgs))

        async def on_refusal(message_id: str, kind: str, error: ComityError) -> None:
            refused.append((message_id, kind, error.code))

        async def on_connected() -> None:
            opened.append(True)

        link.register("order", order)
        link.on_presence(on_presence)
        link.on_refusal(on_refusal)
        link.on_connected(on_connected)

    relayed: list[Any] = []

    async def script(stream: Any) -> None:
        await stream.welcome(coordinator.keys, 0, connected=("hospital-a", "hospital-b"))
        await stream.send(0, "order", {}, sender="hospital-b", run="run-slow")
        await stream.send(0, "order", {}, sender="hospital-b", run="run-fast")
        await stream.send(0, "presence", {"org": "hospital-c", "connected": True})
        await stream.send(0, "presence", {"org": "hospital-b", "connected": False})
        from comity.v1 import exchange_pb2

        together = exchange_pb2.Presence(connected=["hospital-d", "hospital-b"], gone=["hospital-c"])
        await stream.context.write(exchange_pb2.ConnectResponse(presence=together))
        request = await stream.next()
        relayed.append(request.envelope)
        from comity.wire import canonical

        error = canonical.canonical(ComityError(ErrorCode.BUSY, organisations="hospital-c").to_json())
        await stream.context.write(
            exchange_pb2.ConnectResponse(refusal=exchange_pb2.Refusal(id=request.envelope.id, error=error))
        )
        await forever(stream)

    coordinator.scripts = [script]
    harness.prepare = prepare
    keys = OrgKeys.generate()
    statement = sign_statement(keys, kind="reply", consortium="demo", issuer="hospital-a", body={"x": 1})
    link = await harness.start()
    await eventually(lambda: presence[-1:] == [("hospital-c", False)])
    assert presence[:3] == [("hospital-b", True), ("hospital-c", True), ("hospital-b", False)]
    assert presence[3:] == [("hospital-b", True), ("hospital-d", True), ("hospital-c", False)]
    assert opened == [True]
    assert link.connected_orgs == {"hospital-b", "hospital-d"}
    await eventually(lambda: handled == ["run-fast"])
    slow.set()
    await eventually(lambda: handled == ["run-fast", "run-slow"])
    message_id = await link.relay("reply", statement, ("hospital-c",), run="run-1", inline=b"x" * 1000)
    await eventually(lambda: bool(refused))
    assert refused == [(message_id, "reply", ErrorCode.BUSY)]
    assert (relayed[0].seq, relayed[0].run, relayed[0].receivers, len(relayed[0].inline_payload)) == (
        0,
        "run-1",
        ["hospital-c"],
        1000,
    )
    await coordinator.stop()
    await eventually(lambda: not link.connected)
    assert await link.relay("reply", statement, ("hospital-c",), run="run-1") is None
    assert link.connected_orgs == frozenset()


async def test_what_the_wire_cannot_carry_is_refused_before_it_is_journalled(harness) -> None:
    link = await harness.start()
    for kind, body, code in (
        ("test.kind", {"x": "y" * (1 << 20)}, ErrorCode.TOO_LARGE),
        ("bad kind", {}, ErrorCode.MALFORMED),
        ("test.kind", {"x": 0.5}, ErrorCode.MALFORMED),
    ):
        with pytest.raises(ComityError) as refused:
            harness.journal.transact(lambda conn, kind=kind, body=body: link.send(conn, kind, body))
        assert refused.value.code is code
    assert harness.journal.transact(store.waiting_count) == 0
