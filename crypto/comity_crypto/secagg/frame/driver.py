"""Runs one of the pure machines: events in order, outputs in order, jobs beside them, the clock. No network, no disk.

1. Events are taken one at a time, outputs performed one after the other; a job's result comes back as an event.
2. An event that the machine refuses is reported and changes nothing.
3. A driver that ends, well or badly, ends its jobs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, Protocol, TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Event, Failed, Finished, Output, Tick, WorkFailed

EVENTS_WAITING_MAX = 4_096


class Timed(Protocol):
    """A machine's state, as far as the clock is concerned."""

    @property
    def deadline(self) -> float:
        """When the machine wants a `Tick`, in seconds of the monotonic clock."""
        ...


S = TypeVar("S", bound=Timed)


class Driver(Generic[S]):
    """One machine at work. `tell` it events from the loop; `run` it once."""

    def __init__(
        self,
        state: S,
        step: Callable[[S, Event, float], tuple[S, list[Output]]],
        perform: Callable[[Output], Awaitable[None]],
        refused: Callable[[ComityError], None],
    ) -> None:
        """Take a started machine.

        Args:
            step: the machine's `step`.
            perform: does one output; quick, or hands what takes long to `work`. A `ComityError` fails the session.
            refused: hears of events that the machine refused.
        """
        self.state = state
        self._step = step
        self._perform = perform
        self._refused = refused
        self._events: asyncio.Queue[Event] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._jobs: set[asyncio.Task[None]] = set()

    def tell(self, event: Event) -> None:
        """Put an event in line; beyond the bound it is refused: its sender repeats it."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self._refused(ComityError(ErrorCode.BUSY, "too many messages of a secure sum wait"))

    def work(self, job: Awaitable[Event]) -> None:
        """Run a job; its result, or `WorkFailed`, becomes an event."""
        task = asyncio.ensure_future(self._job(job))
        self._jobs.add(task)

        def over(done: asyncio.Task[None]) -> None:
            self._jobs.discard(done)
            if isinstance(job, Coroutine):
                job.close()  # a session that ended first has never begun it

        task.add_done_callback(over)

    async def run(self, outputs: list[Output]) -> Finished | Failed:
        """Perform the first outputs, then work to the session's end and return it."""
        try:
            ended = await self._perform_all(outputs)
            while ended is None:  # bounded by the machine's deadlines
                event = await self._next()
                try:
                    self.state, outputs = self._step(self.state, event, time.monotonic())
                except ComityError as error:
                    self._refused(error)
                    continue
                ended = await self._perform_all(outputs)
            return ended
        finally:
            for task in self._jobs:
                task.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)

    async def _next(self) -> Event:
        left_s = self.state.deadline - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    async def _perform_all(self, outputs: list[Output]) -> Finished | Failed | None:
        """Perform outputs in order; returns the one that ends the session, if it is among them."""
        ended: Finished | Failed | None = None
        for output in outputs:
            try:
                await self._perform(output)
            except ComityError as error:
                if ended is None and not isinstance(output, Finished | Failed):
                    self.tell(WorkFailed(error))
                    return None
                raise
            if isinstance(output, Finished | Failed):
                ended = output
        return ended

    async def _job(self, job: Awaitable[Event]) -> None:
        try:
            event = await job
        except ComityError as error:
            event = WorkFailed(error)
        except OSError as error:
            event = WorkFailed(ComityError(ErrorCode.INTERNAL, f"a file of a secure sum: {type(error).__name__}"))
        self.tell(event)
