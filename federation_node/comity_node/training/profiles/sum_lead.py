"""The lead's side of one question under encryption: attempts at a sum, and one reply that stands for all.

Rules:
1. A fresh key for every attempt, erased with it; the attempt's number is on disk before its offer leaves.
2. A party that the question dropped is left out of the next attempt; one that merely has to begin anew is not.
3. After `ATTEMPTS_MAX` attempts that failed by themselves, or where no attempt can help, the question fails by name.
4. Every party's reply to the app is the same content, in one buffer, with the same weight.
5. Parties let their parts out for one roster: who is lost after all have committed ends the question by its name.
   Whose part is in an opened sum is not dropped any more, whatever becomes of its node: the answers name who is in it.
6. No attempt goes on while people of a party have to decide before it begins: it would go on without that party.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import read_blob
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.workers import RoundKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Failed, Finished, Limits, Output, WorkFailed
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX
from comity_crypto.secagg.frame.transcript import Transcript
from comity_crypto.secagg.lead_key import holder
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.spoken import AnyOffer
from comity_node.training import blobs
from comity_node.training.blobs import Blob, SealedBlob
from comity_node.training.enforcement import word_of
from comity_node.training.profiles import integer_form, sum_form, sum_store
from comity_node.training.profiles.base import Delivery, Protected, Question, Sink
from comity_node.training.profiles.integer_form import DecodeIntegers
from comity_node.training.profiles.plain import RESULT, reply_context
from comity_node.training.profiles.sum_exchange import Exchange, Said
from comity_node.training.profiles.sum_form import Decode, Plan, Shape
from comity_node.training.profiles.sum_holding import Holding, Opened, Opening, recalled, refused, write_content
from comity_node.training.profiles.sum_part import key_context, minimum_of
from comity_node.training.profiles.weighing import total_of
from comity_node.training.tables import INLINE_BYTES_MAX, AnswerRow
from comity_policies.documents import ReplyHeader

ATTEMPTS_MAX = 5
PAUSE_S = 0.2
SHAPE_S = 60.0
LOOK_S = 0.25

# Another attempt would end the same way.
_LASTING = frozenset(
    {
        ErrorCode.REPLY_SHAPE,
        ErrorCode.PARTICIPANTS_TOO_FEW,
        ErrorCode.UNSUPPORTED,
        ErrorCode.TOO_LARGE,
        ErrorCode.GRANT_EXHAUSTED,
        ErrorCode.NOT_A_MEMBER,
        ErrorCode.RUN_FAILED,
    }
)

log = structlog.get_logger("comity.node.training")


class SumCollector:
    """Collects the answers to one question as one sum."""

    _decode: Decode = staticmethod(encoder.decode)
    _decode_integers: DecodeIntegers = staticmethod(encoder.decode_integers)

    def __init__(
        self,
        exchange: Exchange,
        question: Question,
        sink: Sink,
        limits: Limits,
        offered: Callable[[AnyOffer, bytes], Awaitable[None]],
        closed: Callable[[], None],
    ) -> None:
        """`offered` takes an offer, with its public key, to this node's own part; `closed` hears of the end."""
        self._closed = closed
        self.question = question
        self.exchange = exchange
        self._node = exchange.node
        self._sink = sink
        self._limits = limits
        self._offered = offered
        self._gone: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._driver: Driver[Any] | None = None
        self._delivered = False
        self._total: int | None = None  # of the weights, once a sum is open
        self._committed: frozenset[str] = frozenset()
        self._summed: frozenset[str] = frozenset()  # whose parts the opened sum has
        self._shape: asyncio.Future[Shape] = asyncio.get_running_loop().create_future()

    async def begin(self, recorded: Sequence[AnswerRow]) -> None:
        """Start, or take up what an earlier process recorded."""
        self._gone.update(row.org for row in recorded if row.outcome != RESULT)
        given = next((row for row in recorded if row.outcome == RESULT), None)
        work = self._sum if given is None else partial(self._rest, given)
        self._task = asyncio.create_task(self._guarded(work))

    async def own(self, protected: Protected, blob: Blob) -> list[Delivery]:
        """The lead's own part lies in the sum; what is left of it here are its names."""
        self.shaped(Shape.from_bytes(protected.inline or b""))
        return []

    async def accept(self, org: str, reply: ReplyHeader, inline: bytes) -> list[Delivery]:
        """A party says that its part is in the sum, and how its numbers are called."""
        if not self._shape.done():
            ref, order = SealedRef.from_json(reply.payload), self.question.order
            if ref.size > INLINE_BYTES_MAX:
                raise ComityError(ErrorCode.REPLY_TOO_LARGE, limit_bytes=INLINE_BYTES_MAX)
            blob, _ = await blobs.open_stream(
                self._node.keys,
                self.exchange.me,
                ref,
                reply_context(order.run, order.seq, org),
                blobs.pieces(inline, ref),
                size_max=sum_form.SHAPE_BYTES_MAX,
            )
            self.shaped(Shape.from_bytes(blobs.to_bytes(blob)))
            blob.close()
        return []

    def shaped(self, shape: Shape) -> None:
        """Take the names of a reply; the first ones known stay, the sum's fingerprint judges them."""
        if not self._shape.done():
            self._shape.set_result(shape)

    def drop(self, org: str) -> bool:
        """Begin anew without a party, unless a sum that is open has its part."""
        if org in self._summed:
            return False
        if org not in self._gone and not self._delivered:
            self._gone.add(org)
            if self._driver is not None:
                self._driver.tell(_without(org))
        return True

    async def keeps(self, org: str) -> bool:
        """Nobody's part is in before all have said their last word."""
        return False

    async def close(self) -> None:
        """End; keys are erased."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._shape.cancel()
        self._closed()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except ComityError as error:
            log.warning("sum.given_up", run=self.question.order.run, error=str(error))
            await self._fail(error)
        except Exception as error:  # the question must not wait for ever for what failed here
            log.error("sum.broken", run=self.question.order.run, exc_info=error)
            await self._fail(ComityError(ErrorCode.INTERNAL, "the secure sum failed at its lead"))

    async def _fail(self, error: ComityError) -> None:
        self._delivered, self._summed = True, frozenset()
        for org in self.question.order.receivers:
            await self._sink.fail(org, error)

    # -- attempts

    async def _sum(self) -> None:
        content = self.question.content
        fixed = await asyncio.to_thread(self._plan, content)
        made = failures = 0
        while True:  # bounded by ATTEMPTS_MAX failures and by the parties that can still be dropped
            while self._sink.reviewing():  # noqa: ASYNC110 - it ends by time too; at the latest with the question
                await asyncio.sleep(LOOK_S)
            without = frozenset(self._gone)
            try:
                opened = await self._attempt(fixed, without)
            except ComityError as error:
                if self._sink.reviewing():
                    continue
                failures += frozenset(self._gone) == without
                made += 1
                log.warning("sum.again", run=self.question.order.run, attempts=made, error=str(error))
                if error.code in _LASTING or failures >= ATTEMPTS_MAX:
                    raise
                self._sink.waiting(error)
                await asyncio.sleep(PAUSE_S * failures)
                continue
            await self._deliver(opened)
            return

    async def _attempt(self, fixed: Plan, without: frozenset[str]) -> Opened:
        order, node = self.question.order, self._node
        parties, minimum = self.left(without)
        parameters = integer_form.parameters_of(self.question.agreement)
        counted = node.journal.run(lambda conn: sum_store.next_attempt(conn, order.run, order.seq))
        key, number = await asyncio.gather(self.exchange.workers.make_key(parameters), counted)
        try:
            if number > ATTEMPT_MAX:
                raise ComityError(ErrorCode.RUN_FAILED, "the secure sum did not succeed", attempts=number)
            offer = Offer(
                agreement=order.agreement,
                run=order.run,
                step=order.step,
                round=order.seq,
                attempt=number,
                lead=order.lead,
                parties=parties,
                minimum=minimum,
                parameters=parameters.name,
                parameters_digest=parameters.digest,
                key_id=key.key_id,
                order_digest=self.question.order_digest,
                chunks=fixed.chunks,
            )
            return await self._session(offer, key, fixed)
        finally:
            key.secret.erase()

    def left(self, without: frozenset[str]) -> tuple[tuple[str, ...], int]:
        """Return the parties of the next attempt, and their least number. Raises `PARTICIPANTS_TOO_FEW`."""
        parties = tuple(org for org in self.question.order.receivers if org not in without)
        minimum = self._minimum()
        lost = self._committed & without
        if lost:
            detail = "a party was lost after all had committed: no sum can be opened without its part any more"
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, detail, org=min(lost))
        if len(parties) < minimum:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "too few parties are left for a sum", n=len(parties))
        return parties, minimum

    def _minimum(self) -> int:
        return minimum_of(self.question.agreement)

    async def _session(self, offer: Offer, key: RoundKey, fixed: Plan) -> Opened:
        others = tuple(org for org in offer.parties if org != offer.lead)
        sealed = await self._sealed_key(offer, key, others)
        uploading = asyncio.create_task(self._upload(sealed, others))
        state, outputs = holder.start(offer, now=time.monotonic(), limits=self._limits)
        said = Said(self.exchange, offer)
        work = Holding(self.exchange, offer, key, said, partial(self.opened, fixed=fixed))
        driver = Driver(state, holder.step, work.perform, refused)
        work.driver = driver
        try:
            return await self.work(offer, driver, outputs, said, work, (sealed.ref, key.public))
        finally:
            uploading.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
            (self.question.folder / str(sealed.file)).unlink(missing_ok=True)

    async def work(
        self,
        offer: AnyOffer,
        driver: Driver[Any],
        outputs: list[Output],
        said: Said,
        work: Opening,
        key: tuple[SealedRef | None, bytes],
    ) -> Opened:
        """Run one session to its end; `key` is the round's public key, sealed and plain. Raises what ended it."""
        self._driver, self._summed = driver, frozenset()
        silence = self.exchange.listen(offer, driver.tell)
        watching = asyncio.create_task(self._stop_for_people(driver))
        for org in sorted(self._gone.intersection(offer.parties)):  # dropped while the key was made
            driver.tell(_without(org))
        try:
            await said.say_offer(key[0])
            if offer.lead in offer.parties:
                await self._offered(offer, key[1])
            ended = await driver.run(outputs)
            if isinstance(ended, Finished):
                self._take_sum_of(ended.members)
        except BaseException:  # also a cancelled round leaves nothing behind
            work.discard()
            raise
        finally:
            self._driver = None
            if isinstance(driver.state.seen, Transcript) and driver.state.seen.set_signed():
                self._committed |= frozenset(driver.state.seen.members)
            silence()
            said.end()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            work.close()
        if isinstance(ended, Failed):
            work.discard()
            raise ended.error
        assert isinstance(ended, Finished)
        assert work.opened is not None, "the machine ends well only with a decoded sum"
        return Opened(work.opened, ended.members)

    def _take_sum_of(self, members: tuple[str, ...]) -> None:
        """From here on nobody in the sum is dropped. Raises `UNAVAILABLE` if somebody was, before it was open."""
        dropped = self._gone.intersection(members)
        if dropped:
            raise _without(min(dropped)).error
        self._summed = frozenset(members)

    async def _stop_for_people(self, driver: Driver[Any]) -> None:
        """End an attempt of which a party has to ask its people first."""
        while not self._sink.reviewing():  # noqa: ASYNC110 - as above; the attempt's end cancels it
            await asyncio.sleep(LOOK_S)
        driver.tell(WorkFailed(ComityError(ErrorCode.REVIEW_NEEDED, "people of a party have to decide first")))

    async def _sealed_key(self, offer: Offer, key: RoundKey, others: tuple[str, ...]) -> SealedBlob:
        charter = self._node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        blob = blobs.from_bytes(key.public)
        keys = {org: charter.member(org).keys.sealing for org in others}
        try:
            return await blobs.seal(
                blob, self.question.folder, keys, key_context(offer), header=self._node.ledger.carried, fsync=False
            )
        finally:
            blob.close()

    async def _upload(self, sealed: SealedBlob, receivers: tuple[str, ...]) -> None:
        while True:  # bounded by the attempt, whose end cancels this
            try:
                await self._node.payloads.put(self.question.folder / str(sealed.file), sealed.ref, receivers)
                return
            except ComityError as error:
                log.warning("sum.key", run=self.question.order.run, error=str(error))
                await asyncio.sleep(PAUSE_S)

    # -- the sum

    def _plan(self, content: Blob) -> Plan:
        return integer_form.plan_for(self.question.agreement, self.question.order, content)

    async def opened(self, sums: NDArray[Any], contributors: int, fixed: Plan) -> Blob:
        """Turn decrypted slots into the reply that stands for all. Raises `SUM_MISMATCH`, `REPLY_SHAPE`, `TIMEOUT`."""
        try:
            async with asyncio.timeout(SHAPE_S):
                shape = await asyncio.shield(self._shape)
        except TimeoutError as error:
            raise ComityError(ErrorCode.TIMEOUT, "nobody said how the numbers of the sum are called") from error
        return await asyncio.to_thread(self._unformed, sums, contributors, fixed, shape)

    def _unformed(self, sums: NDArray[Any], contributors: int, fixed: Plan, shape: Shape) -> Blob:
        if fixed.integers is not None:
            return blobs.from_bytes(integer_form.unform(fixed, sums, contributors, self._decode_integers))
        content, word = self.question.content, word_of(self.question.order.message_type)
        asked = read_blob(memory.map_blob(content.fd, content.size))
        decoded = sum_form.decode(sums, contributors, asked, word, fixed, self._decode)
        self._total = total_of(decoded)
        reply = sum_form.unform(decoded, shape, asked, word, contributors, fixed.weight_max)
        return Blob(*memory.write_parts(reply.parts()))

    async def _deliver(self, opened: Opened) -> None:
        """Give every member the reply; who is in no roster is dropped by name."""
        self._delivered = True
        order, blob = self.question.order, opened.content
        inline, name = None, None
        if blob.size <= INLINE_BYTES_MAX:
            inline = blobs.to_bytes(blob)
        else:
            name = f"mean-{order.run}-{order.seq}"
            await asyncio.to_thread(write_content, blob, str(self.question.folder / name))
        named = json.dumps({"members": list(opened.members), "total": self._total})
        rows = [
            AnswerRow(order.run, order.seq, org, RESULT, None, named, inline, name, blob.size) for org in opened.members
        ]
        await self._hand_out(blob, rows)

    async def _rest(self, given: AnswerRow) -> None:
        """Complete answers that an earlier process had begun to record: they are all the same."""
        members = json.loads(given.reference or "{}").get("members", [])
        self._summed = frozenset(members)
        await self._hand_out(await recalled(self.question, given), [replace(given, org=org) for org in members])

    async def _hand_out(self, blob: Blob, rows: list[AnswerRow]) -> None:
        """Give each its row; who has none is not in the sum."""
        self._delivered = True
        try:
            await self._sink.deliver([Delivery(row.org, blob.duplicate(), row) for row in rows])
        finally:
            blob.close()
        for org in self.question.order.receivers:
            if all(org != row.org for row in rows):
                await self._sink.fail(org, ComityError(ErrorCode.TIMEOUT, "the roster was closed without it"))


def _without(org: str) -> WorkFailed:
    return WorkFailed(ComityError(ErrorCode.UNAVAILABLE, "a party dropped out", org=org))
