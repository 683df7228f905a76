"""A question at its lead while it waits for answers, and where its collector puts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_node.training.blobs import SealedBlob
from comity_node.training.profiles.base import Collector, Delivery, Question
from comity_policies.documents import OrderHeader

DISPATCH = "dispatch"
# Trouble on the way, not with the reply: it comes again.
ON_THE_WAY = frozenset(
    {
        ErrorCode.PAYLOAD_MISSING,
        ErrorCode.PAYLOAD_TRUNCATED,
        ErrorCode.PAYLOAD_DIGEST,
        ErrorCode.UNAVAILABLE,
        ErrorCode.TIMEOUT,
        ErrorCode.BUSY,
        ErrorCode.JOURNAL_UNWRITABLE,
    }
)


@dataclass(slots=True)
class Open:
    """A question that waits for answers."""

    question: Question
    statement: Statement
    sealed: SealedBlob
    collector: Collector
    waiting: set[str]
    results: set[str] = field(default_factory=set)
    errors: dict[str, ComityError] = field(default_factory=dict)
    passing: dict[str, ComityError] = field(default_factory=dict)
    accepting: set[str] = field(default_factory=set)
    # Until when (`time.monotonic`) an organisation counts as waiting for its people, unless it says so again.
    reviewing: dict[str, float] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def order(self) -> OrderHeader:
        return self.question.order

    def refused_for_now(self, org: str, error: ComityError, lasts_s: float) -> bool:
        """Note why an organisation does not begin yet; it says so again within `lasts_s` if it stays so.

        Returns whether that is news: people may take days, and the order is repeated every few seconds.
        """
        before, self.passing[org] = self.passing.get(org), error
        if error.code is ErrorCode.REVIEW_NEEDED and error.facts.get("stage") == DISPATCH:
            self.reviewing[org] = time.monotonic() + lasts_s
        else:
            self.reviewing.pop(org, None)
        return before is None or before.to_json() != error.to_json()

    def passing_now(self) -> dict[str, ComityError]:
        """Return why organisations that are awaited do not begin, as far as they said so lately."""
        now = time.monotonic()
        return {
            org: why
            for org, why in sorted(self.passing.items())
            if org in self.waiting and now < self.reviewing.get(org, float("inf"))
        }


@dataclass(frozen=True, slots=True)
class OpenSink:
    """Puts a collector's answers into its question while that is open. `tell` and `accuse` are for watchers."""

    find: Callable[[], Open | None]
    put: Callable[[Open, list[Delivery]], Awaitable[None]]
    drop: Callable[[Open, str, str, ComityError], Awaitable[None]]
    tell: Callable[[ComityError], None]
    accuse: Callable[[Sequence[str]], None]

    async def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand answers to the app; the blobs belong to the sink."""
        found = self.find()
        if found is not None:
            await self.put(found, deliveries)
            return
        for delivery in deliveries:
            delivery.blob.close()

    async def fail(self, org: str, error: ComityError) -> None:
        """Go on without an organisation's answer, if it is still awaited."""
        found = self.find()
        if found is not None:
            await self.drop(found, org, "failed", error)

    def waiting(self, error: ComityError) -> None:
        """Tell who is watching that something is tried again."""
        self.tell(error)

    def suspect(self, orgs: Sequence[str]) -> None:
        """Tell who is watching whose share did not fit."""
        self.accuse(orgs)

    def reviewing(self) -> frozenset[str]:
        """Return the organisations whose people have to decide before they begin."""
        found, now = self.find(), time.monotonic()
        if found is None:
            return frozenset()
        return frozenset(org for org, until in found.reviewing.items() if org in found.waiting and now < until)
