"""The seam to whatever supervises negotiations and runs: it holds timers and rings; the services decide.

Rules: leg transitions commit in the services' transactions and never wait for an engine (negotiation.md section 2); an
engine is told after the commit, from any thread, and must not block or raise; a lost, early or double ring is harmless.
"""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Connection


class WorkflowEngine(Protocol):
    """What the services tell an engine."""

    def negotiation_opened(self, negotiation_id: str, deadline: str) -> None:
        """A negotiation waits for answers until `deadline` (RFC 3339)."""

    def negotiation_ended(self, negotiation_id: str) -> None:
        """It is final or terminated: nothing is awaited any more."""

    def run_created(self, run_id: str) -> None:
        """A run waits for its parties."""

    def run_changed(self, run_id: str) -> None:
        """A run's state or deadline changed."""


class RunningEngine(WorkflowEngine, Protocol):
    """A workflow engine with its life."""

    async def start(self, negotiation: Supervised, training: Supervised) -> None:
        """Begin to supervise."""

    async def look_again(self) -> None:
        """Supervise all that is open, whoever opened it."""

    async def close(self) -> None:
        """Stop."""


class Supervised(Protocol):
    """What an engine asks of the negotiation and the training service, each inside one transaction."""

    def on_deadline(self, conn: Connection, subject_id: str) -> str | None:
        """Judge the deadline against the clock; return the next one to wait for, or None when there is none."""

    def deadline_of(self, conn: Connection, subject_id: str) -> str | None:
        """Return the deadline now awaited, or None."""

    def open_deadlines(self, conn: Connection) -> list[tuple[str, str]]:
        """Return (id, deadline) of all that is open, for an engine that starts."""
