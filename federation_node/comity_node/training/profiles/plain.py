"""Profile `plain`: each result is sealed to the lead, which sees it; the coordinator sees its size.

Under `plain` a reply's `content_digest` is the digest of its ciphertext, which binds the content: a digest of the plain
content would let the coordinator confirm a guess at a short one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.sealing import HEADER_BYTES_MAX, SealedRef, sealed_size
from comity_node.context import NodeContext
from comity_node.training import blobs
from comity_node.training.blobs import Blob, SealedBlob
from comity_node.training.profiles.base import (
    Asked,
    Collector,
    Delivery,
    Kept,
    Measured,
    Outgoing,
    Protected,
    Question,
    Sink,
)
from comity_node.training.tables import INLINE_BYTES_MAX, AnswerRow
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, OrderHeader, ReplyHeader

RESULT = "result"


def reply_context(run: str, seq: int, org: str) -> bytes:
    """The context that a reply's payload is sealed under."""
    return f"comity/reply/v1/{run}/{seq}/{org}".encode()


class PlainProfile:
    """See the head of this module."""

    name = "plain"
    checks_content = False

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    async def start(self) -> None:
        """Nothing is left by anybody."""

    async def prepare(self, agreement: Agreement) -> None:
        """Nothing is needed."""

    async def begin(self, asked: Asked) -> Kept | None:
        """Nothing leaves before the reply."""
        return None

    async def end(self, order_digest: str, error: ComityError) -> None:
        """Nothing was begun."""

    async def confirmed(self, order_digest: str, outcome: str = RESULT) -> None:
        """Nothing is held."""

    async def forget(self, run: str) -> None:
        """Nothing is held."""

    async def stop(self) -> None:
        """Nothing runs."""

    async def expect(self, agreement: Agreement, run: str) -> None:
        """Nothing is needed."""

    def refuse_question(self, agreement: Agreement, receivers: tuple[str, ...]) -> None:
        """Nothing: any content may go to any subset."""

    def refuse(self, agreement: Agreement, order: OrderHeader) -> None:
        """Nothing: any content may go to any subset."""

    async def measure(self, outgoing: Outgoing) -> Measured:
        """The result is left as it is."""
        return Measured()

    async def protect(self, outgoing: Outgoing, measured: Measured) -> Protected:
        """Seal to the lead; the lead's own result is kept plain in its own payload folder."""
        if outgoing.own:
            return await self._keep(outgoing)
        order, node = outgoing.order, self._node
        charter = node.charters.current()
        if charter is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "there is no charter in force here")
        sealed = await blobs.seal(
            outgoing.result,
            node.settings.payloads_folder,
            {order.lead: charter.member(order.lead).keys.sealing},
            reply_context(order.run, order.seq, node.settings.org),
            header=node.ledger.carried,
            fsync=True,
        )
        ref = sealed.ref
        return Protected(ref.to_json(), ref.digest, ref.digest, sealed.inline, sealed.file, ref.size)

    async def _keep(self, outgoing: Outgoing) -> Protected:
        order, node, blob = outgoing.order, self._node, outgoing.result
        # The receipt commits to the own result without letting anybody confirm a guess at it.
        plain = await blobs.sha256_of(blob)
        commitment = hmac.new(node.keys.secret(b"receipt/" + order.run.encode()), plain.encode(), hashlib.sha256)
        if blob.size <= INLINE_BYTES_MAX:
            return Protected(None, plain, commitment.hexdigest(), blobs.to_bytes(blob), None, blob.size)
        name = f"own-{order.run}-{order.seq}"
        await blobs.to_file(blob, node.settings.payloads_folder / name)
        return Protected(None, plain, commitment.hexdigest(), None, name, blob.size)

    def collector(self, question: Question, sink: Sink) -> Collector:
        """Return a collector that delivers each reply as it comes."""
        return _PlainCollector(self._node, question)

    async def recall(self, question: Question, row: AnswerRow) -> Blob:
        """Open a recorded answer again."""
        order, size = question.order, row.size_bytes or 0
        if row.reference is None:
            if row.inline is not None:
                return blobs.from_bytes(row.inline)
            return await blobs.from_file(question.folder / str(row.file), size)
        sealed = SealedBlob(SealedRef.from_json(json.loads(row.reference)), row.inline, row.file)
        context = reply_context(order.run, order.seq, row.org)
        node = self._node
        blob, _ = await blobs.open_sealed(
            node.keys, node.settings.org, sealed, context, question.folder, size_max=question.reply_bytes_max
        )
        return blob

    async def on_message(self, message: Message) -> None:
        """There are no such messages under `plain`."""
        raise ComityError(ErrorCode.ORDER_MISMATCH, "this run has no secure sum")

    async def on_word(self, message: Message) -> None:
        """There are no such words under `plain`."""
        raise ComityError(ErrorCode.ORDER_MISMATCH, "this run has no secure sum")

    async def on_presence(self, org: str, here: bool) -> None:
        """Orders and replies are repeated by whoever sent them."""


class _PlainCollector:
    """Delivers each reply as it comes."""

    def __init__(self, node: NodeContext, question: Question) -> None:
        self._node = node
        self._question = question

    async def begin(self, recorded: Sequence[AnswerRow]) -> None:
        """Nothing is to be started: replies come by themselves."""

    async def own(self, protected: Protected, blob: Blob) -> list[Delivery]:
        org = self._node.settings.org
        row = self._row(org, None, protected.inline, protected.file, blob.size)
        return [Delivery(org, blob.duplicate(), row)]

    async def accept(self, org: str, reply: ReplyHeader, inline: bytes) -> list[Delivery]:
        question, node = self._question, self._node
        ref = SealedRef.from_json(reply.payload)
        if reply.content_digest != ref.digest:
            raise ComityError(ErrorCode.REPLY_SHAPE, "the reply's digest is not its payload's")
        if ref.size > sealed_size(question.reply_bytes_max, HEADER_BYTES_MAX):
            raise ComityError(ErrorCode.REPLY_TOO_LARGE, limit_bytes=question.reply_bytes_max)
        large = ref.size > INLINE_BYTES_MAX
        keep: Path | None = question.folder / ref.digest if large else None
        chunks = node.payloads.get(ref) if large else blobs.pieces(inline, ref)
        context = reply_context(question.order.run, question.order.seq, org)
        blob, _ = await blobs.open_stream(
            node.keys,
            node.settings.org,
            ref,
            context,
            chunks,
            size_max=question.reply_bytes_max,
            keep=keep,
            heard=node.ledger.hear,
        )
        row = self._row(org, ref, None if large else inline, ref.digest if large else None, blob.size)
        return [Delivery(org, blob, row)]

    def drop(self, org: str) -> bool:
        return True

    async def keeps(self, org: str) -> bool:
        return False

    async def close(self) -> None:
        """Nothing is held between replies."""

    def _row(self, org: str, ref: SealedRef | None, inline: bytes | None, file: str | None, size: int) -> AnswerRow:
        order = self._question.order
        reference = None if ref is None else json.dumps(ref.to_json())
        return AnswerRow(order.run, order.seq, org, RESULT, None, reference, inline, file, size)
