"""Ceremonies at this node: the machine of `comity_crypto.secagg.threshold.ceremony` with workers, spool and boxes.

Rules:
1. Bulk travels by its hash, which a signed message fixes; what comes is compared before it is used.
2. Parts, boxes and box keys live in memory; of a ceremony that fails nothing is kept. A node that dies in one begins
   anew with the next.
3. A batch is on disk before anything can be said under its keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import KEY_LIMBS
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.frame.driver import Driver
from comity_crypto.secagg.frame.events import EraseKey, Event, Failed, Output, Send
from comity_crypto.secagg.spoken import AnyOffer
from comity_crypto.secagg.threshold import ceremony
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_crypto.secagg.threshold.boxes import box_bytes, open_dealt, seal_dealt
from comity_crypto.secagg.threshold.ceremony import CeremonyState
from comity_crypto.secagg.threshold.events import (
    BoxesOpened,
    BoxesReady,
    KeysCombined,
    PublicSharesReady,
    StartCombine,
    StartDeal,
    StartDraw,
    StartOpenBoxes,
    StartShow,
    StoreKeys,
)
from comity_crypto.secagg.threshold.messages import KeyPlan
from comity_crypto.secagg.threshold.workers import Drawn, KeyWorkers, share_piece_bytes
from comity_node.training.profiles.sum_exchange import Exchange, Said
from comity_node.training.profiles.sum_holding import refused
from comity_node.training.profiles.sum_wire import Addressed
from comity_node.training.profiles.threshold_keeping import KeyKeeping

STEP_S = 60.0
PAUSE_S = 0.1
# Ceremonies of one node at a time; a run has one or two under way.
CEREMONIES_MAX = 8

log = structlog.get_logger("comity.node.training")


class Ceremonies:
    """All ceremonies of this node. `begin` one, `settled` waits for it, `close` at the end."""

    def __init__(self, exchange: Exchange, keeping: KeyKeeping) -> None:
        self._exchange = exchange
        self._keeping = keeping
        self._tasks: dict[str, asyncio.Task[KeyBatch]] = {}
        self._said: list[Said] = []

    def begin(self, plan: KeyPlan) -> asyncio.Task[KeyBatch]:
        """Take part in a ceremony; one that is known goes on. Raises `BUSY` beyond `CEREMONIES_MAX`."""
        found = self._tasks.get(plan.digest)
        if found is not None:
            return found
        for digest in [digest for digest, task in self._tasks.items() if task.done()][:-CEREMONIES_MAX]:
            del self._tasks[digest]
        if sum(not task.done() for task in self._tasks.values()) >= CEREMONIES_MAX:
            raise ComityError(ErrorCode.BUSY, "too many ceremonies are under way")
        task = asyncio.create_task(_Ceremony(self._exchange, self._keeping, plan, self._said).run(), name=plan.run)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tasks[plan.digest] = task
        return task

    def under_way(self, run: str) -> bool:
        """Tell whether keys for a run are being made here."""
        return any(not task.done() and task.get_name() == run for task in self._tasks.values())

    async def settled(self, ceremony_digest: str) -> None:
        """Wait for the end of a ceremony that is under way here; it has its own deadlines."""
        task = self._tasks.get(ceremony_digest)
        if task is not None:
            with contextlib.suppress(ComityError):
                await asyncio.shield(task)

    async def close(self) -> None:
        """End all."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        for said in self._said:
            said.end()


