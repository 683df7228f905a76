"""The lead's side of one run: questions of its ServerApp become orders, replies become answers, all of it journalled.

Rules:
1. A question is on disk before anybody hears it; so is everything but a result before the app hears it. A result may
   reach the app first: its sender keeps it until our confirmation, which follows the commit, and would send the same.
2. A question that is asked again (the app was started again) must be the recorded one: same number, type, receivers
   and content; else `RUN_DIVERGED` with both digests. Recorded answers are given back without asking anybody.
3. A question ends when everyone has answered or is dropped. Dropped is who answers with an error, misses `reply_by`,
   or is gone for `GONE_S` seconds while the terms allow to go on without.
4. The lead's own order takes the same way through `Participant.perform`; its content is passed as it is.
5. Orders are repeated, byte for byte, when a receiver comes back, when this node comes back, and every `RESEND_S`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.wire import catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import Ask
from comity_crypto.sealing import SealedRef
from comity_crypto.statements import Statement, verify_statement
from comity_node.context import NodeContext
from comity_node.training import blobs, store
from comity_node.training.answers import AnswerBook
from comity_node.training.blobs import Blob, SealedBlob
from comity_node.training.enforcement import word_of
from comity_node.training.led import LedRun, RoundCounter, error_of, verdict_on
from comity_node.training.opened import ON_THE_WAY, Open, OpenSink
from comity_node.training.ordering import OrderWriter
from comity_node.training.participant import Participant
from comity_node.training.profiles.base import AggregationProfile, Delivery, Question
from comity_node.training.served import Performed
from comity_node.training.tables import CLOSED, AnswerRow, QuestionRow
from comity_node.transport.model import Message
from comity_policies.documents import OrderHeader, ReplyHeader

RESEND_S, GONE_S = 15.0, 30.0
REPLY_S = 5.0  # how long a refusal of a repeated order takes to come
REOPENED_S = 30.0  # a question that was open when this node died gets at least this long, however late it is
OWN_RETRY_S = 2.0

log = structlog.get_logger("comity.node.training")

# (seq, organisation, content or None, error or None): hands an answer to the app; the caller keeps the blob.
Answer = Callable[[int, str, Blob | None, ComityError | None], Awaitable[None]]


class QuestionDesk:
    """Serves one run's questions until `close`."""

    def __init__(
        self,
        node: NodeContext,
        led: LedRun,
        participant: Participant,
        profile: AggregationProfile,
        book: AnswerBook,
        answer: Answer,
    ) -> None:
        self._node = node
        self._led = led
        self._participant = participant
        self._profile = profile
        self._book = book
        self._answer = answer
        self._writer = OrderWriter(node, led)
        self._folder: Path = node.settings.payloads_folder
        self._open: dict[int, Open] = {}
        self._own: dict[int, asyncio.Task[Performed]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._counter = RoundCounter()
        self._recorded_seq = -1
        self.live_questions = 0
        self.verdict: ComityError | None = None

    @property
    def round(self) -> int:
        """The round that the app is in."""
        return self._counter.current

    def passing(self) -> dict[str, ComityError]:
        """Return why organisations do not begin yet, of those that are awaited now."""
        return {org: why for found in self._open.values() for org, why in found.passing_now().items()}

    async def begin(self) -> None:
        """Forget what an ended process of the app asked; the journal knows it. Call before each start of the app."""
        await self._drop_open()
        self._counter = RoundCounter()
        self.verdict = None
        self._recorded_seq = await self._node.journal.run(lambda conn: store.last_question_seq(conn, self._led.run))
        await self._profile.expect(self._led.agreement, self._led.run)

    async def close(self) -> None:
        """End every task; the journal keeps what is open."""
        await self._drop_open()
        for own in self._own.values():
            own.cancel()
        await asyncio.gather(*self._own.values(), return_exceptions=True)

    async def ask(self, ask: Ask) -> None:
        """Take a question from the app; its descriptor belongs to the desk now.

        Raises:
            ComityError: `RUN_DIVERGED`, `JOURNAL_UNWRITABLE`, `SPOOL_FULL`, `NOT_A_MEMBER`.
        """
        content = Blob(ask.fd, ask.size)
        ask.fd = -1
        try:
            receivers = tuple(sorted(self._led.node_ids[node] for node in ask.dst))
            number = self._counter.next(word_of(ask.type), receivers)
            if ask.seq <= self._recorded_seq:
                await self._again(ask, receivers, content)
            else:
                await self._anew(ask, receivers, number, content)
        except BaseException:  # also a cancelled caller leaves no blob
            content.close()
            raise

    async def on_reply(self, message: Message) -> None:
        """Take a reply from the link. Raises `SIGNATURE_INVALID`, `ORDER_MISMATCH`, `MALFORMED`."""
        statement = message.statement("reply")
        reply, org = ReplyHeader.from_json(statement.body), statement.issuer
        charter = self._node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        key = charter.member(org).keys.statement
        verify_statement(statement, key, kind="reply", consortium=self._node.settings.consortium)
        found = self._open.get(reply.seq)
        self._book.heard(reply.seq, org)
        if found is None or org not in found.waiting:
            await self._book.confirm_if_kept(reply.run, reply.seq, org, reply.order)
            return
        if reply.order != found.question.order_digest:
            raise ComityError(ErrorCode.ORDER_MISMATCH, "the reply is to another order", field="order")
        if org not in found.accepting:
            found.accepting.add(org)
            self._spawn(self._accept, found, org, reply, message.inline)

    async def resend(self, org: str | None = None) -> None:
        """Send open orders again, to one organisation or to everyone awaited."""
        for found in list(self._open.values()):
            targets = tuple(sorted(each for each in found.waiting - found.accepting if org in (None, each)))
            self._repeat(found, targets)
        for each in self._led.agreement.parties if org is None else (org,):
            self._spawn(self._writer.remind, each, self._book)

    def gone(self, org: str) -> None:
        """An organisation's node went away; look again in `GONE_S` seconds."""
        asyncio.get_running_loop().call_later(GONE_S, self._spawn, self._give_up, org)

    async def keep_sending(self) -> None:
        """Repeat open orders until cancelled."""
        while True:
            await asyncio.sleep(RESEND_S)
            await self.resend()

    # -- questions

    async def _anew(self, ask: Ask, receivers: tuple[str, ...], number: int, content: Blob) -> None:
        """Seal, sign, journal, then tell everyone."""
        self._profile.refuse_question(self._led.agreement, receivers)
        written = await self._writer.write(ask, receivers, number, content)
        others = tuple(org for org in receivers if org != self._led.me)
        if written.sealed.file is not None:
            # Ciphertext alone commits nobody to anything, so the upload need not wait for the disk; the order does.
            if others:
                self._spawn(self._writer.upload, written.sealed, others)
            await blobs.sync(self._folder / written.sealed.file)
        await self._node.journal.run(lambda conn: store.put_question(conn, written.row))
        self.live_questions += 1
        found = self._opened(written.order, written.statement, written.sealed, content, set(receivers))
        await found.collector.begin(())
        self._start_timer(found, written.timeout_s)
        self._start_own(found)
        await self._writer.relay(written.statement, written.sealed, others)

    async def _again(self, ask: Ask, receivers: tuple[str, ...], content: Blob) -> None:
        """Give back what was recorded; wait for what is missing."""
        led = self._led

        def look(conn: Connection) -> tuple[QuestionRow | None, list[AnswerRow]]:
            return store.find_question(conn, led.run, ask.seq), store.list_answers(conn, led.run, ask.seq)

        row, answers = await self._node.journal.run(look)
        plain = await blobs.sha256_of(content)
        if row is None:
            raise ComityError(ErrorCode.RUN_DIVERGED, "a recorded question is missing", seq=ask.seq)
        statement = Statement.from_bytes(row.statement)
        order = OrderHeader.from_json(statement.body)
        if (row.message_type, tuple(json.loads(row.receivers)), row.content_sha256) != (ask.type, receivers, plain):
            asked = blobs.content_digest(row.salt, plain)
            raise ComityError(ErrorCode.RUN_DIVERGED, seq=ask.seq, recorded=order.content_digest, asked=asked)
        sealed = SealedBlob(SealedRef.from_json(order.payload), row.inline, row.file)
        found = self._opened(order, statement, sealed, content, set(receivers))
        for answer in answers:
            blob, error = None, None
            if answer.outcome == "result":
                blob = await self._profile.recall(found.question, answer)
                found.results.add(answer.org)
            else:
                error = error_of(answer)
                found.errors[answer.org] = error
            await self._answer(ask.seq, answer.org, blob, error)
            if blob is not None:
                blob.close()
            found.waiting.discard(answer.org)
        await self._settle(found, told=row.state == CLOSED)
        if found.waiting:
            await found.collector.begin(answers)
            left_s = (instants.parse(order.reply_by) - self._node.clock()).total_seconds()
            self._start_timer(found, max(REOPENED_S, left_s))
            self._start_own(found)
            self._repeat(found, tuple(sorted(found.waiting)))

    def _opened(
        self, order: OrderHeader, statement: Statement, sealed: SealedBlob, content: Blob, waiting: set[str]
    ) -> Open:
        limit = self._node.settings.limits.reply_bytes_max
        question = Question(self._led.agreement, order, statement.digest, content, self._folder, limit)
        sink = OpenSink(
            lambda: self._open.get(order.seq),
            self._deliver,
            self._drop,
            lambda error: self._book.tell("waiting", org=self._led.me, round=order.round, error=error.to_json()),
            lambda orgs: self._book.tell("suspects", round=order.round, orgs=list(orgs)),
        )
        found = Open(question, statement, sealed, self._profile.collector(question, sink), waiting)
        self._open[order.seq] = found
        return found

    def _start_timer(self, found: Open, delay_s: float) -> None:
        found.timer = asyncio.get_running_loop().call_later(delay_s, self._spawn, self._expire, found)
        for org in found.waiting - self._node.link.connected_orgs - {self._led.me}:
            self.gone(org)  # it was away before it was asked

    # -- answers

    def _start_own(self, found: Open) -> None:
        if self._led.me in found.waiting:
            found.accepting.add(self._led.me)
            self._spawn(self._perform, found)

    async def _perform(self, found: Open) -> None:
        """Serve our own order; a refusal that may heal is tried again until the deadline drops us."""
        me, seq = self._led.me, found.order.seq
        while me in found.waiting:
            running = self._own.get(seq)
            if running is None:
                work = self._participant.perform(found.order, found.statement, found.question.content)
                running = self._own[seq] = asyncio.create_task(work)
            try:
                done = await asyncio.shield(running)
            except ComityError as error:
                done = Performed("refused", error, None, None)
            self._own.pop(seq, None)
            if done.protected is not None and done.blob is not None:
                deliveries = await found.collector.own(done.protected, done.blob)
                done.blob.close()
                await self._deliver(found, deliveries)
                return
            why = done.error or ComityError(ErrorCode.APP_SILENT)
            if done.outcome != "refused" or not catalog.row(why.code).retry:
                await self._drop(found, me, done.outcome, why)
                return
            if found.refused_for_now(me, why, OWN_RETRY_S * 3):
                self._book.tell("waiting", org=me, round=found.order.round, error=why.to_json())
            await asyncio.sleep(OWN_RETRY_S)

    async def _accept(self, found: Open, org: str, reply: ReplyHeader, inline: bytes) -> None:
        try:
            if reply.outcome == "result":
                await self._deliver(found, await found.collector.accept(org, reply, inline))
                return
            error = ComityError.from_json(reply.error)
            if reply.outcome == "refused" and catalog.row(error.code).retry:
                # The order is repeated until the deadline.
                if found.refused_for_now(org, error, RESEND_S + REPLY_S):
                    self._book.tell("waiting", org=org, round=found.order.round, error=error.to_json())
            else:
                await self._drop(found, org, reply.outcome, error)
        except ComityError as error:
            if error.code in ON_THE_WAY:
                log.warning("reply.waiting", run=reply.run, seq=reply.seq, org=org, error=str(error))
            else:
                await self._drop(found, org, "failed", error)
        finally:
            found.accepting.discard(org)

    async def _deliver(self, found: Open, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                error = await self._book.judge(delivery)
                if error is not None and delivery.org in found.waiting:
                    await self._without(found, delivery.org, "failed", error)
                elif delivery.org in found.waiting:
                    found.waiting.discard(delivery.org)
                    found.results.add(delivery.org)
                    await self._book.keep(delivery.row, found.question.order_digest)
                    await self._tell_app(found.order.seq, delivery.org, delivery.blob, None)
            finally:
                delivery.blob.close()
        await self._settle(found)

    async def _drop(self, found: Open, org: str, outcome: str, error: ComityError) -> None:
        """Go on without an organisation's result, unless a sum has its part already."""
        if org in found.waiting and found.collector.drop(org):
            await self._without(found, org, outcome, error)

    async def _without(self, found: Open, org: str, outcome: str, error: ComityError) -> None:
        """Answer with an error in an organisation's place: on disk first, then told to the app."""
        found.waiting.discard(org)
        found.errors[org] = error
        order = found.order
        row = AnswerRow(order.run, order.seq, org, outcome, json.dumps(error.to_json()), None, None, None, None)
        await self._book.keep_now(row, found.question.order_digest)
        await self._tell_app(order.seq, org, None, error)
        await self._settle(found)

    async def _tell_app(self, seq: int, org: str, blob: Blob | None, error: ComityError | None) -> None:
        """Hand over what the journal has or is about to; an app that has died gets it when it asks again."""
        try:
            await self._answer(seq, org, blob, error)
        except ComityError as died:
            if died.code is not ErrorCode.WORKER_DIED:
                raise
            log.warning("answer.kept", run=self._led.run, seq=seq, org=org)

    async def _settle(self, found: Open, *, told: bool = False) -> None:
        """Close a question that nobody is awaited for; `told` if an earlier process did and its watchers know."""
        order = found.order
        if found.waiting or self._open.get(order.seq) is not found:
            return
        del self._open[order.seq]
        if found.timer is not None:
            found.timer.cancel()
        found.question.content.close()
        await found.collector.close()
        dropped = {org: str(error.code) for org, error in found.errors.items()}
        if not told:
            self._book.closed(order, sorted(found.results), dropped)
        self.verdict = verdict_on(len(found.results), self._led.results_min, found.errors) or self.verdict

    async def _expire(self, found: Open) -> None:
        for org in sorted(found.waiting):
            passing = found.passing.get(org)
            await self._drop(found, org, "failed", passing or ComityError(ErrorCode.TIMEOUT, "no reply in time"))

    async def _give_up(self, org: str) -> None:
        """Drop who is gone, where the terms say that enough others suffice."""
        link = self._node.link
        if not link.connected or org in link.connected_orgs or "min_participants" not in self._led.agreement.terms:
            return
        for found in list(self._open.values()):
            expected = found.results | (found.waiting & (link.connected_orgs | {self._led.me}))
            awaited = org in found.waiting and org not in found.accepting
            if awaited and len(expected) >= self._led.results_min and not await found.collector.keeps(org):
                await self._drop(found, org, "failed", ComityError(ErrorCode.UNAVAILABLE, "its node is gone"))

    def _repeat(self, found: Open, targets: tuple[str, ...]) -> None:
        """Send an order, and its payload, again to organisations that have not answered."""
        others = tuple(org for org in targets if org != self._led.me)
        if not others:
            return
        self._spawn(self._writer.relay, found.statement, found.sealed, others)
        if found.sealed.file is not None:
            receivers = tuple(org for org in found.order.receivers if org != self._led.me)
            self._spawn(self._writer.upload, found.sealed, receivers)

    def _spawn(self, work: Callable[..., Awaitable[None]], *about: Any) -> None:
        task = asyncio.create_task(self._guarded(work, *about))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Callable[..., Awaitable[None]], *about: Any) -> None:
        try:
            await work(*about)
        except ComityError as error:
            log.warning("question.waiting", run=self._led.run, error=str(error))
        except Exception as error:  # one answer's defect must not end the desk; the deadline settles its question
            log.error("question.failed", run=self._led.run, exc_info=error)

    async def _drop_open(self) -> None:
        opened, self._open = list(self._open.values()), {}
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for found in opened:
            if found.timer is not None:
                found.timer.cancel()
            found.question.content.close()
            await found.collector.close()
