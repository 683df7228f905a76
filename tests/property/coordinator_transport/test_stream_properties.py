"""Whatever a node sends, in whatever order and however often: each message is handled once, in order, or refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from comity.v1 import exchange_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import open_database
from comity_coordinator.transport import store
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.identity import Peer
from comity_coordinator.transport.model import RELAYED_KINDS, Message, Place, from_wire, place, to_wire

TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
envelopes = st.builds(
    exchange_pb2.Envelope,
    id=st.text(max_size=100),
    seq=st.integers(0, 2**64 - 1),
    kind=st.sampled_from([*sorted(RELAYED_KINDS), "note", "", "x" * 100]),
    sender=st.sampled_from(["alpha", "beta", "coordinator", ""]),
    receivers=st.lists(st.sampled_from(["beta", "gamma", "", "../x", "UPPER"]), max_size=70),
    run=st.text(max_size=80),
    body=st.binary(max_size=50),
    traceparent=st.one_of(st.text(max_size=80), st.just(TRACE), st.just(TRACE.upper()), st.just(f"{TRACE}\n")),
)


@given(envelopes)
def test_any_envelope_is_a_legal_message_or_a_refusal(envelope: exchange_pb2.Envelope) -> None:
    try:
        message = from_wire(envelope, "alpha")
    except ComityError as error:
        refused = error.code
    else:
        refused = None
    if refused is not None:
        assert refused in {ErrorCode.MALFORMED, ErrorCode.FORBIDDEN, ErrorCode.TOO_LARGE}
        return
    assert message.sender == "alpha"
    assert message.trace == (TRACE if envelope.traceparent == TRACE else "")
    relayed = message.kind in RELAYED_KINDS
    assert relayed == (message.seq == 0) == bool(message.receivers)
    back = exchange_pb2.ConnectResponse.FromString(to_wire(message)).envelope
    assert (back.id, back.seq, back.body, back.sender) == (message.id, message.seq, message.body, "alpha")


@given(st.integers(0, 100), st.integers(1, 100), st.booleans())
def test_place_is_next_only_for_the_next(received: int, seq: int, known: bool) -> None:
    found = place(received, seq, id_known=known)
    assert (found is Place.NEXT) == (seq == received + 1)
    assert (found is Place.GAP) == (seq > received + 1)


async def _admit(peer: Peer) -> None:
    return


@given(st.lists(st.lists(st.integers(1, 8), max_size=6), max_size=6), st.sets(st.integers(1, 8)))
def test_each_message_is_handled_once_and_in_order(batches: list[list[int]], refused: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{Path(folder) / 'test.db'}")
        database.create_all()
        hub = Hub(database, _admit)
        handled: list[int] = []

        def handler(conn: Connection, org: str, message: Message) -> None:
            hub.enqueue(conn, "beta", "echo", {"of": message.id})
            handled.append(int(message.id))
            if int(message.id) in refused:
                raise ComityError(ErrorCode.ILLEGAL_EVENT)

        hub.register("note", handler)
        expected = 0
        for numbers in batches:
            batch = [Message(str(number), "note", "alpha", (), "", b"{}", seq=number) for number in numbers]
            outcome: Any = database.transact(lambda conn, batch=batch: hub._handle_batch(conn, ("alpha", batch)))
            for number in numbers:
                if number > expected + 1:
                    break
                expected = max(expected, number)
            assert outcome.received_seq == expected
            assert (outcome.fatal is not None) == any(
                number > max([0, *handled, *numbers[:index]]) + 1 for index, number in enumerate(numbers)
            )
        assert handled == list(range(1, expected + 1))
        echoes = database.transact(lambda conn: store.unsent(conn, "beta", 0, 100))
        assert [row[0] for row in echoes] == list(range(1, len(echoes) + 1))
        assert len(echoes) == len([number for number in handled if number not in refused])
        database.close()
