"""Shares of one session on their way to a sum, at whoever opens it: the lead, and those that the offer names beside it.

1. A share is opened with the key of this attempt that it was sealed to; its bytes are those that the holder signed for.
2. This node's own share never leaves it for itself, nor comes back.
3. The salts of a call's shares go into what is said of the sum (`comity_crypto.secagg.threshold.compared`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.blobs import check_blob
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import Event, Output, Send
from comity_crypto.secagg.threshold.compared import SALT_BYTES, sum_digest
from comity_crypto.secagg.threshold.events import QuorumFailed, ShareRefused, StartFuse, SumOpened, Suspected
from comity_crypto.secagg.threshold.lead import LeadState
from comity_crypto.secagg.threshold.messages import ThresholdOffer
from comity_crypto.secagg.threshold.opener import OpenerState
from comity_crypto.secagg.threshold.workers import KeyWorkers
from comity_node.training import blobs
from comity_node.training.blobs import Blob
from comity_node.training.profiles.sum_exchange import Said
from comity_node.training.profiles.sum_holding import Decode
from comity_node.training.profiles.sum_wire import Addressed

if TYPE_CHECKING:
    from comity_node.training.profiles.threshold_exchange import ThresholdExchange

# A share is its header and chunks; sealing adds less than this.
_SEALING_BYTES = 64 << 10

log = structlog.get_logger("comity.node.training")


@dataclass(frozen=True, slots=True)
class OwnShare:
    """A share as whoever fuses it holds it, with the salt that came inside its seal."""

    blob: Blob
    salt: bytes = field(repr=False)


def share_context(offer: ThresholdOffer, org: str, call: str) -> bytes:
    """Return the context that a decryption share is sealed under."""
    return f"comity/secagg/share/v1/{offer.digest}/{org}/{call}".encode()


class Fuser:
    """Fuses what a call's holders shared. `opened` is the reply of the first call that opened the sum."""

    def __init__(self, exchange: ThresholdExchange, offer: ThresholdOffer, key: BoxKey, decode: Decode) -> None:
        """`key` is this opener's of this attempt; `decode` turns slots and a number of contributors into the reply."""
        self._exchange = exchange
        self._offer = offer
        self._key = key
        self._decode = decode
        self._work = KeyWorkers(exchange.workers, offer.parameter_set)
        self._aggregate = -1
        self.opened: Blob | None = None

    def close(self) -> None:
        """Let go of the aggregate."""
        if self._aggregate >= 0:
            os.close(self._aggregate)
            self._aggregate = -1

    def discard(self) -> None:
        """Close what nobody will take."""
        if self.opened is not None:
            self.opened.close()

    async def fuse(self, job: StartFuse, aggregate_digest: str) -> Event:
        """Do what the machine asks for."""
        offer = self._offer
        aggregate = await self._total(aggregate_digest)
        shares: list[OwnShare] = []
        try:
            for org, digest in job.shares:
                try:
                    shares.append(await self._share(org, job.call, digest))
                except ComityError as error:
                    return ShareRefused(org, job.call, error)
            salts = {org: share.salt for (org, _), share in zip(job.shares, shares, strict=True)}
            try:
                slots = await self._work.fuse(offer.chunks, aggregate, [share.blob.fd for share in shares])
            except ComityError as error:
                if "holder" not in error.facts:
                    raise
                return ShareRefused(job.shares[int(error.facts["holder"])][0], job.call, error)
        finally:
            for share in shares:
                share.blob.close()
        try:
            opened = await self._decode(slots, job.contributors)
        except ComityError as error:
            if error.code is not ErrorCode.SUM_MISMATCH:
                raise
            return QuorumFailed(job.call)
        if self.opened is None:
            self.opened = opened
        else:
            opened.close()
        plain = await asyncio.to_thread(_sha256, slots)
        return SumOpened(job.call, sum_digest(offer.digest, job.call, salts, plain), plain)

    async def _total(self, digest: str) -> int:
        """Return the aggregate's file: what this node checked as a holder, or fetched once. Raises `PAYLOAD_DIGEST`."""
        if self._aggregate >= 0:
            return self._aggregate
        checked = self._exchange.checked.get(digest)
        fd = memory_file("aggregate") if checked is None else os.dup(checked)
        try:
            if checked is None:
                await self._exchange.download(Addressed(digest, self._offer.upload_bytes), fd)
                if (await asyncio.to_thread(file_digest, fd))[0] != digest:
                    raise ComityError(ErrorCode.PAYLOAD_DIGEST, "the aggregate is not the one that was announced")
            check_blob(fd, self._offer.parameter_set, BlobKind.AGGREGATE, self._offer.chunks)
        except BaseException:  # also a cancelled caller leaves no descriptor
            os.close(fd)
            raise
        self._aggregate = fd
        return fd

    async def _share(self, org: str, call: str, digest: str) -> OwnShare:
        """Return a holder's share for a call. Raises why it is none."""
        exchange, offer = self._exchange, self._offer
        if org == exchange.me:
            own = exchange.own_share(call)
            if own is None:
                raise ComityError(ErrorCode.PAYLOAD_MISSING, "this node's own share is gone")
            return own
        ref = exchange.address(org, call)
        if ref is None or ref.size > self._size + _SEALING_BYTES:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "a share came without its address, or is too large")
        blob, salt = await blobs.open_stream(
            self._key,
            exchange.me,
            ref,
            share_context(offer, org, call),
            exchange.node.payloads.get(ref),
            size_max=self._size,
            salt_bytes=SALT_BYTES,
        )
        try:
            check_blob(blob.fd, offer.parameter_set, BlobKind.SHARE, offer.chunks)
            if await blobs.sha256_of(blob) != digest:
                raise ComityError(ErrorCode.PAYLOAD_DIGEST, "a share is not the one that was named")
        except BaseException:  # also a cancelled caller leaves no blob
            blob.close()
            raise
        return OwnShare(blob, salt)

    @property
    def _size(self) -> int:
        return self._offer.upload_bytes  # a share is half of this


class LeadFusing:
    """Performs the outputs of the lead's machine. `opened` is the reply that stands for all, once it is there."""

    driver: Driver[LeadState]

    def __init__(
        self, fuser: Fuser, offer: ThresholdOffer, said: Said, suspect: Callable[[Sequence[str]], None]
    ) -> None:
        self._fuser = fuser
        self._offer = offer
        self._said = said
        self._suspect = suspect

    @property
    def opened(self) -> Blob | None:
        """The reply that stands for all."""
        return self._fuser.opened

    async def perform(self, output: Output) -> None:
        """Do one output."""
        if isinstance(output, Send):
            await self._said.say(output.to, output.message, but=self.driver.tell)
        elif isinstance(output, StartFuse):
            self.driver.work(self._fuser.fuse(output, aggregate_of(self.driver.state)))
        elif isinstance(output, Suspected):
            log.warning("sum.suspects", run=self._offer.run, round=self._offer.round, orgs=list(output.orgs))
            self._suspect(output.orgs)

    def close(self) -> None:
        """Let go of the aggregate."""
        self._fuser.close()

    def discard(self) -> None:
        """Close what nobody will take."""
        self._fuser.discard()


def aggregate_of(state: LeadState | OpenerState) -> str:
    """Return the digest of the aggregate that shares are of."""
    assert state.seen.notice is not None, "shares are of what was published"
    return state.seen.notice.aggregate


def _sha256(slots: NDArray[Any]) -> str:
    return hashlib.sha256(memoryview(slots).cast("B")).hexdigest()
