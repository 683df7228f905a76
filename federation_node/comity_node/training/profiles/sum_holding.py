"""The holder's machine at work: the lead's round key, the aggregate and what is decoded from it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from comity.wire.errors import ComityError
from comity_agents import memory
from comity_crypto.secagg.bfv.workers import RoundKey, memory_file
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import EraseKey, Event, Output, Send, SumDecoded
from comity_crypto.secagg.lead_key.events import DigestReady, StartDecrypt, StartDigest
from comity_crypto.secagg.lead_key.holder import HolderState
from comity_crypto.secagg.lead_key.messages import Offer
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.profiles.base import Question
from comity_node.training.profiles.sum_exchange import Exchange, Said
from comity_node.training.profiles.sum_wire import Addressed
from comity_node.training.tables import AnswerRow

Decode = Callable[[NDArray[np.uint64], int], Awaitable[Blob]]

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class Opened:
    """An opened sum: the reply for the app, and who is in it."""

    content: Blob
    members: tuple[str, ...]


class Opening(Protocol):
    """What opens a sum: performs the outputs of the lead's machine; `opened` is the reply once it is there."""

    @property
    def opened(self) -> Blob | None:
        """The reply that stands for all."""

    def close(self) -> None:
        """Let go of the aggregate."""

    def discard(self) -> None:
        """Close what nobody will take."""


class Holding:
    """Performs the outputs of one session. `opened` is the reply that stands for all, once it is there."""

    driver: Driver[HolderState]

    def __init__(self, exchange: Exchange, offer: Offer, key: RoundKey, said: Said, decode: Decode) -> None:
        """`decode` turns decrypted slots and the number of contributors into the reply."""
        self._exchange = exchange
        self._offer = offer
        self._key = key
        self._decode = decode
        self._said = said
        self._fd = memory_file("aggregate")
        self.opened: Blob | None = None

    async def perform(self, output: Output) -> None:
        """Do one output."""
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartDigest):
            self.driver.work(self._check(output))
        elif isinstance(output, StartDecrypt):
            self.driver.work(self._decrypt(output))
        elif isinstance(output, EraseKey):
            self._key.secret.erase()

    def close(self) -> None:
        """Let go of the aggregate."""
        os.close(self._fd)

    def discard(self) -> None:
        """Close what nobody will take."""
        if self.opened is not None:
            self.opened.close()

    async def _check(self, job: StartDigest) -> Event:
        offer, exchange = self._offer, self._exchange
        os.ftruncate(self._fd, 0)
        size_bytes = 0
        async for chunk in exchange.node.payloads.get(Addressed(job.digest, offer.upload_bytes)):
            os.pwrite(self._fd, chunk, size_bytes)
            size_bytes += len(chunk)
        return DigestReady(
            await exchange.workers.check_and_digest(
                offer.parameter_set, offer.chunks, job.challenge, job.digest, self._fd
            )
        )

    async def _decrypt(self, job: StartDecrypt) -> Event:
        workers = self._exchange.workers
        sums = await workers.decrypt(self._offer.parameter_set, self._offer.chunks, self._key.secret, self._fd)
        self.opened = await self._decode(sums, job.contributors)
        return SumDecoded()


def refused(error: ComityError) -> None:
    """Note an event that a machine refused."""
    log.warning("sum.refused", error=str(error))


async def recalled(question: Question, row: AnswerRow) -> Blob:
    """Return a recorded answer's content again. Raises `PAYLOAD_MISSING`."""
    if row.inline is not None:
        return blobs.from_bytes(row.inline)
    return await blobs.from_file(question.folder / str(row.file), row.size_bytes or 0)


def write_content(blob: Blob, path: str) -> None:
    """Write the content; whoever journals it syncs it first."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with memory.mapped(blob.fd, blob.size) as view:
            memory.append(fd, [view])
    finally:
        os.close(fd)
