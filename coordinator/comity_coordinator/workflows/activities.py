"""What the workflows do to the world: let a service judge a deadline, and watch a run until it is closed.

An activity may run twice, or on another coordinator; the services' transactions make that harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from temporalio import activity

from comity.observability import spans
from comity.wire import instants
from comity_coordinator.db import Database
from comity_coordinator.observability import metrics
from comity_coordinator.workflows.engine import Supervised

HEARTBEAT_S = 1.5


class Bells:
    """One event per run under supervision: the service rings, the activity looks."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}

    def ring(self, run_id: str) -> None:
        """Wake the activity that watches `run_id`, if one does. Call on the event loop."""
        event = self._events.get(run_id)
        if event is not None:
            event.set()

    @contextlib.contextmanager
    def hung(self, run_id: str) -> Iterator[asyncio.Event]:
        """Hang up a bell for the time of a `with` block."""
        event = self._events.setdefault(run_id, asyncio.Event())
        try:
            yield event
        finally:
            self._events.pop(run_id, None)


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """Count an activity that fails; the engine tries it again."""
    try:
        yield
    except Exception:
        metrics.TEMPORAL_FAILURES.add("activity")
        raise


class Activities:
    """The activities of one coordinator process."""

    def __init__(self, db: Database, negotiation: Supervised, training: Supervised, bells: Bells) -> None:
        self._db = db
        self._negotiation = negotiation
        self._training = training
        self._bells = bells

    @activity.defn(name="judge_negotiation")
    async def judge_negotiation(self, negotiation_id: str) -> str:
        """Judge a negotiation's deadline; return the next one, or an empty text."""
        with _counted(), spans.resumed():
            return await self._db.run(lambda conn: self._negotiation.on_deadline(conn, negotiation_id)) or ""

    @activity.defn(name="supervise_run")
    async def supervise_run(self, run_id: str) -> str:
        """Judge a run's deadlines as they pass until none is left; heartbeat the one awaited."""
        with _counted(), spans.resumed(run=run_id), self._bells.hung(run_id) as bell:
            while True:  # ends when the run is closed; cancelled with the worker
                bell.clear()
                deadline = await self._db.run(lambda conn: self._training.deadline_of(conn, run_id))
                if deadline is None:
                    return "closed"
                activity.heartbeat(deadline)
                left_s = (instants.parse(deadline) - instants.now()).total_seconds()
                if left_s < 0:
                    await self._db.run(lambda conn: self._training.on_deadline(conn, run_id))
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), min(left_s + 0.05, HEARTBEAT_S))