class _Ceremony:
    """One ceremony: performs its machine's outputs."""

    def __init__(self, exchange: Exchange, keeping: KeyKeeping, plan: KeyPlan, ended: list[Said]) -> None:
        """`ended` gets what was said in a ceremony that ended well: the others may still need its last words."""
        self._exchange = exchange
        self._keeping = keeping
        self._plan = plan
        self._ended = ended
        self._work = KeyWorkers(exchange.workers, plan.parameter_set)
        self._box_key = BoxKey()
        self._crs = b""
        self._drawn: Drawn | None = None
        self._own_box = b""
        self._public: list[bytes] = []
        self._shares: list[bytes] = []
        self._sending: list[asyncio.Task[None]] = []
        self._files: list[Path] = []
        self._driver: Driver[CeremonyState]
        self._said: Said

    async def run(self) -> KeyBatch:
        """Run to the end. Raises what ended it."""
        exchange, plan = self._exchange, self._plan
        state, outputs = ceremony.start(
            exchange.me, plan, box_key=self._box_key.public, entropy=os.urandom, now=time.monotonic(), step_s=STEP_S
        )
        # A plan is heard and said as an offer is: by digest, run, parties and lead, which it has.
        spoken = cast(AnyOffer, plan)
        self._said = Said(exchange, spoken)
        self._driver = Driver(state, ceremony.step, self._perform, refused)
        silence = exchange.listen(spoken, self._driver.tell)
        try:
            if exchange.me == plan.lead:
                await self._said.say_offer()
            ended = await self._driver.run(outputs)
            if isinstance(ended, Failed):
                raise ended.error
            await asyncio.gather(*self._sending)
            self._ended.append(self._said)
            while len(self._ended) > CEREMONIES_MAX:
                self._ended.pop(0).end()
            asyncio.get_running_loop().call_later(2 * STEP_S, self._said.end)
            return KeyBatch.of(self._driver.state)
        except BaseException:  # also a cancelled ceremony ends its subscriptions
            self._said.end()
            raise
        finally:
            silence()
            self._close()

    def _close(self) -> None:
        for task in self._sending:
            task.cancel()
        for path in self._files:
            path.unlink(missing_ok=True)
        if self._drawn is not None:
            self._drawn.secret.erase()
            os.close(self._drawn.public)
            self._drawn = None
        self._shares, self._own_box = [], b""

    async def _perform(self, output: Output) -> None:
        match output:
            case Send(to=to, message=message):
                await self._said.say(to, message, but=self._driver.tell)
            case StartDraw(crs=crs):
                self._driver.work(self._draw(crs))
            case StartShow(digest=digest):
                assert self._drawn is not None, "what is shown was drawn"
                self._send(digest, _whole(self._drawn.public), [org for org in self._plan.holders if org != self._me])
            case StartCombine(shares=shares):
                self._driver.work(self._combine(shares))
            case StartDeal(box_keys=box_keys):
                self._driver.work(self._deal(box_keys))
            case StartOpenBoxes(boxes=boxes, challenge=challenge):
                self._driver.work(self._open(boxes, challenge))
            case StoreKeys(keys=keys, transcript=transcript):
                await self._keeping.put(KeyBatch(self._plan, keys, transcript), self._public, self._shares)
            case EraseKey():
                if self._drawn is not None:
                    self._drawn.secret.erase()
            case _:
                pass

    @property
    def _me(self) -> str:
        return self._exchange.me

    async def _draw(self, crs: bytes) -> Event:
        self._crs = crs
        self._drawn = await self._work.draw(crs, self._plan.keys)
        return PublicSharesReady(hashlib.sha256(_whole(self._drawn.public)).hexdigest())

    async def _combine(self, shares: Iterable[tuple[str, str]]) -> Event:
        plan, parameters = self._plan, self._plan.parameter_set
        drawn = self._drawn
        assert drawn is not None, "what is combined was drawn"
        size = plan.keys * parameters.poly_bytes(KEY_LIMBS)
        fds = [memory_file("keys")]
        try:
            for org, digest in shares:
                data = _whole(drawn.public) if org == self._me else await self._fetch(org, digest, size)
                fds.insert(len(fds) - 1, _filled(data))
            made = await self._work.combine(self._crs, plan.keys, fds[:-1], fds[-1])
            public = _whole(fds[-1])
        finally:
            _closed(fds)
        step = parameters.key_bytes
        self._public = [public[index * step : (index + 1) * step] for index in range(plan.keys)]
        if not plan.deals:
            self._shares = self._split(_whole(drawn.secret.fd))
        return KeysCombined(made)

    async def _deal(self, box_keys: tuple[tuple[str, bytes], ...]) -> Event:
        plan, public = self._plan, dict(box_keys)
        assert self._drawn is not None, "what is dealt was drawn"
        fds = [memory_file("dealt") for _ in plan.holders]
        try:
            await self._work.deal(plan.keys, plan.threshold, self._drawn.secret, fds)
            dealt = dict(zip(plan.holders, [_whole(fd) for fd in fds], strict=True))
        finally:
            _closed(fds)
        self._drawn.secret.erase()
        self._own_box = dealt.pop(self._me)
        boxes = []
        for org, data in dealt.items():
            box = seal_dealt(plan, self._me, org, public[org], data)
            digest = hashlib.sha256(box).hexdigest()
            self._send(digest, box, [org])
            boxes.append((org, digest))
        return BoxesReady(tuple(boxes))

    async def _open(self, boxes: tuple[tuple[str, str], ...], challenge: bytes) -> Event:
        plan, digests = self._plan, dict(boxes)
        fds = [memory_file("share")]
        try:
            for org in plan.holders:
                data = self._own_box
                if org != self._me:
                    box = await self._fetch(org, digests[org], box_bytes(plan))
                    data = open_dealt(plan, org, self._me, self._box_key, box)
                fds.insert(len(fds) - 1, _filled(data))
            values = await self._work.gather(plan.keys, challenge, fds[:-1], fds[-1])
            self._shares = self._split(_whole(fds[-1]))
        finally:
            _closed(fds)
        return BoxesOpened(tuple(zip(plan.holders, values, strict=True)))

    def _split(self, data: bytes) -> list[bytes]:
        size = share_piece_bytes(self._plan.parameter_set)
        return [data[index * size : (index + 1) * size] for index in range(self._plan.keys)]

    def _send(self, digest: str, data: bytes, receivers: list[str]) -> None:
        """Put a file into the spool beside everything else."""
        path = self._exchange.node.settings.payloads_folder / f".ceremony-{digest[:32]}"
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        self._files.append(path)
        self._sending.append(asyncio.create_task(self._put(path, Addressed(digest, len(data)), tuple(receivers))))

    async def _put(self, path: Path, ref: Addressed, receivers: tuple[str, ...]) -> None:
        while True:  # bounded by the ceremony, whose end cancels this
            try:
                await self._exchange.node.payloads.put(path, ref, receivers)
                return
            except ComityError as error:
                log.warning("ceremony.waiting", run=self._plan.run, error=str(error))
                await asyncio.sleep(PAUSE_S)

    async def _fetch(self, org: str, digest: str, size: int) -> bytes:
        """Return what a holder committed to, once it is there. Raises `PAYLOAD_DIGEST` naming the holder."""
        while True:  # bounded by the step's deadline, whose end cancels this job
            data = bytearray()
            try:
                async for chunk in self._exchange.node.payloads.get(Addressed(digest, size)):
                    data += chunk
            except ComityError as error:
                if error.code not in (ErrorCode.PAYLOAD_MISSING, ErrorCode.PAYLOAD_TRUNCATED, ErrorCode.UNAVAILABLE):
                    raise
                await asyncio.sleep(PAUSE_S)
                continue
            if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                raise ComityError(ErrorCode.PAYLOAD_DIGEST, "a holder's file is not what it committed to", org=org)
            return bytes(data)


def _whole(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _filled(data: bytes) -> int:
    fd = memory_file("ceremony")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _closed(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
