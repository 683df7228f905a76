"""The seam of the kinds of steps: who does a step's work at a party, and who asks at its lead.

A `train` step is worked on by processes of its app. Another kind brings both sides itself: objects that are called like
those processes, so that orders, checks, journal, receipts and replies are the same for every step. A kind may have its
own way of letting results out (`profile`); without one the terms' aggregation profile does it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from comity.wire.errors import ComityError
from comity_agents.flower.events import Event, Reply
from comity_node.training.datasets import Copy
from comity_node.training.led import LedRun
from comity_node.training.profiles.base import AggregationProfile
from comity_policies.documents import Agreement, Step


class PartyWork(Protocol):
    """One run's work at one party (`ClientWorker` for an app)."""

    async def start(self) -> None:
        """Get ready. Raises why it is impossible here."""
        ...

    async def call(
        self, header: Mapping[str, Any], blob_fd: int, size: int, deadline_s: float, reply_bytes_max: int
    ) -> Reply:
        """Serve one order: `header` has `id`, `type`, `group`, `seq`; the caller keeps `blob_fd`."""
        ...

    async def close(self) -> None:
        """End the work and let go of what it holds; harmless if nothing is under way."""
        ...


@runtime_checkable
class Measures(Protocol):
    """Party work that knows the facts of its results itself: their bytes are no content of an app."""

    def facts(self, order_digest: str) -> dict[str, Any] | None:
        """Return kind, cohort, size_bytes, metrics and noise of the result of an order, None if it is not known."""
        ...


class LeadWork(Protocol):
    """The asking side of one run at its lead (`ServerAppProcess` for an app)."""

    async def start(self) -> None:
        """Get ready; questions count from 0 again. Raises why it is impossible here."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """Yield questions and progress; ends after `Finished` or `Failed`. Raises `WORKER_DIED`."""
        ...

    async def send_reply(
        self, seq: int, src: int, fd: int | None = None, size: int = 0, error: ComityError | None = None
    ) -> None:
        """Answer question `seq` for node `src`: a content (the caller keeps `fd`) or an error."""
        ...

    async def close(self) -> None:
        """End the work; harmless if nothing is under way."""
        ...


@runtime_checkable
class Answers(Protocol):
    """Lead work whose result is no arrays but a part of the run's card."""

    def card(self) -> dict[str, Any]:
        """Return that part, empty before the end."""
        ...


class StepKind(Protocol):
    """One kind of step that runs no app."""

    @property
    def name(self) -> str:
        """The step's `kind`."""
        ...

    @property
    def profile(self) -> AggregationProfile | None:
        """How results leave; None: as the terms' `aggregation` says."""
        ...

    def party(self, run: str, agreement: Agreement, step: Step, copies: Sequence[Copy]) -> PartyWork:
        """Return the work of a run at this party; `copies` hold the granted columns of its datasets."""
        ...

    def lead(self, led: LedRun, copies: Sequence[Copy]) -> LeadWork:
        """Return the asking side of a run that this node leads; `copies` as for `party`."""
        ...


Kinds = Mapping[str, StepKind]
