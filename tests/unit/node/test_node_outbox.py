"""Every message leaves once a connection, in order, within the window, wherever it comes from."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from comity_node.journal import Journal
from comity_node.transport import store
from comity_node.transport.model import Message, write_envelope
from comity_node.transport.outbox import WINDOW, Outbox
from comity_node.transport.session import Greeting


class Wire:
    """A connection that takes what is written."""

    def __init__(self, received_seq: int = 0) -> None:
        self.greeting = Greeting(received_seq, frozenset())
        self.seqs: list[int] = []

    async def write(self, frame: Any) -> None:
        self.seqs.append(frame.envelope.seq)

    async def until(self, count: int) -> list[int]:
        async with asyncio.timeout(5):
            while len(self.seqs) < count:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # nothing more
        return self.seqs


def put(journal: Journal, outbox: Outbox, count: int = 1) -> None:
    for _ in range(count):
        number = journal.transact(store.position).sent_seq
        message = Message(f"m-{number:030d}", 0, "receipts", "hospital-a", (), "", b"{}")
        journal.transact(lambda conn, message=message: outbox.put(conn, message))


@pytest.fixture
def outbox(journal: Journal) -> Outbox:
    return Outbox(journal, "hospital-a")


async def _pumped(outbox: Outbox, wire: Wire) -> asyncio.Task[None]:
    outbox.open(wire.greeting.received_seq)
    return asyncio.create_task(outbox.pump(wire))  # type: ignore[arg-type]


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_new_messages_leave_without_being_read_back(journal, outbox, monkeypatch) -> None:
    wire = Wire()
    task = await _pumped(outbox, wire)
    await asyncio.sleep(0.02)
    monkeypatch.setattr("comity_node.transport.store.waiting", None)  # would fail if it were asked
    put(journal, outbox, 3)
    assert await wire.until(3) == [1, 2, 3]
    await _end(task)


async def test_no_more_than_the_window_is_under_way(journal, outbox) -> None:
    put(journal, outbox, 3 * WINDOW)
    wire = Wire()
    task = await _pumped(outbox, wire)
    assert await wire.until(WINDOW) == list(range(1, WINDOW + 1))
    outbox.acknowledged(WINDOW)
    assert await wire.until(2 * WINDOW) == list(range(1, 2 * WINDOW + 1))
    outbox.acknowledged(WINDOW + 7)
    assert len(await wire.until(2 * WINDOW + 7)) == 2 * WINDOW + 7
    outbox.acknowledged(2 * WINDOW + 7)
    assert await wire.until(3 * WINDOW) == list(range(1, 3 * WINDOW + 1))
    await _end(task)


async def test_another_connection_and_another_process_go_on(journal, outbox) -> None:
    put(journal, outbox, 5)
    wire = Wire()
    task = await _pumped(outbox, wire)
    await wire.until(5)
    await _end(task)
    again = Wire(received_seq=2)
    task = await _pumped(outbox, again)
    put(journal, outbox, 1)
    assert await again.until(4) == [3, 4, 5, 6]
    await _end(task)
    later = Wire(received_seq=4)
    newborn = Outbox(journal, "hospital-a")
    task = await _pumped(newborn, later)
    assert await later.until(2) == [5, 6]
    await _end(task)


async def test_what_is_acknowledged_is_forgotten_with_the_connection(journal, outbox) -> None:
    wire = Wire()
    task = await _pumped(outbox, wire)
    put(journal, outbox, 3)
    await wire.until(3)
    outbox.acknowledged(2)
    await _end(task)
    assert journal.transact(store.waiting_count) == 1  # another coordinator is not sent what this one has


async def test_what_is_acknowledged_is_forgotten_when_nothing_happens(journal, outbox, monkeypatch) -> None:
    monkeypatch.setattr("comity_node.transport.outbox.QUIET_S", 0.02)
    wire = Wire()
    task = await _pumped(outbox, wire)
    put(journal, outbox, 3)
    await wire.until(3)
    outbox.acknowledged(2)
    async with asyncio.timeout(5):
        while journal.transact(store.waiting_count) != 1:
            await asyncio.sleep(0.005)
    await _end(task)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_trace_waits_with_its_message_for_another_process(journal: Journal) -> None:
    message = Message("m-traced", 0, "receipts", "hospital-a", (), "", b"{}", trace=TRACE)
    journal.transact(lambda conn: Outbox(journal, "hospital-a").put(conn, message))
    put(journal, Outbox(journal, "hospital-a"))
    journal.transact(store.restart)  # numbered anew
    found = journal.transact(lambda conn: store.waiting(conn, 0, 10, "hospital-a"))
    assert [(each.seq, each.trace) for each in found] == [(1, TRACE), (2, "")]
    assert write_envelope(found[0]).traceparent == TRACE
    journal.transact(lambda conn: store.acknowledged(conn, 1))
    assert journal.transact(lambda conn: conn.exec_driver_sql("SELECT * FROM link_outbox_traces").all()) == []
