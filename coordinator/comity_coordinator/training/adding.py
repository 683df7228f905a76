"""One secure sum at the coordinator: the aggregator's machine with its spool, its workers and its words."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_coordinator.transport.payloads import Spool
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import (
    BlobReady,
    Event,
    Failed,
    Output,
    Received,
    Send,
    StartAdd,
    UploadStored,
    WorkFailed,
)
from comity_crypto.secagg.frame.messages import Commitment
from comity_crypto.secagg.lead_key import aggregator
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.spoken import AnyOffer
from comity_crypto.secagg.threshold.messages import ThresholdOffer
from comity_policies.charter import Charter

NOTICE = "secagg.notice"
FAILED = "secagg.failed"

log = structlog.get_logger()


class Session:
    """One session. `start` once, `hear` what verified parties say, `close` at the end."""

    def __init__(
        self,
        offer: AnyOffer,
        charter: Charter,
        spool: Spool,
        pool: Callable[[], BfvWorkers],
        tell: Callable[..., bool],
    ) -> None:
        self.offer = offer
        self.charter = charter
        self._spool = spool
        self._pool = pool
        self._tell = tell
        self._said: list[dict[str, Any]] = []
        self._heard: set[tuple[str, str]] = set()
        self._fetching: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._driver: Driver[Any]

    def start(self) -> None:
        """Begin; the workers start with it."""
        assert isinstance(self.offer, Offer), "another profile's session begins another way"
        self._workers = self._pool()
        state, outputs = aggregator.start(self.offer, now=time.monotonic())
        self._driver = Driver(state, aggregator.step, self._perform, self._refused)
        self._task = asyncio.create_task(self._run(outputs))

    async def close(self) -> None:
        """End; the spool drops uploads that nobody will add."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def awaited(self) -> tuple[str, ...]:
        """Return whom the session waits for now."""
        return aggregator.awaited(self._driver.state)

    def hear(self, org: str, message: Body) -> None:
        """Take a party's verified message; one that comes again is answered by what was said before."""
        if (org, message.digest) in self._heard:
            self.repeat(org)
            return
        if len(self._heard) < 16 * len(self.offer.parties):
            self._heard.add((org, message.digest))
        self._driver.tell(Received(org, message))
        if isinstance(message, Commitment) and org not in self._fetching:
            self._fetching.add(org)
            self._driver.work(self._stored(org, message))

    def repeat(self, org: str) -> None:
        """Say again to one party what it may have missed."""
        for body in self._said:
            self._tell(org, NOTICE, body, run=self.offer.run)

    async def _run(self, outputs: list[Output]) -> None:
        try:
            ended = await self._driver.run(outputs)
        finally:
            for org, upload in self._driver.state.uploads.items():
                self._spool.discard(org, upload.digest)
        if isinstance(ended, Failed):
            log.warning("sum.failed", run=self.offer.run, error=str(ended.error), missing=list(ended.missing))
            body = {"session": self.offer.digest, "error": ended.error.to_json(), "missing": list(ended.missing)}
            self._say(FAILED, body)

    async def _perform(self, output: Output) -> None:
        if isinstance(output, Send):
            self._say(output.message.KIND, output.message.to_json())
        elif isinstance(output, StartAdd):
            self._driver.work(self._add(output.orgs))

    def _say(self, kind: str, body: dict[str, Any]) -> None:
        word = {"run": self.offer.run, "kind": kind, "body": body}
        self._said.append(word)
        for org in {*self.offer.parties, self.offer.lead}:
            self._tell(org, NOTICE, word, run=self.offer.run)

    async def _stored(self, org: str, promised: Commitment) -> Event:
        """Wait for an upload; its party sends it again and again, the session's deadline ends the wait."""
        if promised.size_bytes != self.offer.upload_bytes:
            return WorkFailed(ComityError(ErrorCode.CIPHERTEXT_INVALID, "an upload has another size", org=org))
        while True:  # bounded by the session's deadline, whose end cancels this job
            try:
                fd = await self._spool.whole(COORDINATOR, org, promised.upload)
            except ComityError as error:
                if error.code not in (ErrorCode.PAYLOAD_MISSING, ErrorCode.PAYLOAD_TRUNCATED, ErrorCode.BUSY):
                    raise
                await asyncio.sleep(0.1)
                continue
            try:
                return UploadStored(org, promised.upload, os.fstat(fd).st_size)
            finally:
                os.close(fd)

    async def _add(self, orgs: tuple[str, ...]) -> Event:
        commitments = self._driver.state.seen.commitments
        path = self._spool.folder / f".sum-{secrets.token_hex(8)}"
        with ExitStack() as stack:
            uploads: list[int] = []
            for org in orgs:
                uploads.append(await self._spool.whole(COORDINATOR, org, commitments[org].upload))
                stack.callback(os.close, uploads[-1])
            total = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, total)
            try:
                blob = await self._added(uploads, total)
                self._adopt(path, blob)
            finally:
                path.unlink(missing_ok=True)
        return blob

    async def _added(self, uploads: list[int], total: int) -> BlobReady:
        """Add upload files into the file `total`."""
        offer = self.offer
        assert isinstance(offer, Offer), "another profile's session adds another way"
        return await self._workers.add(offer.parameter_set, offer.chunks, uploads, total)

    def _adopt(self, path: Path, blob: BlobReady) -> None:
        """Let those have the aggregate who check it: every holder of a collective key, or the lead alone."""
        checkers = {*self.offer.parties} if isinstance(self.offer, ThresholdOffer) else set()
        receivers = frozenset({self.offer.lead, *checkers})
        self._spool.adopt(path, COORDINATOR, blob.digest, blob.size_bytes, receivers)

    def _refused(self, error: ComityError) -> None:
        log.warning("sum.refused", run=self.offer.run, error=str(error))
