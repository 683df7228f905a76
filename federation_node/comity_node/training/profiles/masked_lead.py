"""The lead's side of one question under `masked`; rules as in `sum_lead`, and besides:

1. A fresh secret for every attempt, dropped with it; it leaves sealed to the members' keys of this attempt.
2. A party that the question drops after all have committed is left to the sum's own rule: the others do without it, if
   they are enough. Before that the attempt begins anew without it.
3. A party that was not in the last sum of its run, and is away still, is not waited for.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Event, Output, Send, SumDecoded
from comity_crypto.secagg.frame.messages import ATTEMPT_MAX
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked import recipient as masked_recipient
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.blobs import read_blob
from comity_crypto.secagg.masked.events import StartOpen
from comity_crypto.secagg.masked.keys import RoundSecret
from comity_crypto.secagg.masked.messages import MaskedOffer
from comity_crypto.secagg.masked.recipient import RecipientState
from comity_crypto.secagg.masked.words import Words
from comity_node.training.blobs import Blob
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.integer_form import DecodeIntegers
from comity_node.training.profiles.masked_part import SPARE
from comity_node.training.profiles.sum_exchange import Exchange, Said
from comity_node.training.profiles.sum_form import Decode, Plan
from comity_node.training.profiles.sum_holding import Opened, refused
from comity_node.training.profiles.sum_lead import SumCollector
from comity_node.training.profiles.sum_wire import Addressed

LOST_RUNS_MAX = 256


class MaskedCollector(SumCollector):
    """Collects the answers to one question as one masked sum."""

    _decode: Decode = staticmethod(masked_encoder.decode)
    _decode_integers: DecodeIntegers = staticmethod(masked_encoder.decode_integers)

    async def keeps(self, org: str) -> bool:
        """After all have committed the sum says whose parts are in: nobody is dropped before that is known."""
        state = self._driver.state if self._driver is not None else None
        return isinstance(state, RecipientState) and state.seen.set_signed()

    def drop(self, org: str) -> bool:
        """Go on without a party."""
        state = self._driver.state if self._driver is not None else None
        if isinstance(state, RecipientState) and state.seen.set_signed():
            self._gone.add(org)
            return True
        return super().drop(org)

    async def _attempt(self, fixed: Plan, without: frozenset[str]) -> Opened:
        order, node, lost = self.question.order, self._node, self.exchange.lost
        parties, minimum = self.left(without | (lost.get(order.run, frozenset()) & self.exchange.away))
        number = await node.journal.run(lambda conn: sum_store.next_attempt(conn, order.run, order.seq))
        if number > ATTEMPT_MAX:
            raise ComityError(ErrorCode.RUN_FAILED, "the secure sum did not succeed", attempts=number)
        secret = RoundSecret(os.urandom)
        offer = MaskedOffer(
            agreement=order.agreement,
            run=order.run,
            step=order.step,
            round=order.seq,
            attempt=number,
            lead=order.lead,
            parties=parties,
            minimum=minimum,
            spare=SPARE,
            key_id=secret.key_id,
            box_key=secret.box_key.public,
            order_digest=self.question.order_digest,
            words=fixed.words,
        )
        state, outputs = masked_recipient.start(offer, secret, now=time.monotonic(), limits=self._limits)
        said = Said(self.exchange, offer)
        work = _Unmasking(self.exchange, offer, said, partial(self.opened, fixed=fixed))
        driver = Driver(state, masked_recipient.step, work.perform, refused)
        work.driver = driver
        opened = await self.work(offer, driver, outputs, said, work, (None, b""))
        lost[order.run] = frozenset(order.receivers) - set(opened.members)
        while len(lost) > LOST_RUNS_MAX:
            lost.popitem(last=False)
        return opened


class _Unmasking:
    """Performs the outputs of one session. `opened` is the reply that stands for all, once it is there."""

    driver: Driver[RecipientState]

    def __init__(
        self,
        exchange: Exchange,
        offer: MaskedOffer,
        said: Said,
        decode: Callable[[NDArray[Any], int], Awaitable[Blob]],
    ) -> None:
        self._exchange = exchange
        self._offer = offer
        self._said = said
        self._decode = decode
        self._fd = memory_file("aggregate")
        self.opened: Blob | None = None

    async def perform(self, output: Output) -> None:
        """Do one output."""
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartOpen):
            self.driver.work(self._open(output))

    def close(self) -> None:
        """Let go of the aggregate."""
        os.close(self._fd)

    def discard(self) -> None:
        """Close what nobody will take."""
        if self.opened is not None:
            self.opened.close()

    async def _open(self, job: StartOpen) -> Event:
        offer = self._offer
        os.ftruncate(self._fd, 0)
        size_bytes = 0
        async for chunk in self._exchange.node.payloads.get(Addressed(job.aggregate, offer.upload_bytes)):
            os.pwrite(self._fd, chunk, size_bytes)
            size_bytes += len(chunk)
            if size_bytes > offer.upload_bytes:
                raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "the aggregate is too long", size_bytes=size_bytes)
        content = await asyncio.to_thread(_unmasked, self._fd, offer.words, job)
        self.opened = await self._decode(content, len(job.survivors))
        return SumDecoded()


def _unmasked(fd: int, words: int, job: StartOpen) -> Words:
    """Return the sum's content. Raises `PAYLOAD_DIGEST`, `CIPHERTEXT_INVALID`, `SUM_MISMATCH`."""
    if file_digest(fd)[0] != job.aggregate:
        raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the aggregate is not the one that was announced")
    total = read_blob(fd, BlobKind.AGGREGATE, words)
    return masked_words.unmask(total, job.tag_key, job.masks, len(job.survivors))
