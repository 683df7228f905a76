"""Reading the gauges: what link, journal, payload folder and policy say now."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from comity_node.context import NodeContext
from comity_node.observability import metrics, store
from comity_node.policy.recorded import RecordedPolicy


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is asked; `read` sets every gauge of `metrics`."""

    node: NodeContext

    async def read(self) -> None:
        """Set all gauges. Raises what the journal or the disk raises; then the others keep their older values."""
        node = self.node
        metrics.CONNECTED.set(node.link.connected)
        metrics.OTHERS.set(len(node.link.connected_orgs))
        if isinstance(node.policy, RecordedPolicy):
            metrics.CIRCUIT_OPEN.set(node.policy.circuit_open)
        used, free = await asyncio.to_thread(_sizes, node.settings.payloads_folder)
        metrics.PAYLOAD_BYTES.set(used)
        metrics.PAYLOAD_LIMIT_BYTES.set(node.settings.limits.payload_store_bytes)
        metrics.DISK_FREE_BYTES.set(free)
        _of_journal(await node.journal.run(store.read))


def _of_journal(counts: store.Counts) -> None:
    metrics.OUTBOX.set(counts.outbox)
    metrics.UNTAKEN.set(counts.untaken)
    metrics.REVIEWS_OPEN.set(counts.reviews_open)
    metrics.NEGOTIATIONS_PENDING.set(counts.pending)
    metrics.RUNS.replace(counts.runs)
    metrics.RUNS_OPEN.set(counts.runs_open)
    metrics.RECEIPTS_UNSENT.set(counts.receipts_unsent)
    metrics.LEDGER_SEEN.set(counts.ledger_size)
    metrics.INCIDENTS.set(counts.incidents)


def _sizes(folder: Path) -> tuple[int, int]:
    """Return (bytes of the files in a folder, bytes free on its disk)."""
    with os.scandir(folder) as entries:
        used = sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file())
    return used, shutil.disk_usage(folder).free
