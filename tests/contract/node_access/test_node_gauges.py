"""The gauges of a node that was built and not run: each is read, from the real journal, folder and policy."""

from __future__ import annotations

from comity.observability.metrics import Gauge
from comity_node import app
from comity_node.observability import metrics
from comity_node.observability.gauges import Gauges


async def test_every_gauge_is_read(node: app.Node) -> None:
    (node.context.settings.payloads_folder / "sealed").write_bytes(b"x" * 1234)
    await Gauges(node.context).read()
    gauges = [each for each in metrics.BOOK if isinstance(each, Gauge) and not each.labels]
    assert [each.name for each in gauges if () not in each.values] == []
    assert metrics.PAYLOAD_BYTES.values[()] == 1234
    assert metrics.PAYLOAD_LIMIT_BYTES.values[()] == node.context.settings.limits.payload_store_bytes
    assert metrics.DISK_FREE_BYTES.values[()] > 0
    empty = (metrics.CONNECTED, metrics.OUTBOX, metrics.REVIEWS_OPEN, metrics.RUNS_OPEN, metrics.INCIDENTS)
    assert [each.values[()] for each in empty] == [0] * len(empty)
