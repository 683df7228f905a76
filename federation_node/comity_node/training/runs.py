"""Runs at this node: prepare, start, cancel, close, and take up again after a restart.

Rules:
1. A run is prepared only for an agreement that this organisation holds, with its own id, lead and parties: the
   coordinator chooses when, never what.
2. `run.ready` goes out once data and worker are there; until then preparing is tried again, and watchers see why.
3. A run whose row says RUNNING is taken up by its lead at every start of the node.
4. A closed run's payloads, data copies and questions are dropped; orders, receipts, events and results stay.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from sqlalchemy import Connection

from comity.wire import catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_node.context import NodeContext
from comity_node.training import enforcement, store, sum_proofs
from comity_node.training.answers import AnswerBook
from comity_node.training.behind import WriteBehind
from comity_node.training.closing import Closing
from comity_node.training.events import RunEvents
from comity_node.training.intake import trusting
from comity_node.training.lead import RunHost
from comity_node.training.led import LedRun
from comity_node.training.participant import Participant
from comity_node.training.ports import FINAL, Agreements
from comity_node.training.profiles.base import Profiles, profile_name, profile_of
from comity_node.training.receipts import ReceiptBook
from comity_node.training.results import Results
from comity_node.training.tables import CANCELLED, FAILED, PREPARING, READY, RUNNING, RunRow
from comity_node.training.workshop import Workshop
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, Step

LEAD_TRIED_MAX = 300
PREPARE_AGAIN_S = 10.0

log = structlog.get_logger("comity.node.training")


class Runs:
    """Every run that this node knows. The `on_*` methods are the link's handlers."""

    def __init__(
        self,
        node: NodeContext,
        agreements: Agreements,
        workshop: Workshop,
        participant: Participant,
        profiles: Profiles,
        receipts: ReceiptBook,
        behind: WriteBehind,
        events: RunEvents,
        finals: Results,
    ) -> None:
        self._node = node
        self._agreements = agreements
        self._workshop = workshop
        self._participant = participant
        self._profiles = profiles
        self._receipts = receipts
        self._behind = behind
        self._events = events
        self._finals = finals
        self._hosts: dict[str, RunHost] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = Closing(node, events)
        self._trust = trusting(node)

    async def start(self) -> None:
        """Take up what the journal says is unfinished."""
        await self._closing.start()
        for row in await self._node.journal.run(lambda conn: store.list_runs(conn, closed=False)):
            if row.ended_at is not None:
                continue
            if row.state == RUNNING and row.lead == self._node.settings.org:
                self._work(self._lead, row)
            else:
                self._work(self._prepare, row)

    async def stop(self) -> None:
        """End every task; runs stay open in the journal."""
        await self._closing.stop()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def host(self, run: str) -> RunHost | None:
        """Return the host of a run that this node leads now."""
        return self._hosts.get(run)

    @property
    def hosts(self) -> list[RunHost]:
        """All runs that this node leads now."""
        return list(self._hosts.values())

    def profile_name(self, conn: Connection, run: str) -> str:
        """Return the aggregation profile of a run, "" if it is unknown here."""
        row = store.find_run(conn, run)
        if row is None:
            return ""
        return profile_name(self._profiles, self._agreements.find(conn, row.agreement).agreement)

    async def on_prepare(self, message: Message) -> None:
        """Take note of a run and get ready for it. Raises `AGREEMENT_*`, `ORDER_MISMATCH`."""
        body = message.document()
        run, digest = str(body.get("run")), str(body.get("agreement"))
        now = self._now()

        def write(conn: Connection) -> RunRow:
            stored = self._agreements.find(conn, digest)
            agreement = stored.agreement
            if stored.state != FINAL:
                raise ComityError(ErrorCode.AGREEMENT_INVALID, "it is not in force here")
            lead = str(body.get("lead"))
            parties = body.get("parties")
            if run not in enforcement.run_ids(agreement, digest) or parties != list(agreement.parties):
                raise ComityError(ErrorCode.ORDER_MISMATCH, "the run is not one of the agreement's", field="run")
            _step_of(agreement, lead)
            store.put_run(conn, RunRow.known(run, agreement, lead, now))
            found = store.find_run(conn, run)
            assert found is not None, "it was just written"
            return found

        row = await self._node.journal.run(write)
        if row.state == PREPARING and row.ended_at is None:
            self._events.tell(run, "state", state=PREPARING)
            self._work(self._prepare, row)

    async def on_start(self, message: Message) -> None:
        """Start leading a run: everybody is ready. Raises `NOT_FOUND`, `ORDER_NOT_LEAD`."""
        run = str(message.document().get("run"))

        def write(conn: Connection) -> RunRow:
            row = store.find_run(conn, run)
            if row is None:
                raise ComityError(ErrorCode.NOT_FOUND, "no such run here", run=run[:64])
            if row.lead != self._node.settings.org:
                raise ComityError(ErrorCode.ORDER_NOT_LEAD, lead=row.lead)
            if row.ended_at is None and row.state != RUNNING:
                store.change_run(conn, run, state=RUNNING)
            return row

        row = await self._node.journal.run(write)
        if row.ended_at is None and run not in self._hosts:
            self._work(self._lead, row)

    async def on_cancel(self, message: Message) -> None:
        """Stop a run. The coordinator may always stop one, never steer it."""
        body = message.document()
        run = str(body.get("run"))
        code, detail = str(body.get("code", ErrorCode.RUN_CANCELLED)), str(body.get("reason", ""))
        await self.cancel(run, ComityError.from_json({"code": code, "detail": detail, "facts": {}}), told=True)

    async def cancel(self, run: str, error: ComityError, *, told: bool = False) -> None:
        """Stop a run here and, if this node leads it, tell everyone how it ended; `told`: the coordinator knows."""
        host = self._hosts.get(run)
        await self._stop_work(run)
        await self._participant.cancel(run)
        await self._forget_sums(run)
        await self._workshop.close(run)
        if host is None and not told:
            host = await self._waiting_host(run)
        # Who was too late failed; everything else was called off.
        state = FAILED if told and error.code is ErrorCode.TIMEOUT else CANCELLED
        if host is not None:
            await (host.fail(error) if state == FAILED else host.cancel(error))
            return

        def write(conn: Connection) -> bool:
            row = store.find_run(conn, run)
            if row is None or row.ended_at is not None:
                return False
            text = json.dumps(error.to_json())
            store.change_run(conn, run, state=state, ended_at=self._now(), error=text)
            self._participant.reviews.end_of_run(conn, run)
            return True

        if await self._node.journal.run(write):
            self._events.tell(run, "ended", state=state, error=error.to_json())

    async def on_closed(self, message: Message) -> None:
        """Close a run once its end is on the ledger: free what it held. Raises `SIGNATURE_INVALID`."""
        charter = self._node.charters.current()
        statement = Statement.from_json(message.document().get("statement"))
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        verify_statement(
            statement, charter.log_public_key, kind="run-closed", consortium=self._node.settings.consortium
        )
        run, state = str(statement.body.get("run")), str(statement.body.get("state"))
        host = self._tasks.get(run)
        if host is not None and run in self._hosts:
            await asyncio.wait({host}, timeout=PREPARE_AGAIN_S)  # it is sending the result, or was overruled
        await self._stop_work(run)
        await self._participant.cancel(run)
        await self._forget_sums(run)
        await self._receipts.flush()
        await self._behind.flush()

        def write(conn: Connection) -> list[str]:
            row = store.find_run(conn, run)
            if row is None:
                return []
            self._node.ledger.expect(conn, statement)
            ended = {} if row.ended_at else {"ended_at": self._now(), "state": state}
            store.change_run(conn, run, closed=True, **ended)
            sum_proofs.send(conn, self._node, run)
            files = store.files_of(conn, run)
            store.forget_work(conn, run)
            self._participant.reviews.end_of_run(conn, run)
            return files

        files = await self._node.journal.run(write)
        for name in files:
            await asyncio.to_thread((self._node.settings.payloads_folder / name).unlink, missing_ok=True)
        await self._workshop.forget(run)
        self._closing.begin(run, state)

    # -- work

    def _work(self, work: Callable[[RunRow], Awaitable[None]], row: RunRow) -> None:
        """Run one task a run; a run that is being prepared or led is not begun twice."""
        run = row.run
        task = asyncio.create_task(self._guarded(work, row, self._tasks.get(run)))
        self._tasks[run] = task
        task.add_done_callback(lambda done: self._tasks.pop(run, None) if self._tasks.get(run) is done else None)

    async def _guarded(
        self, work: Callable[[RunRow], Awaitable[None]], row: RunRow, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await work(row)
        except ComityError as error:
            log.error("run.failed", run=row.run, error=str(error))
        except Exception as error:  # one run's defect must not end the node; its deadline at the barrier ends it
            log.error("run.failed", run=row.run, exc_info=error)

    async def _forget_sums(self, run: str) -> None:
        for profile in self._profiles.values():
            await profile.forget(run)

    async def _stop_work(self, run: str) -> None:
        task = self._tasks.pop(run, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _prepare(self, row: RunRow) -> None:
        """Copy the data, start the worker, say that we are ready; tried again until the run ends."""
        run = row.run
        while True:  # bounded by the coordinator's barrier, whose end cancels this task
            try:
                stored = await self._node.journal.run(lambda conn: self._agreements.find(conn, row.agreement))
                await self._node.ledger.wait_final(self._node.journal, partial(self._trust, stored=stored))
                await profile_of(self._profiles, stored.agreement).prepare(stored.agreement)
                await self._workshop.station(run, stored.agreement, _step_of(stored.agreement, row.lead))
                break
            except ComityError as error:
                log.error("run.unready", run=run, error=str(error))
                self._events.tell(run, "unready", error=error.to_json())
            await asyncio.sleep(PREPARE_AGAIN_S)
        settings = self._node.settings
        body = {"run": run, "agreement": row.agreement}
        statement = sign_statement(
            self._node.keys, kind="ready", consortium=settings.consortium, issuer=settings.org, body=body
        )

        def write(conn: Connection) -> bool:
            found = store.find_run(conn, run)
            if found is None or found.state != PREPARING or found.ended_at is not None:
                return False
            store.change_run(conn, run, state=READY)
            self._node.link.send(conn, "run.ready", statement, run=run)
            return True

        if await self._node.journal.run(write):
            self._events.tell(run, "state", state=READY)

    async def _lead(self, row: RunRow) -> None:
        """Lead a run to its end. What goes wrong here ends it by name: nobody waits for a lead that gave up."""
        for _ in range(LEAD_TRIED_MAX):
            host = self._hosts[row.run] = await self._host_of(row)
            try:
                await host.run()
                return
            except ComityError as error:
                log.error("run.lead", run=row.run, error=str(error))
                failure = error
                if catalog.row(error.code).retry:
                    await asyncio.sleep(PREPARE_AGAIN_S)
                    continue
            except Exception as error:  # a defect of ours ends this run, not the node, and not in silence
                log.error("run.lead", run=row.run, exc_info=error)
                failure = ComityError(ErrorCode.INTERNAL, "the lead's node failed inside")
            finally:
                del self._hosts[row.run]
            break
        await host.fail(failure)

    async def _waiting_host(self, run: str) -> RunHost | None:
        """Return a host for a run of ours that never started: the others wait at its barrier until they are told."""
        row = await self._node.journal.run(lambda conn: store.find_run(conn, run))
        if row is None or row.ended_at is not None or row.lead != self._node.settings.org:
            return None
        return await self._host_of(row)

    async def _host_of(self, row: RunRow) -> RunHost:
        """Return a new host for a run of ours. Raises `UNSUPPORTED` if its profile is not here."""
        stored = await self._node.journal.run(lambda conn: self._agreements.find(conn, row.agreement))
        agreement = stored.agreement
        led = LedRun(row.run, agreement, _step_of(agreement, row.lead), self._node.settings.org, row.agreement)
        profile = profile_of(self._profiles, agreement)
        book = AnswerBook(self._node, row.run, self._behind, self._events, profile.confirmed)
        return RunHost(self._node, led, self._workshop, self._participant, profile, book, self._finals)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def _step_of(agreement: Agreement, lead: str) -> Step:
    """Return the step that `lead` leads. Raises `ORDER_NOT_LEAD`."""
    for step in agreement.proposal.steps:
        if step.lead == lead:
            return step
    raise ComityError(ErrorCode.ORDER_NOT_LEAD, lead=lead)
