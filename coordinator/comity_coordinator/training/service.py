"""Runs as they happen: preparation, start barrier, the lead's progress and end, receipts, the closing entry.

Rules, in this order:
1. a message is judged whole (form, membership, signature, run, state), and one that is refused leaves nothing behind;
2. state, ledger entry and messages to others commit together;
3. the coordinator gives no orders and sees no results: it knows states, counts, digests and times;
4. every run ends in one `run-closed` statement, which names how it ended and how many receipts came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import inbound
from comity_coordinator.db import after_commit
from comity_coordinator.feed import Feed
from comity_coordinator.inbound import CharterOf, Outbox, Signer
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.training import model, store, totals
from comity_coordinator.training.endings import finished_event
from comity_coordinator.training.model import Event, Run, RunState
from comity_coordinator.training.receipts import enter_receipt
from comity_coordinator.transport.model import Message
from comity_coordinator.workflows.engine import WorkflowEngine
from comity_crypto.statements import Statement
from comity_policies import sums
from comity_policies.documents import Agreement, Receipt, run_id
from comity_policies.orders import ROUNDS_MAX, SumProof

RECEIPTS_PER_BATCH_MAX = 64
SMALL_BYTES_MAX = 16 << 10
FINISHED_BYTES_MAX = 512 << 10
# Train and evaluate in every round, each at its limit, and once more for what has to be asked again.
LIMIT_FACTOR = 3
LIMIT_SLACK_S = 600
LIMIT_S_MAX = 90 * 86_400


class TrainingService:
    """The use cases of runs; `register` puts them on the hub."""

    def __init__(
        self,
        *,
        charter_of: CharterOf,
        ledger: Ledger,
        outbox: Outbox,
        sign: Signer,
        engine: WorkflowEngine,
        feed: Feed,
        clock: Callable[[], str] = instants.now_text,
        expect_sums: Callable[[], None] = lambda: None,
    ) -> None:
        """`expect_sums` is called, in any thread, when a run begins whose updates will be summed here."""
        self._expect_sums = expect_sums
        self._charter_of = charter_of
        self._ledger = ledger
        self._outbox = outbox
        self._sign = sign
        self._engine = engine
        self._feed = feed
        self._clock = clock

    def register(self) -> None:
        """Take the message kinds of training."""
        self._outbox.register("run.ready", self.ready)
        self._outbox.register("run.progress", self.progress)
        self._outbox.register("run.finished", self.finished)
        self._outbox.register("receipts", self.receipts)
        self._outbox.register("sum-proofs", self.sum_proofs)

    def parties_of(self, conn: Connection, run: str) -> frozenset[str]:
        """Return who may exchange messages of `run`; empty if there is no such run."""
        found = store.get(conn, run)
        return frozenset(found.parties) if found else frozenset()

    # What negotiation calls (`negotiation.service.Agreements`).

    def agreement_final(self, conn: Connection, agreement: Agreement) -> None:
        """Start the first run of an agreement that starts by itself."""
        if agreement.proposal.start == "auto":
            self.create_run(conn, agreement, 1)

    def agreement_withdrawn(self, conn: Connection, agreement: str, org: str, reason: str) -> None:
        """Cancel what is under way."""
        event = model.Cancelled(ErrorCode.WITHDRAWN, f"{org} withdrew: {reason}", org)
        for run in store.of_agreement(conn, agreement):
            self._apply(conn, run, event)

    def create_run(self, conn: Connection, agreement: Agreement, use: int) -> str:
        """Create the `use`-th run (from 1) and ask its parties to prepare; return its id.

        Raises:
            ComityError: `GRANT_EXHAUSTED` beyond the uses that were agreed.
        """
        proposal = agreement.proposal
        if not 1 <= use <= agreement.limits["uses"]:
            raise ComityError(ErrorCode.GRANT_EXHAUSTED, "the agreement has no such use", use=use)
        name = run_id(agreement.digest, use)
        if store.get(conn, name) is not None:
            return name
        work_s = sum(step.most_rounds * step.reply_timeout_s for step in proposal.steps)
        limit_s = min(LIMIT_S_MAX, LIMIT_FACTOR * work_s + LIMIT_SLACK_S)
        now, lead = self._clock(), proposal.steps[0].lead
        steps = tuple(step.id for step in proposal.steps)
        limits = agreement.limits
        run = model.create(name, agreement.digest, use, lead, agreement.parties, steps, limits, limit_s, now)
        store.create(conn, run, now)
        body = {"run": name, "agreement": agreement.digest, "lead": lead, "parties": list(run.parties)}
        for org in run.parties:
            self._outbox.enqueue(conn, org, "run.prepare", body, run=name)
        self._publish(conn, run)
        after_commit(conn, partial(self._engine.run_created, name))
        if agreement.terms.get("aggregation", "plain") != "plain":
            after_commit(conn, self._expect_sums)
        return name

    # Messages of nodes.

    def ready(self, conn: Connection, org: str, message: Message) -> None:
        """Take a party's word that it is ready; the last one starts the lead."""
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "ready", SMALL_BYTES_MAX)
        run = self._run(conn, inbound.body_of(said, "run", "agreement"))
        self._apply(conn, run, model.Ready(org), said)

    def progress(self, conn: Connection, org: str, message: Message) -> None:
        """Take the lead's report; it is shown, not kept in the ledger."""
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "progress", SMALL_BYTES_MAX)
        body = inbound.body_of(said, "run", "round", "rounds", "state", "digest")
        run = store.get(conn, inbound.text(body["run"], 64, "a run"))
        if run is None:
            raise ComityError(ErrorCode.NOT_FOUND, "there is no such run")
        done = inbound.count(body["round"], ROUNDS_MAX, "a round")
        self._apply(conn, run, model.Progressed(org, done, inbound.count(body["rounds"], ROUNDS_MAX, "rounds")))

    def finished(self, conn: Connection, org: str, message: Message) -> None:
        """Take the lead's statement about the run's end."""
        charter = inbound.charter(conn, self._charter_of)
        said = inbound.statement(charter, org, message, "run-finished", FINISHED_BYTES_MAX)
        body = inbound.body_of(
            said, "run", "agreement", "state", "error", "rounds", "result", "manifest", optional=("orders",)
        )
        run = self._run(conn, body)
        self._apply(conn, run, finished_event(org, body, run.parties, said.digest), said)

    def receipts(self, conn: Connection, org: str, message: Message) -> None:
        """Take a batch of signed receipts: all of it or none.

        Raises:
            ComityError: `TOO_LARGE` above 64 receipts; what the checks of each receipt raise.
        """
        charter = inbound.charter(conn, self._charter_of)
        body = message.document()
        if not isinstance(body, dict) or set(body) != {"receipts"} or not isinstance(body["receipts"], list):
            raise ComityError(ErrorCode.MALFORMED, "a batch of receipts is a list")
        if len(body["receipts"]) > RECEIPTS_PER_BATCH_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, receipts=len(body["receipts"]), limit=RECEIPTS_PER_BATCH_MAX)
        runs: dict[str, Run] = {}
        new: Counter[str] = Counter()
        for value in body["receipts"]:
            said = Statement.from_json(value)
            inbound.check(charter, org, said, "receipt")
            receipt = Receipt.from_json(said.body)
            if receipt.run not in runs:
                runs[receipt.run] = self._run(conn, said.body)
            run = runs[receipt.run]
            if enter_receipt(conn, run, org, receipt, said.digest):
                self._ledger.append(conn, said)
                new[run.run] += 1
        for name, count in new.items():
            self._apply(conn, runs[name], model.Received(org, count))

    def sum_proofs(self, conn: Connection, org: str, message: Message) -> None:
        """Take a batch of a lead's statements on sums: all of it or none.

        Raises:
            ComityError: `TOO_LARGE` above 64 statements; what the checks of each raise (`totals`).
        """
        charter = inbound.charter(conn, self._charter_of)
        body = message.document()
        if not isinstance(body, dict) or set(body) != {"proofs"} or not isinstance(body["proofs"], list):
            raise ComityError(ErrorCode.MALFORMED, "a batch of statements on sums is a list")
        if len(body["proofs"]) > totals.PER_BATCH_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, proofs=len(body["proofs"]), limit=totals.PER_BATCH_MAX)
        for value in body["proofs"]:
            said = Statement.from_json(value)
            inbound.check(charter, org, said, sums.KIND)
            proof = SumProof.from_json(said.body)
            if totals.enter_sum(conn, self._run(conn, said.body), org, proof, said.digest):
                self._ledger.append(conn, said)

    # What a workflow engine calls (`workflows.engine.Supervised`).

    def on_deadline(self, conn: Connection, subject_id: str) -> str | None:
        """Judge the deadline of a run; return the next one."""
        run = store.get(conn, subject_id)
        if run is not None and not run.closed:
            self._apply(conn, run, model.DeadlinePassed())
        return self.deadline_of(conn, subject_id)

    def deadline_of(self, conn: Connection, subject_id: str) -> str | None:
        """Return the deadline that a run waits for."""
        run = store.get(conn, subject_id)
        return run.until if run is not None and not run.closed else None

    def open_deadlines(self, conn: Connection) -> list[tuple[str, str]]:
        """Return (run, deadline) of all runs that are not closed."""
        return store.open_until(conn)

    # Inside.

    def _run(self, conn: Connection, body: dict[str, Any]) -> Run:
        run = store.get(conn, inbound.text(body["run"], 64, "a run"))
        if run is None:
            raise ComityError(ErrorCode.NOT_FOUND, "there is no such run")
        if body["agreement"] != run.agreement:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "the run belongs to another agreement")
        return run

    def _apply(self, conn: Connection, before: Run, event: Event, said: Statement | None = None) -> None:
        """Step the model; write and tell what changed."""
        after = model.step(before, event, self._clock())
        if after is before:
            return
        if said is not None:
            self._ledger.append(conn, said)
        store.save(conn, after)
        if after.state is RunState.READY and before.state is RunState.PREPARING:
            self._outbox.enqueue(conn, after.lead, "run.start", {"run": after.run}, run=after.run)
        if after.state in model.ENDINGS and before.state in model.ACTIVE and not after.finished:
            body = {"run": after.run, "reason": after.detail, "code": after.code}
            for org in after.parties:
                self._outbox.enqueue(conn, org, "run.cancel", body, run=after.run)
        if after.closed and not before.closed:
            self._close(conn, after)
        self._publish(conn, after)
        if (after.state, after.until, after.closed) != (before.state, before.until, before.closed):
            after_commit(conn, partial(self._engine.run_changed, after.run))

    def _close(self, conn: Connection, run: Run) -> None:
        body = {
            "run": run.run,
            "agreement": run.agreement,
            "state": str(run.state),
            "error": {"code": run.code, "detail": run.detail, "move": run.move} if run.code else None,
            "rounds": run.rounds,
            "finished": run.finished or None,
            "receipts": {org: run.received.get(org, 0) for org in run.parties},
        }
        said = self._sign("run-closed", body)
        self._ledger.append(conn, said, run.parties)
        for org in run.parties:
            self._outbox.enqueue(conn, org, "run.closed", {"statement": said.to_json()}, run=run.run)

    def _publish(self, conn: Connection, run: Run) -> None:
        event = {"kind": "run", "id": run.run, "state": str(run.state), "round": run.round, "closed": run.closed}
        after_commit(conn, partial(self._feed.publish, event))
