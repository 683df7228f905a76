"""The lead's side of an intersection: called like the process of a ServerApp, and no process.

The rules stand in `model.py`; nothing is kept here. A lead that was restarted asks again from the top: its own set has
the same points, so the recorded answers fit, and the journal gives them back without asking anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content, Record
from comity_agents.flower.events import Ask, Event, Failed, Finished, Progress
from comity_crypto.psi.messages import Kind, Message
from comity_node.intersections import model
from comity_node.intersections.carried import carried, carry
from comity_node.intersections.own import OwnSide, ascending_points
from comity_node.training.led import LedRun
from comity_policies.documents import IntersectStep

MASK, COMPARE = "query.mask", "query.compare"
# What the result is called among metrics.
COMMON = "common"
# Two answers to the first question, one to the second; what comes beyond is dropped with the run.
_HEARD_MAX = 8

KeepRows = Callable[[tuple[int, ...]], Awaitable[None]]


class AskerOfIntersection:
    """One run at its lead. `keep_rows` keeps the own records behind matching places, on this node alone."""

    def __init__(self, led: LedRun, step: IntersectStep, side: OwnSide, keep_rows: KeepRows) -> None:
        self._led = led
        self._step = step
        self._side = side
        self._keep_rows = keep_rows
        self._heard: asyncio.Queue[model.Event] = asyncio.Queue(_HEARD_MAX)

    async def start(self) -> None:
        """Begin from the top."""
        self._heard = asyncio.Queue(_HEARD_MAX)

    async def close(self) -> None:
        """Nothing is held."""

    async def events(self) -> AsyncIterator[Event]:
        """Ask, compare, finish. Raises what the own side raises; a bad answer of the partner's ends in `Failed`."""
        lead = model.Lead(self._step.mode)
        yield self._ask(model.ASK_SEQ, MASK, (self._step.lead, self._step.partner), Message(Kind.ASK).to_bytes())
        while True:  # bounded: three answers, then a result or a failure
            event = await self._heard.get()
            try:
                lead, effect = await asyncio.to_thread(model.step, lead, event)
                if isinstance(effect, model.Double):
                    points = await asyncio.to_thread(ascending_points, await self._side.doubled(effect.points))
                    lead, effect = model.step(lead, model.Doubled(points))
                if isinstance(effect, model.Finish) and effect.places is not None:
                    await self._keep_rows(effect.places)
            except ComityError as error:
                if error.code is ErrorCode.WORKER_DIED:
                    raise  # ours: the host begins again from the top
                effect = model.Fail(self._blamed(error, event))
            if isinstance(effect, model.Compare):
                yield self._ask(model.COMPARE_SEQ, COMPARE, (self._step.partner,), effect.data)
            elif isinstance(effect, model.Fail):
                yield Failed(effect.error)
                return
            elif isinstance(effect, model.Finish):
                yield Progress(1, 1, "server", {COMMON: effect.common})
                yield _finished(effect.common)
                return

    async def send_reply(
        self, seq: int, src: int, fd: int | None = None, size: int = 0, error: ComityError | None = None
    ) -> None:
        """Take one answer. Raises `WORKER_DIED` if more comes than was asked for."""
        try:
            self._heard.put_nowait(self._event(seq, self._led.node_ids[src], fd, size, error))
        except asyncio.QueueFull:
            raise ComityError(ErrorCode.WORKER_DIED, "more answers than questions") from None

    def _blamed(self, error: ComityError, event: model.Event) -> ComityError:
        """Name the organisation whose answer could not be used."""
        org = self._step.lead if isinstance(event, model.Masked) and event.own else self._step.partner
        return ComityError(error.code, f"{org}: {error.detail}", **{**error.facts, "org": org})

    def _event(self, seq: int, org: str, fd: int | None, size: int, error: ComityError | None) -> model.Event:
        if error is not None or fd is None:
            return model.Lost(error or ComityError(ErrorCode.APP_SILENT))
        try:
            data = carried(fd, size)
        except ComityError as refusal:
            return model.Lost(refusal)
        return model.Compared(data) if seq == model.COMPARE_SEQ else model.Masked(data, org == self._step.lead)

    def _ask(self, seq: int, word: str, orgs: tuple[str, ...], data: bytes) -> Ask:
        nodes = tuple(sorted(self._led.node_id(org) for org in orgs))
        timeout_s = float(self._step.reply_timeout_s)
        return Ask(seq, nodes, word, str(seq), timeout_s, None, *carry(data))


def _finished(common: int) -> Finished:
    content = Content((Record("intersection", "metric", ((COMMON, common),)),))
    return Finished("strategy", 2, (), {}, *memory.write_parts(content.parts()))
