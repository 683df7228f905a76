"""Receipts: what each order came to here, signed, in the journal with the order's end, sent on in batches.

A round never waits for them, nor for the proof that enough records stand behind a result (`cohorts`, about 25 ms): that
is made when the batch is sent, on a thread of its own, and the receipt signed anew with it. What has to be proved is in
the journal beside the receipt, so that a process that dies in between loses neither. Their number is the journal's own
count, so that a journal restored from a backup shows (architecture.md section 4). Durations are rounded up to a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog
from sqlalchemy import Connection

from comity.observability import scope, spans
from comity.wire import canonical
from comity.wire.errors import ComityError
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.training import store
from comity_policies import cohorts
from comity_policies.cohorts import Claim, Earlier
from comity_policies.documents import OrderHeader, Receipt
from comity_policies.orders import CohortProof, WeightCommitment

BATCH_MAX = 64
INTERVAL_S = 1.0
BATCHES_MAX = 1_000
# While rounds go on, proofs take their turn, one in a quarter of a second, which is a tenth of a core. When it is quiet
# they are made at once, and when more wait than these, so that a run's end finds little left to do.
PROOF_PAUSE_S, QUIET_S, PROOFS_WAITING_MAX = 0.25, 0.5, 8
RUNS_COMPARED_MAX = 256

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an order ended here. `result` is the digest of what left; `code` the catalogue code of anything else;
    `claim` is what the receipt will prove, `evidence` what it rests on (`attestation`), `weight` its
    commitment to what the result weighs in a secure sum; `opened` is what an opener says of the sum that the order's
    results went into.
    """

    outcome: str
    code: str | None
    result: str | None
    egress_bytes: int
    duration_s: float
    claim: Claim | None = None
    evidence: tuple[str, ...] | None = None
    weight: WeightCommitment | None = None
    opened: str | None = None


class ReceiptBook:
    """Writes receipts inside the caller's transaction and hands them to the link about once a second."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._written = -math.inf
        self._trace = ""  # of the order whose receipt was written last: a batch is a step of its trace
        # By run: the newest proof, for the next one. In memory only: what opens a commitment is never written down.
        self._shown: dict[str, Earlier] = {}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin sending, with what an earlier process left."""
        self._loop = asyncio.get_running_loop()
        self._wake.set()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; what is unsent stays in the journal."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def write(
        self,
        conn: Connection,
        order: OrderHeader,
        order_digest: str,
        outcome: Outcome,
        predicates: Mapping[str, bool],
    ) -> None:
        """Sign and store one receipt within a transaction."""
        number = store.next_receipt_no(conn)
        receipt = Receipt(
            agreement=order.agreement,
            run=order.run,
            step=order.step,
            order=order_digest,
            seq=order.seq,
            outcome=outcome.outcome,
            code=outcome.code,
            result=outcome.result,
            predicates=dict(predicates),
            grants=store.spent(conn, order.agreement),
            egress_bytes=outcome.egress_bytes,
            journal_seq=number,
            duration_s=math.ceil(outcome.duration_s),
            evidence=outcome.evidence,
            weight=outcome.weight,
            opened=outcome.opened,
        )
        store.put_receipt(conn, number, order.run, self._signed(receipt).to_bytes(), outcome.claim)
        self._trace = scope.trace()
        self._node.journal.after_commit(conn, self._woken)

    async def flush(self) -> None:
        """Hand every stored receipt to the link's outbox, with the proofs that it owes."""
        async with self._flushing:
            for _ in range(BATCHES_MAX):
                rows = await self._node.journal.run(lambda conn: store.unsent_receipts(conn, BATCH_MAX))
                if not rows:
                    return
                proved = await self._prove_some(rows)
                with spans.span("receipts", trace=self._trace):
                    await self._node.journal.run(partial(self._send_batch, rows=proved))
                if len(proved) == len(rows) < BATCH_MAX:
                    return

    def refused(self, conn: Connection, body: bytes) -> None:
        """Send the receipts of a refused batch one by one: a single bad one must not keep the others off the ledger."""
        document = canonical.parse(body)
        statements = [Statement.from_json(each) for each in document["receipts"]]
        if len(statements) == 1:
            log.warning("receipt.refused", order=statements[0].body.get("order"))
            self._node.ledger.forget(conn, statements[0].to_bytes())
            self._send_bare(conn, Receipt.from_json(statements[0].body))
            return
        for statement in statements:
            self._node.link.send(conn, "receipts", {"receipts": [statement.to_json()]})

    def _send_bare(self, conn: Connection, receipt: Receipt) -> None:
        """Send a refused receipt without its comparison, if it has one: the earlier result may not be on the ledger."""
        if receipt.cohort is None or receipt.cohort.before is None:
            return
        bare = CohortProof(receipt.cohort.commitment, receipt.cohort.proof)
        statement = self._signed(replace(receipt, cohort=bare))
        self._send_batch(conn, [(receipt.journal_seq, statement, True)])

    async def _prove_some(self, rows: Sequence[tuple[int, bytes, Claim | None]]) -> list[tuple[int, Statement, bool]]:
        """Return (number, statement, whether it was signed anew) of as many receipts as a batch may wait for."""
        found, began = list[tuple[int, Statement, bool]](), time.monotonic()
        for number, data, claim in rows:
            if claim is None:
                found.append((number, Statement.from_bytes(data), False))
                continue
            if len(rows) <= PROOFS_WAITING_MAX and time.monotonic() - self._written < QUIET_S:
                if found and time.monotonic() - began > INTERVAL_S:
                    break  # what is ready goes first
                await asyncio.sleep(PROOF_PAUSE_S)
            found.append((number, await asyncio.to_thread(self._prove, data, claim), True))
        return found

    def _prove(self, data: bytes, claim: Claim) -> Statement:
        receipt = Receipt.from_json(Statement.from_bytes(data).body)
        before = self._shown.get(receipt.run)
        proved, self._shown[receipt.run] = cohorts.prove_after(receipt, self._node.settings.org, claim, before)
        while len(self._shown) > RUNS_COMPARED_MAX:
            self._shown.pop(next(iter(self._shown)))
        return self._signed(proved)

    def _send_batch(self, conn: Connection, rows: Sequence[tuple[int, Statement, bool]]) -> None:
        for number, statement, anew in rows:
            if anew:
                store.prove_receipt(conn, number, statement.to_bytes())
            self._node.ledger.expect(conn, statement)
        self._node.link.send(conn, "receipts", {"receipts": [each.to_json() for _, each, _ in rows]})
        store.mark_receipts_sent(conn, [number for number, _, _ in rows])

    def _signed(self, receipt: Receipt) -> Statement:
        settings = self._node.settings
        return sign_statement(
            self._node.keys,
            kind="receipt",
            consortium=settings.consortium,
            issuer=settings.org,
            body=receipt.to_json(),
        )

    def _woken(self) -> None:
        self._written = time.monotonic()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(INTERVAL_S)
            self._wake.clear()
            try:
                await self.flush()
            except ComityError as error:
                log.error("receipts.waiting", error=str(error))
                self._wake.set()
