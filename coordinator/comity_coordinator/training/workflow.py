"""A run as a Temporal workflow: one heartbeating activity supervises the `train` step from preparation to its end.

Rounds, orders and bytes never pass through here (workflows-and-agents.md section 1). Light on purpose, like
`negotiation/workflow.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

HEARTBEAT_TIMEOUT = timedelta(seconds=6)
STEP_TIMEOUT = timedelta(days=365)
RETRY_WAIT = timedelta(milliseconds=500)
RETRY_WAIT_MAX = timedelta(seconds=5)


@dataclass(frozen=True)
class Run:
    """What the workflow is started with."""

    run_id: str


@workflow.defn(name="Run")
class RunWorkflow:
    """Supervises one run; the activity that died with a coordinator is taken up by the next."""

    @workflow.run
    async def run(self, run: Run) -> str:
        """Return the state that the run ended in."""
        state: str = await workflow.execute_activity(
            "supervise_run",
            run.run_id,
            result_type=str,
            start_to_close_timeout=STEP_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=RetryPolicy(initial_interval=RETRY_WAIT, maximum_interval=RETRY_WAIT_MAX),
        )
        return state
