"""This organisation as a party: take orders, check, run, judge what may leave, answer.

Rules:
1. The same order runs to its end once. Its row is the lock: `started` with the charge, in one transaction; `finished`
   with the reply and the receipt, in another. A repeated order gets the stored reply; one that was started by a process
   that died is run again and not charged again.
2. A reply is on disk before its first byte leaves, and is sent byte for byte the same until the lead confirms it.
3. What may heal (policy engine away, journal full) is refused *for now*: nothing is stored, and the lead asks again.
   Everything else is final, stored, and a signed receipt.
4. The lead's own orders come through `perform`: same checks, same journal, no link.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from sqlalchemy import Connection

from comity.observability import spans
from comity.wire import catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import HEADER_BYTES_MAX, SealedRef, sealed_size
from comity_crypto.statements import Statement
from comity_node.attestation.service import of_order
from comity_node.context import NodeContext
from comity_node.observability import metrics
from comity_node.training import blobs, enforcement, grants, store
from comity_node.training.blobs import SALT_BYTES, Blob, order_context
from comity_node.training.datasets import DatasetCatalogue
from comity_node.training.enforcement import Case, Certificates, Verdict
from comity_node.training.execution import Execution, Job
from comity_node.training.intake import Intake, Known, Received, trusting
from comity_node.training.people import OrderReviews
from comity_node.training.ports import Agreements, People
from comity_node.training.profiles.base import Profiles, Protected
from comity_node.training.receipts import Outcome, ReceiptBook
from comity_node.training.replies import Replies
from comity_node.training.room import Room
from comity_node.training.served import WAITING, Final, Performed, discard, is_work
from comity_node.training.standing import Standing
from comity_node.training.tables import FINISHED, INLINE_BYTES_MAX, OrderRow
from comity_node.training.workshop import Workshop
from comity_node.transport.model import Message
from comity_policies import cohorts
from comity_policies.documents import Agreement, OrderHeader

ORDERS_AT_ONCE_MAX = 64
ORDERS_OF_ONE_MAX = 16
REFUSALS_MAX = 1_000
log = structlog.get_logger("comity.node.training")


class Participant:
    """Serves orders; `on_order` is the link's handler."""

    def __init__(
        self,
        node: NodeContext,
        agreements: Agreements,
        catalogue: DatasetCatalogue,
        workshop: Workshop,
        profiles: Profiles,
        receipts: ReceiptBook,
        replies: Replies,
        standing: Standing,
        people: People,
    ) -> None:
        self._node = node
        self._agreements = agreements
        self._catalogue = catalogue
        self._receipts = receipts
        self._replies = replies
        self._standing = standing
        self._room = Room(node.settings.payloads_folder, node.settings.limits.payload_store_bytes)
        self._intake = Intake(agreements, trusting(node), self._now)
        self._certificates = Certificates()
        self.reviews = OrderReviews(node, people, self._take)
        self._execution = Execution(node, workshop, profiles, self.reviews)
        self._workshop = workshop
        self._abilities = workshop.abilities(profiles)
        self._active: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._told: dict[tuple[str, str], None] = {}
        self._passing: Counter[str] = Counter()

    async def stop(self) -> None:
        """Stop working; started orders stay started in the journal."""
        tasks = list(self._active.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def on_order(self, message: Message) -> None:
        """Take an order from the link; it is served in a task of its own. Raises `MALFORMED`, `BUSY`."""
        statement = message.statement("order")
        order = Received(OrderHeader.from_json(statement.body), statement, message.inline, None)
        # By digest, and by who sent it: nobody can keep another's order out by sending one under its number first.
        key = (order.header.run, statement.issuer, order.digest)
        if key in self._active:
            return
        senders = Counter(issuer for _, issuer, _ in self._active)
        if len(self._active) >= ORDERS_AT_ONCE_MAX or senders[statement.issuer] >= ORDERS_OF_ONE_MAX:
            raise ComityError(ErrorCode.BUSY, "this node serves as many orders as it may")
        self._take(order)

    def _take(self, order: Received) -> bool:
        """Serve an order in a task of its own; returns False if that is under way already."""
        key = (order.header.run, order.statement.issuer, order.digest)
        if key in self._active:
            return False
        task = asyncio.create_task(self._serve(order))
        self._active[key] = task
        task.add_done_callback(lambda _: self._active.pop(key, None))
        return True

    async def perform(self, header: OrderHeader, statement: Statement, blob: Blob) -> Performed:
        """Serve an order of this very node; `blob` stays the caller's. A refusal for now is an error like others."""
        order = Received(header, statement, b"", blob)
        await self._standing.wait()
        known = await self._look(order)
        if known.row is not None and known.row.digest == order.digest and known.row.state == FINISHED:
            return await self._remembered(known.row)
        try:
            protected, result = await self._work(order, known)
        except Final as final:
            return Performed(final.outcome, final.error, None, None)
        return Performed("result", None, protected, result)

    async def _look(self, order: Received) -> Known:
        """Read what is known of an order; one that rests on what is not final yet waits for it, for a bounded time."""
        known = await self._node.journal.run(lambda conn: self._intake.look(conn, order))
        if known.ledger is None or known.ledger.code is not ErrorCode.NOT_FINAL:
            return known
        trust = partial(trusting(self._node), stored=known.stored)
        with contextlib.suppress(ComityError):  # judged with the order, from what is known then
            await self._node.ledger.wait_final(self._node.journal, trust)
        return await self._node.journal.run(lambda conn: self._intake.look(conn, order))

    async def cancel(self, run: str) -> None:
        """Stop serving a run's orders."""
        tasks = [task for (of_run, *_), task in self._active.items() if of_run == run]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, order: Received) -> None:
        try:
            await self._standing.wait()
            known = await self._look(order)
            if known.refusal is not None:
                await self._answer(order, Statement.from_bytes(known.refusal))
            elif known.row is not None and known.row.digest == order.digest and known.row.state == FINISHED:
                await self._replies.send_stored(known.row)
            else:
                _, result = await self._work(order, known)
                result.close()
        except Final:
            pass  # stored and sent where it arose
        except ComityError as error:
            # The journal or the link is in trouble, or the payload is not here yet: the order comes again.
            log.warning("order.waiting", run=order.header.run, seq=order.header.seq, error=str(error))
            if error.code in (ErrorCode.JOURNAL_UNWRITABLE, ErrorCode.SPOOL_FULL):
                await self._answer(order, self._replies.statement(order.header, order.digest, "refused", error))
        except Exception as error:  # one order's defect must not end the node; the lead repeats it or goes on without
            log.error("order.failed", run=order.header.run, seq=order.header.seq, exc_info=error)

    async def _work(self, order: Received, known: Known) -> tuple[Protected, Blob]:
        """Check, run and answer an order that is new or was left unfinished. Raises `Final`."""
        with spans.span("order", run=order.header.run, agreement=order.header.agreement):
            return await self._worked(order, known)

    async def _worked(self, order: Received, known: Known) -> tuple[Protected, Blob]:
        verdict = await self._judge(order, known)
        agreement = known.stored.agreement if known.stored is not None else None
        if verdict.error is None and agreement is not None:
            await self.reviews.check_order(order, agreement, verdict)
        if verdict.error is not None:
            await self._refuse(order, verdict, agreement)
            raise Final("refused", verdict.error)
        assert agreement is not None, "check (1) lets no order pass without its agreement"
        self._room.check()
        began = time.monotonic()
        # The payload comes while the charge goes to disk; nothing of it is used before that.
        fetching = asyncio.create_task(self._content(order, agreement))
        try:
            await self._start(order, verdict, agreement)
        except BaseException:  # also a cancelled caller leaves no task
            await discard(fetching)
            raise
        asked: Blob | None = None
        try:
            asked = await fetching
            job = Job(agreement, order.header, order.digest, asked, order.blob is not None, self._telling(order))
            result, protected = await self._execution.run(job)
        except ComityError as error:
            if error.code in WAITING:
                raise
            await self._finish(order, verdict, Outcome("failed", str(error.code), None, 0, _since(began)), None, error)
            raise Final("failed", error) from error
        finally:
            if asked is not None:
                asked.close()
        size = job.released_bytes
        claim = cohorts.claim_of(agreement, self._node.settings.org, job.cohort)
        shown = (claim, verdict.evidence, protected.weight)
        outcome = Outcome("result", None, protected.receipt_digest, size, _since(began), *shown)
        try:
            await self._finish(order, verdict, outcome, protected, None)
        except BaseException:  # also a cancelled caller leaves no blob
            result.close()
            raise
        return protected, result

    async def _start(self, order: Received, verdict: Verdict, agreement: Agreement) -> None:
        """Charge the grant and take the order's number. Raises `Final` if another order was quicker."""
        try:
            await self._node.journal.run(lambda conn: self._intake.charge(conn, order, agreement))
        except ComityError as error:
            if error.code is ErrorCode.JOURNAL_UNWRITABLE:
                raise
            verdict.error = error
            await self._refuse(order, verdict, agreement)
            raise Final("refused", error) from error

    async def _content(self, order: Received, agreement: Agreement) -> Blob:
        """Return the order's content; the caller closes it."""
        return order.blob.duplicate() if order.blob is not None else await self._fetch(order, agreement)

    async def _judge(self, order: Received, known: Known) -> Verdict:
        same = known.row is not None and known.row.digest == order.digest
        stored = None if known.stored is None else known.stored.agreement
        shown = await of_order(self._node, stored, order.header.agreement)
        case = Case(
            order=order.header,
            statement=order.statement,
            stored=known.stored,
            charter=self._node.charters.current(),
            history=known.history,
            me=self._node.settings.org,
            now=self._now(),
            abilities=self._abilities,
            catalogue={entry["name"]: entry for entry in self._catalogue.describe_all()},
            started=same,
            number_taken=known.row is not None and not same,
            ledger=known.ledger,
            looks=self.reviews.looks(),
            made_under=None if known.stored is None else self._node.charters.at(known.stored.agreement.charter_digest),
            attested=shown.error,
        )
        verdict = await asyncio.to_thread(enforcement.judge, case, self._certificates, self._node.policy.decide)
        verdict.evidence = shown.digests
        return verdict

    async def _fetch(self, order: Received, agreement: Agreement) -> Blob:
        """Open an order's content. Raises `PAYLOAD_*` (it comes again), `SEAL_BROKEN`, `TOO_LARGE`."""
        header, settings = order.header, self._node.settings
        ref = SealedRef.from_json(header.payload)
        size_max = settings.limits.payload_bytes_max
        if ref.size > sealed_size(size_max, HEADER_BYTES_MAX):
            raise ComityError(ErrorCode.TOO_LARGE, "the order", limit_bytes=size_max)
        large = ref.size > INLINE_BYTES_MAX
        chunks = self._node.payloads.get(ref) if large else blobs.pieces(order.inline, ref)
        blob, salt = await blobs.open_stream(
            self._node.keys,
            settings.org,
            ref,
            order_context(header.run, header.seq),
            chunks,
            size_max=size_max,
            salt_bytes=SALT_BYTES,
            heard=self._node.ledger.hear,
        )
        if self._execution.profile_of(agreement).checks_content:
            plain = await blobs.sha256_of(blob)
            if blobs.content_digest(salt, plain) != header.content_digest:
                blob.close()
                raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the order's content is not what all parties were named")
        return blob

    async def _finish(
        self,
        order: Received,
        verdict: Verdict,
        outcome: Outcome,
        protected: Protected | None,
        error: ComityError | None,
    ) -> None:
        """Journal how an order ended, with its receipt, then answer the lead (unless it is this node)."""
        header, own = order.header, order.blob is not None
        reply = None
        if not own or protected is None:
            reply = self._replies.statement(header, order.digest, outcome.outcome, error, protected)

        def write(conn: Connection) -> None:
            if outcome.egress_bytes and not (protected is not None and protected.charged):
                stored = self._agreements.find(conn, header.agreement)
                cost = {grants.EGRESS_BYTES: outcome.egress_bytes}
                grants.check(stored.agreement, store.spent(conn, header.agreement), cost)
                store.spend(conn, header.agreement, cost)
            store.finish_order(
                conn,
                header.run,
                header.seq,
                outcome=outcome.outcome,
                reply=None if reply is None else reply.to_bytes(),
                inline=None if protected is None else protected.inline,
                file=None if protected is None else protected.file,
                size_bytes=None if protected is None else protected.size_bytes,
                acked=own,
            )
            self._receipts.write(conn, header, order.digest, outcome, verdict.predicates)

        try:
            await self._node.journal.run(write)
        except ComityError as refusal:
            if refusal.code is not ErrorCode.GRANT_EXHAUSTED or error is not None:
                raise
            late = Outcome("failed", str(refusal.code), None, 0, outcome.duration_s)
            await self._finish(order, verdict, late, None, refusal)
            raise Final("failed", refusal) from refusal
        metrics.ORDERS.add(outcome.outcome, outcome.code or "")
        if protected is not None and protected.stored is not None:
            protected.stored()
        if not own and reply is not None:
            await self._replies.send(header.lead, header.run, order.digest, reply, protected)

    async def _refuse(self, order: Received, verdict: Verdict, agreement: Agreement | None) -> None:
        """Answer with a refusal; it is final and stored unless it may heal. A forged order gets no answer.

        A party's order for a run of an agreement of ours leaves a receipt. Anything else is nobody's work: it must not
        fill this journal, nor put entries into the ledger's way that no auditor could place.
        """
        error, header = verdict.error, order.header
        assert error is not None
        metrics.ORDERS.add("refused", error.code)
        log.warning("order.refused", run=header.run, seq=header.seq, error=str(error))
        if error.code in (ErrorCode.SIGNATURE_INVALID, ErrorCode.NOT_A_MEMBER):
            return
        reply = self._replies.statement(header, order.digest, "refused", error)
        passing = catalog.row(error.code).retry
        note = (order.digest, str(error.code))
        if is_work(order, agreement) and not (passing and note in self._told):
            outcome = Outcome("refused", str(error.code), None, 0, 0.0)

            def write(conn: Connection) -> bool:
                refusals = store.count_refusals(conn, header.run) + self._passing[header.run]
                if refusals >= REFUSALS_MAX:
                    return False  # a lead that floods us with bad orders gets no more receipts
                if not passing:
                    store.put_refusal(conn, order.digest, header.run, reply.to_bytes())
                self._receipts.write(conn, header, order.digest, outcome, verdict.predicates)
                return True

            if not await self._node.journal.run(write):
                return
            self._told[note] = None
            self._passing[header.run] += passing
            while len(self._told) > REFUSALS_MAX:
                self._told.pop(next(iter(self._told)))
        if order.blob is None:
            await self._answer(order, reply)

    async def _remembered(self, row: OrderRow) -> Performed:
        """Return what an order to oneself came to before."""
        if row.outcome != "result":
            statement = Statement.from_bytes(row.reply) if row.reply else None
            error = ComityError.from_json(statement.body.get("error") if statement else None)
            return Performed(str(row.outcome), error, None, None)
        size = row.size_bytes or 0
        if row.inline is not None:
            blob = blobs.from_bytes(row.inline)
        else:
            blob = await blobs.from_file(self._node.settings.payloads_folder / str(row.file), size)
        protected = Protected(None, "", "", row.inline, row.file, size)
        return Performed("result", None, protected, blob)

    def _telling(self, order: Received) -> Callable[[ComityError], Awaitable[None]]:
        """Return what tells another lead whom the result of an order waits for; watchers here hear it from reviews."""

        async def tell(error: ComityError) -> None:
            if order.blob is None:
                await self._answer(order, self._replies.statement(order.header, order.digest, "refused", error))

        return tell

    async def _answer(self, order: Received, reply: Statement) -> None:
        await self._replies.send(order.header.lead, order.header.run, order.digest, reply)

    def _now(self) -> str:
        return instants.to_text(self._node.clock())


def _since(began: float) -> float:
    return time.monotonic() - began
