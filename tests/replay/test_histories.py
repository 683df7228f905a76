"""Stored Temporal histories replay on today's workflows: a change that would break what is running fails here."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import Replayer

from comity_coordinator.negotiation.workflow import Negotiation, NegotiationWorkflow
from comity_coordinator.training.workflow import RunWorkflow
from comity_coordinator.workflows.codec import SealingCodec

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))
KEY = bytes(range(32))  # as in record.py
CONVERTER = DataConverter(payload_codec=SealingCodec(KEY))


@workflow.defn(name="Negotiation", sandboxed=False)
class ChangedNegotiation:
    """A workflow that asks for something else first: no longer compatible."""

    @workflow.run
    async def run(self, negotiation: Negotiation) -> None:
        await workflow.sleep(5)
        await workflow.sleep(7)


def test_histories_are_there() -> None:
    assert [path.stem for path in HISTORIES] == ["agreed", "expired", "run"]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_replay(path: Path) -> None:
    replayer = Replayer(workflows=[NegotiationWorkflow, RunWorkflow], data_converter=CONVERTER)
    result = await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text()))
    assert result.replay_failure is None


async def test_replay_finds_an_incompatible_change() -> None:
    path = next(path for path in HISTORIES if path.stem == "expired")
    replayer = Replayer(workflows=[ChangedNegotiation], data_converter=CONVERTER)
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    assert isinstance(result.replay_failure, workflow.NondeterminismError)
