"""The trace of a message waits with it in the outbox, for another process or another replica to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import update

from comity.observability import spans
from comity.v1 import exchange_pb2
from comity_coordinator.db import open_database
from comity_coordinator.transport import store
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.model import to_wire
from comity_coordinator.transport.resuming import fetch
from comity_coordinator.transport.session import Errand

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def _nobody(_: Any) -> None:
    return


def test_whoever_sends_a_message_sends_the_trace_of_who_wrote_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'comity.db'}"
    first = open_database(url)
    first.create_all()
    hub = Hub(first, _nobody)
    with spans.received("take proposal.submit", TRACE):
        first.transact(lambda conn: hub.enqueue(conn, "alpha", "offer", {"n": 1}))
        first.transact(lambda conn: hub.enqueue_all(conn, ("alpha", "beta"), "news", {"n": 2}))
    first.transact(lambda conn: hub.enqueue(conn, "alpha", "news", {"n": 3}))
    first.close()

    second = open_database(url)
    errand = Errand(None, 0, 10)
    found = second.transact(lambda conn: fetch(conn, ("alpha", errand)))
    frames = [exchange_pb2.ConnectResponse.FromString(to_wire(each)).envelope for each in found]
    assert [each.traceparent for each in frames] == [TRACE, TRACE, ""]
    assert [each.trace for each in second.transact(lambda conn: fetch(conn, ("beta", errand)))] == [TRACE]
    # What a replica of the version before wrote has none.
    second.transact(lambda conn: conn.execute(update(store.outbox).values(trace=None)) and None)
    assert {each.trace for each in second.transact(lambda conn: fetch(conn, ("alpha", errand)))} == {""}
    second.close()
