"""Profile `lead-key`: the lead opens sums of masked, encrypted updates, and nobody opens a single one.

Rules (secure-aggregation.md sections 1 to 4 and 6):
1. An order goes to every party of the agreement, with one content; a subset is refused, at the lead before it is sent
   and at each party by itself.
2. A part joins its session when its order comes, so that signatures overlap with training; values join it once the
   egress policy has let them out.
3. An offer may overtake its order, and come again after it: then the part is taken from the journal.
4. The reply of a party has no content but the names of its numbers, sealed to the lead; its receipt names the digest of
   the encrypted upload.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any

import structlog
from numpy.typing import NDArray
from sqlalchemy import Connection

from comity.wire import catalog, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import read_blob
from comity_crypto.sealing import SealedRef
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.encoder import Encoded
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.frame import replies
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX, CONTRIBUTORS_MIN
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.masked.encoder import EncodedWords
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.spoken import AnyOffer
from comity_node.context import NodeContext
from comity_node.training import blobs, store
from comity_node.training.blobs import Blob
from comity_node.training.enforcement import step_of, word_of
from comity_node.training.ports import FINAL, Agreements
from comity_node.training.profiles import integer_form, sum_form, sum_store, sum_wire
from comity_node.training.profiles.base import Asked, Collector, Kept, Measured, Outgoing, Protected, Question, Sink
from comity_node.training.profiles.integer_form import EncodeIntegers
from comity_node.training.profiles.plain import RESULT, reply_context
from comity_node.training.profiles.sum_exchange import Exchange, limits_for, offer_of
from comity_node.training.profiles.sum_form import Encode, Formed, Plan
from comity_node.training.profiles.sum_holding import recalled
from comity_node.training.profiles.sum_lead import SumCollector
from comity_node.training.profiles.sum_part import Part, Values
from comity_node.training.profiles.sum_store import PartRow
from comity_node.training.tables import FINISHED, AnswerRow
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, OrderHeader

OFFERS_MAX = 64
# Beyond the lead's deadline nobody opens the sum any more.
SLACK_S = 60.0

log = structlog.get_logger("comity.node.training")


class LeadKeyProfile:
    """See the head of this module."""

    name = "lead-key"
    checks_content = True
    # What `masked` has of its own.
    _part: type[Part] = Part
    _collector: type[SumCollector] = SumCollector
    _encode: Encode = staticmethod(encoder.encode)
    _encode_integers: EncodeIntegers = staticmethod(encoder.encode_integers)

    def __init__(self, node: NodeContext, agreements: Agreements, workers: BfvWorkers | None = None) -> None:
        """`workers` is a pool to share; without it the node makes its own when it needs one."""
        self._node = node
        self._agreements = agreements
        self._turn = asyncio.Lock()
        self._exchange = Exchange(node, workers)
        self._parts: dict[str, Part] = {}
        self._offers: OrderedDict[str, tuple[AnyOffer, SealedRef | None, bytes | None]] = OrderedDict()
        self._collectors: dict[str, SumCollector] = {}

    # -- before a run

    async def start(self) -> None:
        """Secrets lived in memory only."""

    async def prepare(self, agreement: Agreement) -> None:
        """Refuse what cannot be summed and start the workers. Raises `PARTICIPANTS_TOO_FEW`, `UNSUPPORTED`."""
        if not CONTRIBUTORS_MIN <= len(agreement.parties) <= CONTRIBUTORS_MAX:
            raise ComityError(
                ErrorCode.PARTICIPANTS_TOO_FEW, "an encrypted sum needs 3 to 50 parties", n=len(agreement.parties)
            )
        if "privacy" in agreement.terms and integer_form.statistic_of(agreement) is None:
            raise ComityError(ErrorCode.UNSUPPORTED, "this version adds no privacy noise to what apps return")
        await self._warm()

    async def expect(self, agreement: Agreement, run: str) -> None:
        """A key is made for each question, when it comes."""

    def refuse(self, agreement: Agreement, order: OrderHeader) -> None:
        """Refuse an order that does not go to every party. Raises `ORDER_MISMATCH`."""
        if set(order.receivers) != set(agreement.parties):
            raise ComityError(
                ErrorCode.ORDER_MISMATCH, "under encryption an order goes to every party", field="receivers"
            )

    def refuse_question(self, agreement: Agreement, receivers: tuple[str, ...]) -> None:
        """Refuse an app that asks a subset, or says different things. Raises `STRATEGY_REFUSED`."""
        if set(receivers) != set(agreement.parties):
            raise ComityError(
                ErrorCode.STRATEGY_REFUSED,
                "under encryption every question goes to every party alike: no samples, no content of one's own",
                asked=len(receivers),
                parties=len(agreement.parties),
            )

    # -- as a party

    async def begin(self, asked: Asked) -> Kept | None:
        """Join the session of an order; returns what an earlier process released for it."""
        fixed = await asyncio.to_thread(_plan, asked)
        async with self._turn:
            part = self._parts.get(asked.order_digest)
            if part is None:
                row = await self._node.journal.run(lambda conn: sum_store.find_part(conn, asked.order_digest))
                part = await self._make(asked.agreement, asked.order, asked.order_digest, self._size(fixed), row)
        row = part.row
        if row is None:
            return None
        facts: dict[str, Any] = json.loads(row.facts)
        measured = Measured(int(facts["clipped"]), False, None, facts)
        return Kept(blobs.from_bytes(row.shape.encode()), measured)

    async def measure(self, outgoing: Outgoing) -> Measured:
        """Clip and encode; the facts are those of what would leave: numbers and, for training, arrays."""
        key = replies.rounding_key(
            self._node.keys.secret(b"secagg/rounding"), outgoing.order.agreement, outgoing.order_digest
        )
        formed = await asyncio.to_thread(_formed, outgoing, key, self._encode, self._encode_integers)
        collector = self._collectors.get(outgoing.order_digest)
        if outgoing.own and collector is not None:
            collector.shaped(formed.shape)
        facts = {
            "kind": "model" if word_of(outgoing.order.message_type) == "train" else "statistic",
            "metrics": list(formed.names),
            "size_bytes": outgoing.result.size,
            "cohort": outgoing.cohort,
            "clipped": formed.clipped,
        }
        return Measured(formed.clipped, False, formed, facts)

    async def protect(self, outgoing: Outgoing, measured: Measured) -> Protected:
        """Let the values into the sum and wait until it lacks our last word only. Raises `TIMEOUT`."""
        part, order = self._parts[outgoing.order_digest], outgoing.order
        if isinstance(measured.state, Formed):
            formed, facts = measured.state, measured.facts or {}
            shape = formed.shape.to_bytes()
            digest = await asyncio.to_thread(lambda: formed.encoded.digest)
            part.give(Values(_numbers(formed.encoded), digest, shape.decode(), facts))
        else:
            assert part.row is not None, "only what was released needs no new values"
            shape = part.row.shape.encode()
        left_s = (instants.parse(order.reply_by) - self._node.clock()).total_seconds()
        upload = await part.summed(max(0.0, left_s) + SLACK_S)
        if outgoing.own:
            return Protected(
                None, upload, upload, shape, None, len(shape), charged=True, stored=part.stored, weight=part.weight
            )
        return await self._named(part, shape, upload)

    async def end(self, order_digest: str, error: ComityError) -> None:
        """An order came to no result: unless it comes again, its part gives up."""
        part = self._parts.get(order_digest)
        if part is not None and not catalog.row(error.code).retry:
            part.give_up(error)

    async def confirmed(self, order_digest: str, outcome: str = RESULT) -> None:
        """The lead keeps the sum: the part goes, and its file. One of an earlier process goes with its run."""
        part = self._parts.pop(order_digest, None)
        if part is None:
            return
        await part.close()
        name = await self._node.journal.run(lambda conn: sum_store.drop_file(conn, order_digest))
        if name is not None:
            await asyncio.to_thread((self._node.settings.payloads_folder / name).unlink, missing_ok=True)

    async def forget(self, run: str) -> None:
        """A run is over: end its parts. The journal's rows and files go with the run's."""
        for digest in [digest for digest, part in self._parts.items() if part.order.run == run]:
            await self._parts.pop(digest).close()
        for digest in [digest for digest, (offer, _, _) in self._offers.items() if offer.run == run]:
            self._offers.pop(digest, None)

    # -- as a lead

    def collector(self, question: Question, sink: Sink) -> Collector:
        """Return the collector of one question's sum."""
        limits, digest = limits_for(step_of(question.agreement, question.order).reply_timeout_s), question.order_digest
        made = self._collector(self._exchange, question, sink, limits, self._own_offer, lambda: self._close(digest))
        self._collectors[digest] = made
        return made

    def _close(self, order_digest: str) -> None:
        self._collectors.pop(order_digest, None)

    async def recall(self, question: Question, row: AnswerRow) -> Blob:
        """Return the recorded mean again."""
        return await recalled(question, row)

    # -- messages

    async def on_message(self, message: Message) -> None:
        """Take a party's message. Raises what its signature or form deserves."""
        parcel = sum_wire.read(self._node, message)
        if isinstance(parcel.message, Offer | MaskedOffer):
            await self._on_offer(offer_of(parcel), parcel.public_key)
        else:
            self._exchange.hear(parcel.issuer, parcel.message)

    async def on_word(self, message: Message) -> None:
        """Take a word of the coordinator."""
        self._exchange.word(sum_wire.read_word(message))

    async def on_presence(self, org: str, here: bool) -> None:
        """Say again what an organisation that came back may have missed."""
        (self._exchange.away.discard if here else self._exchange.away.add)(org)
        if here:
            await self._exchange.repeat(org)

    async def stop(self) -> None:
        """End every part and the workers; the journal keeps what was released."""
        for part in self._parts.values():
            await part.close()
        self._parts.clear()
        await self._exchange.close()

    # -- inside

    async def _warm(self) -> None:
        """Start the workers."""
        await self._exchange.ready()

    def _size(self, fixed: Plan) -> int:
        """Return the size of every upload, as an offer has it."""
        return fixed.chunks

    async def _on_offer(self, offer: AnyOffer, sealed: SealedRef | None, public_key: bytes | None = None) -> None:
        """Give an offer to its part; one for an order that is not here yet waits for it."""
        async with self._turn:
            part = self._parts.get(offer.order_digest) or await self._from_journal(offer.order_digest)
        if part is not None:
            part.offered(offer, sealed, public_key)
            return
        before = self._offers.get(offer.order_digest)
        if before is None or before[0].attempt < offer.attempt:
            self._offers[offer.order_digest] = (offer, sealed, public_key)
            self._offers.move_to_end(offer.order_digest)
        while len(self._offers) > OFFERS_MAX:
            self._offers.popitem(last=False)

    async def _own_offer(self, offer: AnyOffer, public_key: bytes) -> None:
        """Take this node's own offer, as a lead, to its own part."""
        await self._on_offer(offer, None, public_key)

    async def _from_journal(self, order_digest: str) -> Part | None:
        """Make the part of an order that ended here in an earlier process: its sum was lost at the lead."""

        def look(conn: Connection) -> tuple[PartRow, Agreement, bool] | None:
            row = sum_store.find_part(conn, order_digest)
            if row is None or row.file is None:
                return None
            stored, order = self._agreements.find(conn, row.header.agreement), store.find_order(conn, row.run, row.seq)
            ended = order is not None and order.digest == order_digest and order.state == FINISHED
            return (row, stored.agreement, ended) if stored.state == FINAL else None

        found = await self._node.journal.run(look)
        if found is None:
            return None
        row, agreement, ended = found
        return await self._make(agreement, row.header, order_digest, row.chunks, row, ended=ended)

    async def _make(
        self,
        agreement: Agreement,
        order: OrderHeader,
        order_digest: str,
        chunks: int,
        row: PartRow | None,
        *,
        ended: bool = False,
    ) -> Part:
        """Make an order's part; one offer that came before is taken up."""
        limits = limits_for(step_of(agreement, order).reply_timeout_s)
        part = self._part(self._exchange, agreement, order, order_digest, chunks, limits, row, ended=ended)
        if row is not None:
            await part.restore()
        self._parts[order_digest] = part
        waiting = self._offers.pop(order_digest, None)
        if waiting is not None:
            try:
                part.offered(*waiting)
            except ComityError as error:
                log.warning("sum.offer", run=order.run, error=str(error))
        return part

    async def _named(self, part: Part, shape: bytes, upload: str) -> Protected:
        """Seal the names of the numbers to the lead."""
        node, order = self._node, part.order
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        blob = blobs.from_bytes(shape)
        context = reply_context(order.run, order.seq, node.settings.org)
        keys = {order.lead: charter.member(order.lead).keys.sealing}
        try:
            sealed = await blobs.seal(
                blob, node.settings.payloads_folder, keys, context, header=node.ledger.carried, fsync=False
            )
        finally:
            blob.close()
        ref = sealed.ref
        return Protected(
            ref.to_json(),
            ref.digest,
            upload,
            sealed.inline,
            sealed.file,
            ref.size,
            charged=True,
            stored=part.stored,
            weight=part.weight,
        )


def _plan(asked: Asked) -> Plan:
    return integer_form.plan_for(asked.agreement, asked.order, asked.asked)


def _formed(outgoing: Outgoing, key: bytes, encode: Encode, encode_integers: EncodeIntegers) -> Formed:
    step = integer_form.statistic_of(outgoing.agreement)
    if step is not None:
        fixed = integer_form.plan(outgoing.agreement, step, blobs.to_bytes(outgoing.asked))
        return integer_form.form(fixed, blobs.to_bytes(outgoing.result), key, encode_integers)
    word = word_of(outgoing.order.message_type)
    asked = read_blob(memory.map_blob(outgoing.asked.fd, outgoing.asked.size))
    reply = read_blob(memory.map_blob(outgoing.result.fd, outgoing.result.size))
    fixed = sum_form.plan(asked, word, outgoing.agreement.terms)
    return sum_form.form(fixed, asked, reply, word, outgoing.cohort, key, encode)


def _numbers(encoded: Encoded | EncodedWords) -> NDArray[Any]:
    return encoded.words if isinstance(encoded, EncodedWords) else encoded.slots
