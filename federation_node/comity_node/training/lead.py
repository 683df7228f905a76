"""A run at its lead: the ServerApp's process, started again when it dies, and how the run ends.

Rules:
1. A process that dies is started anew and asks from the top; the desk answers from the journal what was answered
   before. `RESTARTS_MAX` deaths without a new question in between end the run.
2. An app that raises, falls silent or gets too few results ends the run `FAILED` with the catalogue's code.
3. A run ends once, in one transaction: state, result, manifest and `run.finished` together.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.observability import spans
from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import Ask, Failed, Finished, Progress
from comity_crypto.statements import sign_statement
from comity_node.context import NodeContext
from comity_node.observability import metrics
from comity_node.training import results, store
from comity_node.training.answers import AnswerBook
from comity_node.training.blobs import Blob
from comity_node.training.kinds import Answers, LeadWork
from comity_node.training.led import LedRun, manifest, orders_sent
from comity_node.training.participant import Participant
from comity_node.training.profiles.base import AggregationProfile
from comity_node.training.progress import ProgressTeller
from comity_node.training.questions import QuestionDesk
from comity_node.training.results import Results
from comity_node.training.tables import CANCELLED, COMPLETED, DIVERGED, FAILED, RUNNING, ResultRow
from comity_node.training.workshop import Workshop
from comity_policies.documents import Step, TrainStep

RESTARTS_MAX = 5
RESTART_PAUSE_S = 0.2
END_RETRY_S = 2.0
ENDS_TRIED_MAX = 300

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended; `content` (the final arrays) belongs to the holder."""

    state: str
    error: ComityError | None
    content: Blob | None


