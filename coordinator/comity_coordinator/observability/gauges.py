"""Reading the gauges: what the hub, the spool and the database say now."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass

from comity.wire import instants
from comity_coordinator.db import Database
from comity_coordinator.observability import metrics, store
from comity_coordinator.transport.hub import Hub
from comity_coordinator.transport.payloads import Spool
from comity_coordinator.workflows.engine import WorkflowEngine


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is asked; `read` sets every gauge of `metrics`."""

    database: Database
    hub: Hub
    spool: Spool
    engine: WorkflowEngine

    async def read(self) -> None:
        """Set all gauges. Raises what the database raises; then none of its gauges has changed."""
        self._of_process()
        free = await asyncio.to_thread(shutil.disk_usage, self.spool.folder)
        metrics.DISK_FREE_BYTES.set(free.free)
        self._of_database(await self.database.run(store.read))

    def _of_process(self) -> None:
        waiting, longest, uncommitted = self.hub.waiting()
        metrics.SEND_QUEUE.set(waiting)
        metrics.SEND_QUEUE_LONGEST.set(longest)
        metrics.COMMIT_QUEUE.set(uncommitted)
        metrics.CONNECTED.set(len(self.hub.here()))
        metrics.PAYLOAD_BYTES.set(self.spool.stored_bytes())
        metrics.PAYLOAD_LIMIT_BYTES.set(self.spool.limits.total_bytes)
        connected = getattr(self.engine, "connected", None)  # the timers of a coordinator without Temporal have none
        if isinstance(connected, asyncio.Event):
            metrics.TEMPORAL_UP.set(connected.is_set())

    def _of_database(self, counts: store.Counts) -> None:
        here = self.hub.connected()
        metrics.MEMBERS.set(len(counts.members))
        metrics.NODE_UP.replace({org: float(org in here) for org in counts.members})
        metrics.OUTBOX.replace(counts.outbox)
        metrics.LEDGER_ENTRIES.set(counts.ledger_entries)
        metrics.LEDGER_PENDING.set(counts.ledger_pending)
        metrics.SEQUENCER_LAG.set(_age_s(counts.oldest_pending_at))
        metrics.COSIGNATURE_LAG.set(_age_s(counts.unsigned_since))
        if counts.checkpoint_at:
            metrics.CHECKPOINT_AGE.set(_age_s(counts.checkpoint_at))
        metrics.NEGOTIATIONS.replace(counts.negotiations)
        metrics.RUNS.replace(counts.runs)
        metrics.RUNS_OPEN.set(counts.runs_open)


def _age_s(instant: str) -> float:
    """Return the age of an instant in seconds; 0 for none, and for one of a clock that is ahead of ours."""
    return max(0.0, (instants.now() - instants.parse(instant)).total_seconds()) if instant else 0.0
