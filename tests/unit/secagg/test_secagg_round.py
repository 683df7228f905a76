"""One whole round with real keys, real boxes and real TenSEAL workers, and what happens when bytes are changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers, RoundKey, memory_file
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame import replies as shared
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.lead_key import aggregator, contributor, holder
from comity_crypto.secagg.lead_key import events as encrypted
from comity_crypto.secagg.lead_key.messages import Offer, parse_message

ORDER = hashlib.sha256(b"order").hexdigest()
PARTIES = ("clinic-a", "clinic-b", "clinic-c")
CLIP = 8.0


@pytest.fixture
async def workers() -> AsyncIterator[BfvWorkers]:
    async with BfvWorkers(2) as pool:
        yield pool


@dataclass
class Rig:
    """All parties of one session in one place; a straight queue in place of the network."""

    workers: BfvWorkers
    folder: Path
    key: RoundKey
    offer: Offer
    encoded: dict[str, encoder.Encoded]
    replies: dict[str, Any]
    x: dict[str, Any]
    value_range: float
    tamper_aggregate: bool = False
    drop_upload: str = ""
    parties: dict[str, contributor.ContributorState] = field(default_factory=dict)
    boss: holder.HolderState = field(init=False)
    adder: aggregator.AggregatorState = field(init=False)
    files: dict[str, int] = field(default_factory=dict)
    queue: list[tuple[str, events.Event]] = field(default_factory=list)
    releases: dict[str, events.Release] = field(default_factory=dict)
    failures: dict[str, events.Failed] = field(default_factory=dict)
    result: shared.Decoded | None = None

    async def run(self) -> None:
        self.boss, _ = holder.start(self.offer, now=0.0)
        self.adder, _ = aggregator.start(self.offer, now=0.0)
        for org in self.offer.parties:
            contributor.check_public_key(self.offer, self.key.public)
            state, outputs = contributor.start(
                org,
                self.offer,
                order_digest=ORDER,
                chunks=self.offer.chunks,
                box_key=BoxKey(),
                entropy=os.urandom,
                now=0.0,
            )
            self.parties[org] = state
            values = hashlib.sha256(self.encoded[org].slots.tobytes()).hexdigest()
            self.queue.append((org, events.ValuesReady(values)))
            await self.perform(org, outputs)
        for _ in range(2000):
            if not self.queue:
                return
            target, event = self.queue.pop(0)
            await self.deliver(target, event)
        raise AssertionError("the session does not end")

    async def deliver(self, target: str, event: events.Event) -> None:
        outputs: list[events.Output]
        if target == "adder":
            self.adder, outputs = aggregator.step(self.adder, event, 1.0)
        elif target == "boss":
            self.boss, outputs = holder.step(self.boss, event, 1.0)
        else:
            self.parties[target], outputs = contributor.step(self.parties[target], event, 1.0)
        await self.perform(target, outputs)

    async def perform(self, me: str, outputs: list[events.Output]) -> None:
        for output in outputs:
            match output:
                case events.Send(message=message):
                    self.send(me, output.to, parse_message(message.KIND, message.to_json()))
                case encrypted.StartEncrypt(pairs=pairs):
                    fd = self.open(me)
                    blob = await self.workers.encrypt(AGG_Q16, self.key.public, self.encoded[me].slots, pairs, fd)
                    self.queue.append((me, blob))
                case events.RecordRelease(release=release):
                    self.releases[me] = release
                case events.StartUpload(digest=digest, size_bytes=size):
                    assert me in self.releases, "journalled before it leaves"
                    if me != self.drop_upload:
                        self.queue.append(("adder", events.UploadStored(me, digest, size)))
                case events.StartAdd(orgs=orgs):
                    fds = [self.files[org] for org in orgs]
                    if self.tamper_aggregate:
                        fds[-1] = fds[0]
                    fd = self.open("aggregate")
                    self.queue.append(("adder", await self.workers.add(AGG_Q16, self.offer.chunks, fds, fd)))
                case encrypted.StartDigest(challenge=challenge, digest=digest):
                    await self.digest(me, challenge, digest)
                case encrypted.StartDecrypt(contributors=count):
                    fd = self.files["aggregate"]
                    sums = await self.workers.decrypt(AGG_Q16, self.offer.chunks, self.key.secret, fd)
                    self.result = encoder.decode(sums, count, self.x, self.value_range, numbers=1)
                    self.queue.append((me, events.SumDecoded()))
                case events.EraseKey():
                    self.key.secret.erase()
                case events.Failed():
                    self.failures[me] = output
                case _:
                    pass

    def send(self, me: str, to: events.Audience, message: Any) -> None:
        everyone = [*self.offer.parties, "boss", "adder"] if to is events.Audience.ALL else ["boss"]
        for target in everyone:
            if me == "adder":
                if target != "adder":
                    kind = events.RosterProposed if message.KIND == "secagg.roster" else events.AggregatePublished
                    self.queue.append((target, kind(message)))
            elif target != me:
                issuer = self.offer.lead if me == "boss" else me
                self.queue.append((target, events.Received(issuer, message)))

    async def digest(self, me: str, challenge: bytes, digest: str) -> None:
        chunks = self.offer.chunks
        if me == "boss":
            fd = self.files["aggregate"]
            values = await self.workers.check_and_digest(AGG_Q16, chunks, challenge, digest, fd)
        else:
            values = await self.workers.digest(AGG_Q16, BlobKind.UPLOAD, chunks, challenge, self.files[me])
        self.queue.append((me, encrypted.DigestReady(values)))

    def open(self, name: str) -> int:
        self.files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        return self.files[name]


@pytest.fixture
async def make_rig(workers: BfvWorkers, tmp_path: Path) -> AsyncIterator[Any]:
    with ExitStack() as stack:

        async def make(values: int = 40_000) -> Rig:
            rng = np.random.default_rng(7)
            x = {
                "w": rng.standard_normal((values // 100, 100)).astype(np.float32),
                "b": rng.standard_normal(7).astype(np.float64),
            }
            bounds = shared.Bounds.default(CLIP, values + 7)
            layout = encoder.Layout.of(x, 1)
            key = await workers.make_key(AGG_Q16)
            offer = Offer(
                agreement="agr-1",
                run="run-1",
                step="train",
                round=3,
                attempt=0,
                lead="clinic-b",
                parties=PARTIES,
                minimum=3,
                parameters=AGG_Q16.name,
                parameters_digest=AGG_Q16.digest,
                key_id=key.key_id,
                order_digest=ORDER,
                chunks=layout.chunks,
            )
            encoded, replies = {}, {}
            for index, org in enumerate(PARTIES):
                y = {
                    name: array + rng.standard_normal(array.shape).astype(array.dtype) / 50 for name, array in x.items()
                }
                encoded[org] = encoder.encode(
                    x,
                    y,
                    shared.weight_of(100 * (index + 1), 1000, 1000),
                    bounds.clip_norm,
                    bounds.value_range,
                    hashlib.sha256(org.encode()).digest(),
                    numbers=[900 - 100 * index],
                )
                replies[org] = y
            rig = Rig(workers, tmp_path, key, offer, encoded, replies, x, bounds.value_range)
            stack.callback(lambda: [os.close(fd) for fd in rig.files.values()])
            return rig

        yield make


async def test_the_lead_gets_the_weighted_mean_and_nobody_anything_else(make_rig: Any) -> None:
    rig: Rig = await make_rig()
    await rig.run()
    assert not rig.failures
    assert rig.result is not None
    weights = {org: rig.encoded[org].weight / shared.WEIGHT_ONE for org in PARTIES}
    total = sum(weights.values())
    step = rig.value_range / encoder.LEVELS
    for name, array in rig.x.items():
        deltas = [weights[org] * (rig.replies[org][name].astype(np.float64) - array) for org in PARTIES]
        plain = array + sum(deltas) / total
        assert np.abs(rig.result.arrays[name] - plain).max() <= len(PARTIES) * step / total + 1e-6
        assert rig.result.arrays[name].dtype == array.dtype
    assert rig.result.weighed == (sum(rig.encoded[org].weight * (900 - 100 * i) for i, org in enumerate(PARTIES)),)
    assert repr(rig.key.secret) == "SecretKey(erased)"
    assert rig.boss.phase == "done"
    assert all(state.phase == "done" for state in rig.parties.values())


async def test_a_single_upload_decrypts_to_noise(make_rig: Any, workers: BfvWorkers) -> None:
    rig: Rig = await make_rig(4000)
    rig.boss, _ = holder.start(rig.offer, now=0.0)
    secret, erase = rig.key.secret, rig.key.secret.erase
    rig.key.secret.erase = lambda: None  # type: ignore[method-assign] - a lead that keeps its key
    await rig.run()
    with_key = os.open(rig.folder / "one", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        await workers.add(AGG_Q16, rig.offer.chunks, [rig.files["clinic-a"]], with_key)
        one = await workers.decrypt(AGG_Q16, rig.offer.chunks, secret, with_key)
        assert np.mean(one == rig.encoded["clinic-a"].slots) < 0.001
    finally:
        os.close(with_key)
        erase()


async def test_a_coordinator_that_adds_another_set_is_caught(make_rig: Any) -> None:
    rig: Rig = await make_rig(4000)
    rig.tamper_aggregate = True
    await rig.run()
    assert rig.result is None
    assert rig.failures["boss"].error.code is ErrorCode.SUM_MISMATCH
    assert repr(rig.key.secret) == "SecretKey(erased)"


async def test_a_missing_upload_ends_the_session_with_its_name(make_rig: Any) -> None:
    rig: Rig = await make_rig(4000)
    rig.drop_upload = "clinic-c"
    await rig.run()
    assert rig.result is None
    rig.adder, outputs = aggregator.step(rig.adder, events.Tick(), 1e9)
    assert outputs[0].missing == ("clinic-c",)  # type: ignore[union-attr]


async def test_an_aggregate_that_is_not_the_announced_one_is_refused(make_rig: Any, workers: BfvWorkers) -> None:
    rig: Rig = await make_rig(4000)
    await rig.run()
    notice = rig.adder.seen.notice
    assert notice is not None
    os.pwrite(rig.files["aggregate"], b"\x01", 5000)
    with pytest.raises(ComityError) as caught:
        await workers.check_and_digest(
            AGG_Q16, rig.offer.chunks, notice.challenge, notice.aggregate, rig.files["aggregate"]
        )
    assert caught.value.code is ErrorCode.PAYLOAD_DIGEST


async def test_a_worker_that_was_killed_is_replaced(workers: BfvWorkers) -> None:
    await workers.warm(AGG_Q16)
    pids = [worker._process.pid for worker in workers._idle]
    assert len(pids) == 2
    for worker in workers._idle:
        worker._process.kill()
        worker._process.wait()
    key = await workers.make_key(AGG_Q16)
    key.secret.erase()
    job = asyncio.create_task(workers.make_key(AGG_Q16))
    await asyncio.sleep(0)
    for worker in [*workers._idle]:
        worker._process.kill()
    with suppress(ComityError):
        (await job).secret.erase()
    assert not {worker._process.pid for worker in workers._idle} & set(pids)


async def test_a_job_that_is_late_or_loses_its_process_says_so(workers: BfvWorkers) -> None:
    key = await workers.make_key(AGG_Q16)
    slots = np.zeros((300, AGG_Q16.ring_degree), np.uint64)
    pairs = [encrypted.PairSeed(adds=True, seed=bytes(32)), encrypted.PairSeed(adds=False, seed=bytes(32))]
    fd = memory_file("out")
    try:
        workers._timeout_s = 0.05
        with pytest.raises(ComityError) as caught:
            await workers.encrypt(AGG_Q16, key.public, slots, pairs, fd)
        assert caught.value.code is ErrorCode.WORKER_TIMEOUT
        workers._timeout_s = 30.0
        async with BfvWorkers(1, memory_bytes=1 << 20) as poor:
            with pytest.raises(ComityError) as caught:
                await poor.encrypt(AGG_Q16, key.public, slots, pairs, fd)
            assert caught.value.code in (ErrorCode.WORKER_DIED, ErrorCode.INTERNAL)
    finally:
        os.close(fd)
        key.secret.erase()


async def test_a_worker_survives_bad_bytes_and_a_cancelled_job_ends_its_process(workers: BfvWorkers) -> None:
    key = await workers.make_key(AGG_Q16)
    slots = np.zeros((400, AGG_Q16.ring_degree), np.uint64)
    pairs = [encrypted.PairSeed(adds=True, seed=bytes(32)), encrypted.PairSeed(adds=False, seed=bytes(32))]
    fd = memory_file("out")
    try:
        with pytest.raises(ComityError) as caught:
            await workers.encrypt(AGG_Q16, b"\xff" * AGG_Q16.key_bytes, slots[:1], pairs, fd)
        assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID
        job = asyncio.create_task(workers.encrypt(AGG_Q16, key.public, slots, pairs, fd))
        await asyncio.sleep(0.2)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert (await workers.encrypt(AGG_Q16, key.public, slots[:2], pairs, fd)).size_bytes > 2 * AGG_Q16.chunk_bytes
    finally:
        os.close(fd)
        key.secret.erase()


def test_importing_the_machines_and_the_pool_loads_no_tenseal() -> None:
    names = ("bfv.encoder", "bfv.workers", "lead_key.contributor", "lead_key.aggregator", "lead_key.holder")
    imports = "; ".join(f"import comity_crypto.secagg.{name}" for name in names)
    code = f"import sys; {imports}; sys.exit('tenseal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
