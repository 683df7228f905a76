"""From an order's content to what may leave: worker, measured facts, privacy and profile, egress policy.

Everything here happens outside the app's process, on whatever it returned (secure-aggregation.md section 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content, read_blob
from comity_node.context import NodeContext
from comity_node.training import blobs, enforcement
from comity_node.training.blobs import Blob
from comity_node.training.kinds import Measures
from comity_node.training.needs import Need
from comity_node.training.people import OrderReviews
from comity_node.training.profiles.base import (
    AggregationProfile,
    Asked,
    Kept,
    Outgoing,
    Profiles,
    Protected,
    profile_of,
)
from comity_node.training.workshop import Station, Workshop
from comity_policies.documents import Agreement, OrderHeader

# A worker that dies is started again this often for one order; then the fault is the app's, not chance.
ATTEMPTS_MAX = 3
METRIC_NAMES_MAX = 1_000


@dataclass(slots=True)
class Job:
    """One order to run. `asked` belongs to the caller; `released_bytes` is set to what leaves, before sealing;
    `cohort` to the records behind it.

    `awaited` tells the lead whom the result waits for.
    """

    agreement: Agreement
    order: OrderHeader
    order_digest: str
    asked: Blob
    own: bool
    awaited: Callable[[ComityError], Awaitable[None]]
    released_bytes: int = 0
    cohort: int = field(default=0, repr=False)


class Execution:
    """Runs jobs."""

    def __init__(self, node: NodeContext, workshop: Workshop, profiles: Profiles, reviews: OrderReviews) -> None:
        self._reviews = reviews
        self._node = node
        self._workshop = workshop
        self._profiles = profiles

    def profile_of(self, agreement: Agreement) -> AggregationProfile:
        """Return the profile that the terms ask for. Raises `UNSUPPORTED`."""
        return profile_of(self._profiles, agreement)

    async def run(self, job: Job) -> tuple[Blob, Protected]:
        """Run one order and return the result with its protected form; the caller closes the blob.

        Raises:
            ComityError: `APP_INVALID`, `APP_FAILED`, `APP_SILENT`, `WORKER_DIED`, `WORKER_TIMEOUT`, `REPLY_SHAPE`,
                `REPLY_TOO_LARGE`, `DATASET_*`, `ISOLATION_TOO_WEAK`, `EGRESS_DENIED`, `POLICY_*`, the profile's own.
        """
        agreement, order = job.agreement, job.order
        profile = self.profile_of(agreement)
        profile.refuse(agreement, order)
        step = enforcement.step_of(agreement, order)
        station = await self._workshop.station(order.run, agreement, step)
        kept = await profile.begin(Asked(agreement, order, job.order_digest, job.asked))
        try:
            return await self._let_out(job, profile, station, kept, step.reply_timeout_s)
        except ComityError as error:
            await profile.end(job.order_digest, error)
            raise

    async def _let_out(
        self, job: Job, profile: AggregationProfile, station: Station, kept: Kept | None, timeout_s: int
    ) -> tuple[Blob, Protected]:
        """Make the result, unless it is there already, and let it out if the policy does."""
        result = kept.result if kept is not None else await self._call(job, station.worker, timeout_s)
        try:
            own = station.worker.facts(job.order_digest) if isinstance(station.worker, Measures) else None
            agreement, order = job.agreement, job.order
            cohort = station.cohort if own is None else int(own["cohort"])
            outgoing = Outgoing(agreement, order, job.order_digest, job.asked, result, cohort, job.own)
            measured = kept.measured if kept is not None else await profile.measure(outgoing)
            if own is not None:
                measured = replace(measured, noise=bool(own["noise"]), facts={**(measured.facts or {}), **own})
            done = {"aggregation": profile.name, "clipped": measured.clipped, "noise": measured.noise, "cohort": cohort}
            facts, need = await asyncio.to_thread(self._judge, job, result, done, measured.facts)
            if need is not None:
                await self._ask_people(job, result, facts, need)
            job.released_bytes, job.cohort = int(facts["size_bytes"]), int(facts["cohort"])
            return result, await profile.protect(outgoing, measured)
        except BaseException:  # also a cancelled caller leaves no blob
            result.close()
            raise

    async def _ask_people(self, job: Job, result: Blob, facts: dict[str, Any], need: Need) -> None:
        """Hold a result until the people who have to look at it let it out. Raises `EGRESS_DENIED`, `BUSY`."""
        shown = {**facts, "sha256": await blobs.sha256_of(result)}
        error = await self._reviews.ask_egress(job.agreement, job.order, job.order_digest, shown, need)
        if error is not None:
            await job.awaited(error)
            await self._reviews.wait_egress(job.order, job.order_digest)

    def _judge(
        self, job: Job, result: Blob, done: dict[str, Any], measured: dict[str, Any] | None
    ) -> tuple[dict[str, Any], Need | None]:
        """Complete the facts of a result, from its bytes unless they were measured, and ask whether it may leave."""
        node = self._node
        me, now = node.settings.org, instants.to_text(node.clock())
        facts = done | (_facts(result) if measured is None else measured)
        looks = self._reviews.looks()
        return facts, enforcement.check_egress(job.agreement, job.order, facts, me, now, node.policy.decide, looks)

    async def _call(self, job: Job, worker: Any, timeout_s: int) -> Blob:
        order, limits = job.order, self._node.settings.limits
        header = {"id": job.order_digest, "type": order.message_type, "group": str(order.round), "seq": order.seq}
        left_s = (instants.parse(order.reply_by) - self._node.clock()).total_seconds()
        deadline_s = max(1.0, min(float(timeout_s), left_s))
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                reply = await worker.call(header, job.asked.fd, job.asked.size, deadline_s, limits.reply_bytes_max)
                return Blob(reply.fd, reply.size)
            except ComityError as error:
                if error.code is not ErrorCode.WORKER_DIED or attempt == ATTEMPTS_MAX:
                    raise
        raise AssertionError("the loop returns or raises")


def _facts(result: Blob) -> dict[str, Any]:
    """Measure a result: what kind it is, how large, which metrics. Raises `REPLY_SHAPE`, `APP_FAILED`."""
    with memory.mapped(result.fd, result.size) as view:
        content = read_blob(view)
        facts = _facts_of(content) | {"size_bytes": result.size}
        failed = content.error is not None
        del content
    if failed:
        raise ComityError(ErrorCode.APP_FAILED, "the app answered with an error; its text stays here")
    return facts


def _facts_of(content: Content) -> dict[str, Any]:
    names = sorted({name for record in content.metrics.values() for name in record})
    if len(names) > METRIC_NAMES_MAX:
        raise ComityError(ErrorCode.REPLY_SHAPE, "too many metrics", limit=METRIC_NAMES_MAX)
    texts = any(
        isinstance(value, str | bytes | list) for record in content.configs.values() for value in record.values()
    )
    opaque = any(entry.stype != "numpy.ndarray" for entry in content.entries)
    # Free text, bytes and arrays that nobody here can read may hold anything, rows included.
    kind = "record" if texts or opaque else "model" if content.entries else "statistic"
    return {"kind": kind, "metrics": names}
