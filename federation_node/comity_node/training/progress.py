"""What the coordinator hears while a run is under way: the round, at most once a second. No metrics."""

from __future__ import annotations

import asyncio

import structlog

from comity.wire.errors import ComityError
from comity_crypto.statements import sign_statement
from comity_node.context import NodeContext
from comity_node.training.led import LedRun
from comity_node.training.tables import RUNNING

INTERVAL_S = 1.0

log = structlog.get_logger("comity.node.training")


class ProgressTeller:
    """Sends `run.progress`, the newest round only, in a task of its own."""

    def __init__(self, node: NodeContext, led: LedRun) -> None:
        self._node = node
        self._led = led
        self._round = -1
        self._told = -1
        self._task: asyncio.Task[None] | None = None

    def tell(self, round_no: int) -> None:
        """Note the round that the app is in."""
        self._round = round_no
        if self._round != self._told and self._task is None:
            self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; what was not told is told by the run's end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._told != self._round:
                self._told = self._round
                await self._send(self._told)
                await asyncio.sleep(INTERVAL_S)
        except ComityError as error:
            log.warning("progress.lost", run=self._led.run, error=str(error))
        finally:
            self._task = None

    async def _send(self, round_no: int) -> None:
        led, settings = self._led, self._node.settings
        rounds = led.step.most_rounds
        body = {
            "run": led.run,
            "round": min(round_no, rounds),
            "rounds": rounds,
            "state": RUNNING,
            "digest": led.digest,
        }
        statement = sign_statement(
            self._node.keys, kind="progress", consortium=settings.consortium, issuer=led.me, body=body
        )
        await self._node.journal.run(lambda conn: self._node.link.send(conn, "run.progress", statement, run=led.run))
