"""A negotiation as a Temporal workflow: it holds the deadline and waits for one signal, the end.

Light on purpose: standard library and temporalio only, so that the workflow sandbox loads it in milliseconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

JUDGE_TIMEOUT = timedelta(seconds=30)
RETRY_WAIT = timedelta(milliseconds=500)
RETRY_WAIT_MAX = timedelta(seconds=10)


@dataclass(frozen=True)
class Negotiation:
    """What the workflow is started with; `deadline` is RFC 3339 text."""

    negotiation_id: str
    deadline: str


@workflow.defn(name="Negotiation")
class NegotiationWorkflow:
    """Rings at each deadline until nothing is awaited any more."""

    def __init__(self) -> None:
        self._ended = False

    @workflow.signal(name="ended")
    def ended(self) -> None:
        """The service says that the negotiation is final or terminated."""
        self._ended = True

    @workflow.query(name="awaiting")
    def awaiting(self) -> bool:
        """Tell whether anything is still awaited."""
        return not self._ended

    @workflow.run
    async def run(self, negotiation: Negotiation) -> None:
        """Wait for the end or the deadline, whichever is first; at a deadline let the service judge."""
        deadline: str | None = negotiation.deadline
        while deadline is not None and not self._ended:
            wait = datetime.fromisoformat(deadline) - workflow.now()
            try:
                await workflow.wait_condition(lambda: self._ended, timeout=max(wait, timedelta()))
            except asyncio.TimeoutError:  # noqa: UP041 - on 3.11 the sandbox proxies this name
                deadline = await workflow.execute_activity(
                    "judge_negotiation",
                    negotiation.negotiation_id,
                    result_type=str,
                    start_to_close_timeout=JUDGE_TIMEOUT,
                    retry_policy=RetryPolicy(initial_interval=RETRY_WAIT, maximum_interval=RETRY_WAIT_MAX),
                )
                deadline = deadline or None
