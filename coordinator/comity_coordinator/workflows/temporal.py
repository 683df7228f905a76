"""The durable engine: negotiations and runs as Temporal workflows.

Rules
1. The services commit first and tell afterwards; what they tell goes into a bounded set and is carried out by one task,
   so that a slow or dead engine never delays or fails a transaction.
2. Telling twice is harmless: workflow ids are the subjects' ids, and a workflow that runs already is left alone.
3. Whatever was not told (a crash between commit and call, an overflow) is found by the scan at start and after each
   reconnection: every deadline also stands in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta
from pathlib import Path

import structlog
from temporalio.client import Client, Interceptor, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from comity.observability import scope, spans
from comity_coordinator.db import Database
from comity_coordinator.negotiation.workflow import Negotiation, NegotiationWorkflow
from comity_coordinator.observability import metrics
from comity_coordinator.training.workflow import Run, RunWorkflow
from comity_coordinator.workflows.activities import Activities, Bells
from comity_coordinator.workflows.codec import SealingCodec, load_key
from comity_coordinator.workflows.engine import Supervised
from comity_coordinator.workflows.server import NAMESPACE, TemporalServer

TASK_QUEUE = "comity-coordinator"
TOLD_MAX = 100_000
RETRY_S = 0.5
RETRY_S_MAX = 5.0
# A killed worker's sticky queue holds tasks for this long; the default of 10 s would delay every recovery.
STICKY_TIMEOUT = timedelta(seconds=1)
SHUTDOWN_TIMEOUT = timedelta(seconds=2)

_log = structlog.get_logger("comity.temporal")


class TemporalEngine:
    """Implements `WorkflowEngine`. `TEMPORAL_ADDRESS` names a cluster; without it the dev server is a child."""

    def __init__(self, db: Database, home: Path) -> None:
        """Args: `home`, the coordinator's folder; the child's file lies in `<home>/temporal`."""
        self._db = db
        self._key_file = home / "keys" / "workflow.key"
        given = os.environ.get("TEMPORAL_ADDRESS")
        self.server = None if given else TemporalServer(home / "temporal")
        self._address = given or (self.server.address if self.server else "")
        self._namespace = os.environ.get("TEMPORAL_NAMESPACE", NAMESPACE if self.server else "default")
        self._bells = Bells()
        self._told: dict[tuple[str, str, str], str] = {}  # with the trace that it belongs to
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._services: tuple[Supervised, Supervised] | None = None
        self.connected = asyncio.Event()

    async def start(self, negotiation: Supervised, training: Supervised) -> None:
        """Start the child and the task that connects, works and carries out what is told."""
        self._loop = asyncio.get_running_loop()
        self._services = (negotiation, training)
        if self.server is not None:
            await self.server.start()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop working and end the child; what is unfinished stays in its file."""
        self._loop = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.server is not None:
            await self.server.stop()

    def negotiation_opened(self, negotiation_id: str, deadline: str) -> None:
        """Start its workflow."""
        self._tell("open", negotiation_id, deadline)

    def negotiation_ended(self, negotiation_id: str) -> None:
        """Signal its workflow."""
        self._tell("end", negotiation_id, "")

    def run_created(self, run_id: str) -> None:
        """Start its workflow."""
        self._tell("run", run_id, "")

    def run_changed(self, run_id: str) -> None:
        """Wake the activity that supervises it."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._bells.ring, run_id)

    async def look_again(self) -> None:
        """Start the workflows of all that is open: a replica that died may have told the engine nothing of it."""
        await self._scan()

    def _tell(self, what: str, subject: str, deadline: str) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._note, (what, subject, deadline))

    def _note(self, told: tuple[str, str, str]) -> None:
        if len(self._told) < TOLD_MAX:  # rule 3 finds the rest
            self._told.setdefault(told, scope.trace())
            self._wake.set()

    async def _run(self) -> None:
        """Connect, work, and start over when the connection is lost; waits grow up to `RETRY_S_MAX`."""
        wait_s = RETRY_S
        while True:  # ends by cancellation in `close`
            try:
                client = await self._connect()
                wait_s = RETRY_S
                async with self._worker(client):
                    self.connected.set()
                    await self._scan()
                    await self._carry_out(client)
            except (RPCError, RuntimeError, OSError, WorkflowFailureError) as error:
                self.connected.clear()
                metrics.TEMPORAL_FAILURES.add("connection")
                _log.warning("temporal.unavailable", reason=type(error).__name__, retry_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def _connect(self) -> Client:
        if self.server is not None:
            await self.server.wait_ready()
        codec = SealingCodec(load_key(self._key_file))
        converter = DataConverter(
            payload_codec=codec, failure_converter_class=DefaultFailureConverterWithEncodedAttributes
        )
        return await Client.connect(
            self._address, namespace=self._namespace, data_converter=converter, interceptors=_interceptors()
        )

    def _worker(self, client: Client) -> Worker:
        assert self._services is not None
        acts = Activities(self._db, *self._services, self._bells)
        return Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[NegotiationWorkflow, RunWorkflow],
            activities=[acts.judge_negotiation, acts.supervise_run],
            sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
            graceful_shutdown_timeout=SHUTDOWN_TIMEOUT,
            max_concurrent_activities=1000,
        )

    async def _scan(self) -> None:
        assert self._services is not None
        negotiation, training = self._services
        for subject, deadline in await self._db.run(negotiation.open_deadlines):
            self._note(("open", subject, deadline))
        for subject, _ in await self._db.run(training.open_deadlines):
            self._note(("run", subject, ""))

    async def _carry_out(self, client: Client) -> None:
        """Carry out what was told; a call that fails for want of the engine stays told."""
        while True:  # ends by cancellation or when the engine is out of reach
            await self._wake.wait()
            self._wake.clear()
            for told in sorted(self._told):
                try:
                    with spans.span(f"engine {told[0]}", trace=self._told[told]):
                        await self._do(client, *told)
                except RPCError:
                    self._wake.set()
                    raise
                del self._told[told]

    async def _do(self, client: Client, what: str, subject: str, deadline: str) -> None:
        with contextlib.suppress(WorkflowAlreadyStartedError):
            if what == "open":
                await client.start_workflow(
                    NegotiationWorkflow.run,
                    Negotiation(subject, deadline),
                    id=f"negotiation/{subject}",
                    task_queue=TASK_QUEUE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                )
            elif what == "run":
                await client.start_workflow(
                    RunWorkflow.run,
                    Run(subject),
                    id=f"run/{subject}",
                    task_queue=TASK_QUEUE,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                )
            else:
                await self._signal_end(client, subject)

    @staticmethod
    async def _signal_end(client: Client, subject: str) -> None:
        try:
            await client.get_workflow_handle(f"negotiation/{subject}").signal(NegotiationWorkflow.ended)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:  # it ended by itself: nothing to tell
                raise


def _interceptors() -> list[Interceptor]:
    """Return what makes spans of workflows and activities, while traces are recorded."""
    tracer = spans.tracer()
    if tracer is None:
        return []
    from temporalio.contrib.opentelemetry import TracingInterceptor

    return [TracingInterceptor(tracer)]