class RunHost:
    """Runs one ServerApp to its end. `run` once."""

    def __init__(
        self,
        node: NodeContext,
        led: LedRun,
        workshop: Workshop,
        participant: Participant,
        profile: AggregationProfile,
        book: AnswerBook,
        finals: Results,
    ) -> None:
        self._node = node
        self._led = led
        self._workshop = workshop
        self._book = book
        self._finals = finals
        self._turn = asyncio.Lock()
        self._process: LeadWork | None = None
        self._metrics: dict[tuple[int, int, str], dict[str, Any]] = {}
        self._progress = ProgressTeller(node, led)
        self.desk = QuestionDesk(node, led, participant, profile, book, self._answer)
        self.parties = frozenset(led.agreement.parties)

    async def run(self) -> None:
        """Run the app to its end and journal the ending. Cancelling leaves the run open for the next start."""
        keeper = asyncio.create_task(self.desk.keep_sending())
        try:
            await self._book.load()
            self._book.tell("state", state=RUNNING)
            ending = await self._to_its_end()
            await self._book.settled()
            await self._end(ending)
        finally:
            keeper.cancel()
            await self.desk.close()
            await self._progress.stop()
            if self._process is not None:
                await self._process.close()

    async def cancel(self, error: ComityError) -> None:
        """Journal that the run was cancelled; the caller has ended `run`."""
        await self._end(Ending(CANCELLED, error, None))

    async def fail(self, error: ComityError) -> None:
        """Journal that the run failed here; `run` has ended with `error`."""
        await self._end(Ending(FAILED, error, None))

    async def _to_its_end(self) -> Ending:
        deaths = 0
        while True:  # bounded by RESTARTS_MAX between two new questions, and those by the agreement's rounds
            live_before = self.desk.live_questions
            await self._book.settled()
            await self.desk.begin()
            try:
                return await self._once()
            except ComityError as error:
                if error.code is ErrorCode.RUN_DIVERGED:
                    return Ending(DIVERGED, error, None)
                if error.code not in (ErrorCode.WORKER_DIED, ErrorCode.JOURNAL_UNWRITABLE):
                    return Ending(FAILED, error, None)
                deaths = 1 if self.desk.live_questions > live_before else deaths + 1
                if deaths > RESTARTS_MAX:
                    return Ending(FAILED, error, None)
                log.warning("serverapp.again", run=self._led.run, error=str(error), deaths=deaths)
                self._book.tell("restart", error=error.to_json())
                await asyncio.sleep(RESTART_PAUSE_S * deaths)

    async def _once(self) -> Ending:
        """Run the app from the top; returns its ending. Raises `WORKER_DIED`, `RUN_DIVERGED`, `APP_INVALID`."""
        led = self._led
        limit = self._node.settings.limits.payload_bytes_max
        self._process = process = await self._workshop.asker(led, blob_bytes_max=limit)
        await process.start()
        async for event in process.events():
            if isinstance(event, Ask):
                metrics.ROUNDS.add()
                with spans.span("round", run=led.run, agreement=led.digest):
                    await self.desk.ask(event)
                self._progress.tell(self.desk.round)
            elif isinstance(event, Progress):
                self._heard(event)
            elif isinstance(event, Finished):
                content = None if event.fd is None else Blob(event.fd, event.size)
                return Ending(COMPLETED, None, content)
            elif isinstance(event, Failed):
                return Ending(FAILED, self.desk.verdict or event.error, None)
        raise ComityError(ErrorCode.WORKER_DIED, "the ServerApp ended without a word")

    def _heard(self, event: Progress) -> None:
        key = (event.phase, event.round, event.stage)
        if self._metrics.get(key) != event.metrics:
            self._metrics[key] = dict(event.metrics)
            self._book.tell("metrics", round=event.round, stage=event.stage, metrics=dict(event.metrics))

    async def _answer(self, seq: int, org: str, blob: Blob | None, error: ComityError | None) -> None:
        """Hand one answer to the app; one frame at a time."""
        process = self._process
        if process is None:
            raise ComityError(ErrorCode.WORKER_DIED, "the ServerApp does not run")
        async with self._turn:
            node_id = self._led.node_id(org)
            if blob is None:
                await process.send_reply(seq, node_id, error=error)
            else:
                await process.send_reply(seq, node_id, blob.fd, blob.size)

    async def _end(self, ending: Ending) -> None:
        """Journal the ending; a journal or disk that takes no writes is tried again, nothing is lost meanwhile."""
        for _ in range(ENDS_TRIED_MAX):
            try:
                await self._end_once(ending)
                break
            except ComityError as error:
                if error.code not in (ErrorCode.JOURNAL_UNWRITABLE, ErrorCode.SPOOL_FULL):
                    log.error("run.ending", run=self._led.run, error=str(error))
                    ending = Ending(FAILED, error, None)
                    continue
                await asyncio.sleep(END_RETRY_S)
        if ending.content is not None:
            ending.content.close()

    async def _end_once(self, ending: Ending) -> None:
        node, led = self._node, self._led

        def look(conn: Connection) -> tuple[list[dict[str, Any]], dict[str, int]]:
            questions = store.list_questions(conn, led.run)
            return manifest(questions, store.list_answers(conn, led.run)), orders_sent(questions)

        rows, orders = await node.journal.run(look)
        card = self._card(ending, rows)
        row: ResultRow | None = None
        named: dict[str, Any] | None = None
        if ending.content is not None:
            row = await self._finals.publish(led.run, led.agreement, ending.content, card)
            statement = json.loads(row.statement)
            payload = statement["content"]["body"]["payload"]
            named = {"digest": payload["digest"], "size": payload["size"]}
        error = None if ending.error is None else ending.error.to_json()
        body = {
            "run": led.run,
            "agreement": led.digest,
            "state": ending.state,
            "error": error,
            "rounds": self.desk.round or max((each["round"] for each in rows), default=0),
            "result": named,
            "manifest": rows,
            "orders": orders,
        }
        finished = sign_statement(
            node.keys, kind="run-finished", consortium=node.settings.consortium, issuer=led.me, body=body
        )
        ended_at = instants.to_text(node.clock())

        def write(conn: Connection) -> None:
            found = store.find_run(conn, led.run)
            if found is not None and found.ended_at is not None:
                return
            changed = {"state": ending.state, "ended_at": ended_at}
            texts = {"error": _text(error), "result": _text(named)}
            store.change_run(conn, led.run, **changed, **texts)
            if row is not None:
                results.owed(conn, row, results.recipients_of(led.agreement), led.me)
            node.link.send(conn, "run.finished", finished, run=led.run)

        await node.journal.run(write)
        self._book.tell("ended", state=ending.state, error=error, result=named)
        if row is not None:
            await self._finals.resend()

    def _card(self, ending: Ending, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the model card: what a recipient needs to know, metrics included."""
        led, proposal = self._led, self._led.agreement.proposal
        return {
            "run": led.run,
            "state": ending.state,
            "agreement": led.digest,
            **_work(led.step),
            **(self._process.card() if isinstance(self._process, Answers) else {}),
            "purpose": proposal.purpose,
            "title": proposal.title,
            "lead": led.me,
            "participants": sorted({org for row in rows for org in row["participants"]}),
            "rounds": self.desk.round,
            "manifest": rows,
            "metrics": [
                {"phase": phase, "round": number, "stage": stage, "metrics": metrics}
                for (phase, number, stage), metrics in sorted(self._metrics.items())
            ],
            "aggregation": str(led.agreement.terms.get("aggregation", "plain")),
            "privacy": led.agreement.terms.to_json().get("privacy"),
            "created_at": instants.to_text(self._node.clock()),
        }


def _work(step: Step) -> dict[str, Any]:
    """Return what a card says of the step itself."""
    if isinstance(step, TrainStep):
        app = step.app
        named = {"digest": app.digest, "name": app.name, "publisher": app.publisher, "version": app.version}
        return {"app": named, "run_config": dict(step.run_config)}
    return {"step": step.to_json()}


def _text(value: dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)
