"""Record the histories that `test_histories.py` replays: run after a deliberate change of a workflow, and say why.

python tests/replay/record.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from datetime import timedelta
from pathlib import Path

from temporalio import activity
from temporalio.client import Client
from temporalio.converter import DataConverter
from temporalio.worker import Worker

from comity.wire import instants
from comity_coordinator.negotiation.workflow import Negotiation, NegotiationWorkflow
from comity_coordinator.training.workflow import Run, RunWorkflow
from comity_coordinator.workflows.codec import SealingCodec
from comity_coordinator.workflows.server import NAMESPACE, TemporalServer

FOLDER = Path(__file__).parent / "histories"
# Not a secret: it only has to be the same when the histories are replayed.
KEY = bytes(range(32))
QUEUE = "record"


@activity.defn(name="judge_negotiation")
async def judge_negotiation(negotiation_id: str) -> str:
    """The first deadline is extended once, the second is final."""
    first = activity.info().workflow_id == negotiation_id and not _seen
    _seen.append(negotiation_id)
    return instants.to_text(instants.now() + timedelta(seconds=1)) if first else ""


@activity.defn(name="supervise_run")
async def supervise_run(run_id: str) -> str:
    """End a run at the second attempt, as after a crash."""
    activity.heartbeat(run_id)
    if activity.info().attempt == 1:
        raise RuntimeError("the first attempt dies")
    return "closed"


_seen: list[str] = []


async def record() -> None:
    """Run each workflow the ways it can go and store its history."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = TemporalServer(Path(folder))
        await server.start()
        with contextlib.suppress(asyncio.CancelledError):
            await server.wait_ready()
            converter = DataConverter(payload_codec=SealingCodec(KEY))
            client = await Client.connect(server.address, namespace=NAMESPACE, data_converter=converter)
            worker = Worker(
                client,
                task_queue=QUEUE,
                workflows=[NegotiationWorkflow, RunWorkflow],
                activities=[judge_negotiation, supervise_run],
            )
            async with worker:
                await _record_all(client)
        await server.stop()


async def _record_all(client: Client) -> None:
    soon = instants.to_text(instants.now() + timedelta(seconds=1))
    late = instants.to_text(instants.now() + timedelta(hours=1))
    expired = await client.start_workflow(
        NegotiationWorkflow.run, Negotiation("expired", soon), id="expired", task_queue=QUEUE
    )
    agreed = await client.start_workflow(
        NegotiationWorkflow.run, Negotiation("agreed", late), id="agreed", task_queue=QUEUE
    )
    await agreed.signal(NegotiationWorkflow.ended)
    run = await client.start_workflow(RunWorkflow.run, Run("run"), id="run", task_queue=QUEUE)
    for handle in (expired, agreed, run):
        await handle.result()
        history = await client.get_workflow_handle(handle.id).fetch_history()
        document = history.to_json_dict()
        _strip(document)
        (FOLDER / f"{handle.id}.json").write_text(json.dumps(document, indent=2) + "\n")


def _strip(value: object) -> None:
    """Drop stack traces: they name the recording machine's folders."""
    if isinstance(value, dict):
        value.pop("stackTrace", None)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _strip(item)


if __name__ == "__main__":
    asyncio.run(record())
