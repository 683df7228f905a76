"""A ceremony and rounds with real keys: pure machines, worker processes, files in memory, no network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.params import AGG_Q16, KEY_LIMBS
from comity_crypto.secagg.bfv.workers import BfvWorkers, memory_file
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.lead_key import aggregator, contributor
from comity_crypto.secagg.lead_key import events as encrypted
from comity_crypto.secagg.threshold import ceremony, keyholder
from comity_crypto.secagg.threshold import events as kev
from comity_crypto.secagg.threshold import lead as threshold_lead
from comity_crypto.secagg.threshold.keys import dealt_bytes
from comity_crypto.secagg.threshold.messages import KeyPlan, Opened, ThresholdOffer
from comity_crypto.secagg.threshold.workers import KeyWorkers, QuorumOf, share_piece_bytes

P = AGG_Q16
ORGS = ("org-00", "org-01", "org-02", "org-03")
SHA = hashlib.sha256(b"x").hexdigest()
ADDER, LEAD = "(adder)", "(lead)"
X = {"w": np.linspace(-1, 1, 20_000, dtype=np.float32).reshape(100, 200)}


@pytest.fixture
async def pool() -> AsyncIterator[BfvWorkers]:
    async with BfvWorkers(1) as made:
        yield made


def whole(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def filled(data: bytes) -> int:
    fd = memory_file("test")
    os.pwrite(fd, data, 0)
    return fd


@dataclass
class Held:
    """What one organisation keeps of a ceremony."""

    keys: tuple[str, ...] = ()
    public: list[bytes] = field(default_factory=list)
    shares: list[bytes] = field(default_factory=list)
    transcript: str = ""


@dataclass
class Ceremony:
    """Runs the machines of all holders; boxes are handed over open (sealing is the node's)."""

    work: KeyWorkers
    plan: KeyPlan
    wrong_dealer: str = ""
    states: dict[str, Any] = field(default_factory=dict)
    queue: list[tuple[str, Any]] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)
    own: dict[str, bytes] = field(default_factory=dict)
    crs: bytes = b""
    failures: dict[str, events.Failed] = field(default_factory=dict)

    async def run(self) -> Ceremony:
        for org in self.plan.holders:
            self.held[org] = Held()
            box_key = BoxKey().public
            self.states[org], out = ceremony.start(org, self.plan, box_key=box_key, entropy=os.urandom, now=0.0)
            await self.perform(org, out)
        while self.queue:
            org, event = self.queue.pop(0)
            self.states[org], out = ceremony.step(self.states[org], event, 1.0)
            await self.perform(org, out)
        return self

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.files[digest] = data
        return digest

    async def perform(self, me: str, out: list[Any]) -> None:
        plan, held = self.plan, self.held[me]
        for output in out:
            match output:
                case events.Send(message=message):
                    self.queue += [(org, events.Received(me, message)) for org in plan.holders if org != me]
                case kev.StartDraw(crs=crs):
                    self.crs = crs
                    self.drawn[me] = await self.work.draw(crs, plan.keys)
                    self.queue.append((me, kev.PublicSharesReady(self.keep(whole(self.drawn[me].public)))))
                case kev.StartCombine(shares=shown):
                    target = memory_file("keys")
                    sources = [filled(self.files[digest]) for _, digest in shown]
                    made = await self.work.combine(self.crs, plan.keys, sources, target)
                    data = whole(target)
                    held.public = [data[i * P.key_bytes : (i + 1) * P.key_bytes] for i in range(plan.keys)]
                    held.shares = self.split(whole(self.drawn[me].secret.fd))
                    self.queue.append((me, kev.KeysCombined(made)))
                case kev.StartDeal():
                    await self.deal(me)
                case kev.StartOpenBoxes(boxes=boxes, challenge=challenge):
                    await self.open(me, dict(boxes), challenge)
                case kev.StoreKeys(keys=keys, transcript=transcript):
                    held.keys, held.transcript = keys, transcript
                case events.Failed():
                    self.failures[me] = output
                case _:
                    pass

    def split(self, data: bytes) -> list[bytes]:
        size = share_piece_bytes(P)
        return [data[index * size : (index + 1) * size] for index in range(self.plan.keys)]

    async def deal(self, me: str) -> None:
        targets = [memory_file("dealt") for _ in self.plan.holders]
        await self.work.deal(self.plan.keys, self.plan.threshold, self.drawn[me].secret, targets)
        data = [whole(fd) for fd in targets]
        if me == self.wrong_dealer:
            data[2] = data[1]
        self.own[me] = data[self.plan.holders.index(me)]
        boxes = zip(self.plan.holders, data, strict=True)
        self.queue.append((me, kev.BoxesReady(tuple((org, self.keep(each)) for org, each in boxes if org != me))))

    async def open(self, me: str, boxes: dict[str, str], challenge: bytes) -> None:
        dealers = self.plan.holders
        sources = [filled(self.own[me] if org == me else self.files[boxes[org]]) for org in dealers]
        target = memory_file("share")
        values = await self.work.gather(self.plan.keys, challenge, sources, target)
        self.held[me].shares = self.split(whole(target))
        self.queue.append((me, kev.BoxesOpened(tuple(zip(dealers, values, strict=True)))))


def plan_for(n: int, threshold: int, number: int = 0) -> KeyPlan:
    return KeyPlan("agr-1", "run-1", number, ORGS[0], ORGS[:n], threshold, P.name, P.digest, 2)


async def made(pool: BfvWorkers, n: int, threshold: int) -> Ceremony:
    return await Ceremony(KeyWorkers(pool, P), plan_for(n, threshold)).run()


@dataclass
class Round:
    """One round under key `index` of a ceremony."""

    pool: BfvWorkers
    keys: Ceremony
    index: int
    liar: str = ""
    garbler: str = ""
    states: dict[str, Any] = field(default_factory=dict)
    queue: list[tuple[str, Any]] = field(default_factory=list)
    blobs: dict[str, int] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    ended: dict[str, Any] = field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    sums: Any = None
    encoded: dict[str, encoder.Encoded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plan, held = self.keys.plan, self.keys.held[ORGS[0]]
        self.work = KeyWorkers(self.pool, P)
        self.offer = ThresholdOffer(
            agreement="agr-1",
            run="run-1",
            step="train",
            round=self.index,
            attempt=0,
            lead=ORGS[0],
            parties=plan.holders,
            minimum=3,
            parameters=P.name,
            parameters_digest=P.digest,
            key_id=held.keys[self.index],
            order_digest=SHA,
            chunks=encoder.Layout.of(X).chunks,
            ceremony=plan.digest,
            transcript=held.transcript,
            holders=plan.holders,
            threshold=plan.threshold,
            openers=plan.holders[:1],
            box_key=BoxKey().public,
        )

    async def run(self) -> Round:
        offer = self.offer
        self.states[LEAD], _ = threshold_lead.start(offer, now=0.0)
        self.states[ADDER], _ = aggregator.start(offer, now=0.0)
        for place, org in enumerate(offer.parties):
            y = {"w": X["w"] + np.float32(0.01 * (place + 1))}
            self.encoded[org] = encoder.encode(X, y, 60_000, 100.0, 0.5, bytes([place]) * 32)
            public = self.keys.held[org].public[self.index]
            contributor.check_public_key(offer, public)
            self.states[f"{org}/key"], _ = keyholder.start(org, offer, now=0.0)
            self.states[org], out = contributor.start(
                org, offer, order_digest=SHA, chunks=offer.chunks, box_key=BoxKey(), entropy=os.urandom, now=0.0
            )
            await self.perform(org, out)
            self.queue.append((org, events.ValuesReady(self.encoded[org].digest)))
        while self.queue:
            target, event = self.queue.pop(0)
            machine: Any = {LEAD: threshold_lead, ADDER: aggregator}.get(target, contributor)
            machine = keyholder if target.endswith("/key") else machine
            try:
                self.states[target], out = machine.step(self.states[target], event, 1.0)
            except ComityError:
                continue
            await self.perform(target, out)
        return self

    def keep(self, fd: int) -> events.BlobReady:
        data = whole(fd)
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = fd
        return events.BlobReady(digest, len(data))

    async def perform(self, me: str, out: list[Any]) -> None:
        org = me.removesuffix("/key")
        for output in out:
            match output:
                case events.Send(message=message):
                    self.send(me, org, message)
                case encrypted.StartEncrypt(pairs=pairs):
                    fd, public = memory_file("upload"), self.keys.held[org].public[self.index]
                    await self.pool.encrypt(P, public, self.encoded[org].slots, pairs, fd)
                    self.queue.append((me, self.keep(fd)))
                case events.StartUpload(digest=digest, size_bytes=size):
                    self.queue.append((ADDER, events.UploadStored(me, digest, size)))
                    self.blobs[f"upload {me}"] = self.blobs[digest]
                case events.StartAdd(orgs=orgs):
                    fd = memory_file("aggregate")
                    await self.pool.add(P, self.offer.chunks, [self.blobs[f"upload {each}"] for each in orgs], fd)
                    self.queue.append((ADDER, self.keep(fd)))
                case encrypted.StartDigest(challenge=challenge, digest=digest):
                    kind = BlobKind.AGGREGATE if me.endswith("/key") else BlobKind.UPLOAD
                    found = await self.pool.digest(P, kind, self.offer.chunks, challenge, self.blobs[digest])
                    self.queue.append((me, encrypted.DigestReady(found)))
                case kev.StartShare(call=call, members=members):
                    self.queue.append((me, await self.share(org, call, members)))
                case kev.StartFuse():
                    self.queue.append((me, await self.fuse(output)))
                case kev.Suspected(orgs=orgs):
                    self.suspects = orgs
                case events.EraseKey():
                    self.erased.add(org)
                case events.Finished() | events.Failed():
                    self.ended[me] = output
                case _:
                    pass

    async def share(self, org: str, call: str, members: tuple[str, ...]) -> kev.ShareMade:
        offer, fd = self.offer, memory_file("share")
        aggregate = self.blobs[self.states[LEAD].seen.notice.aggregate]
        of = QuorumOf(offer.point(org), tuple(map(offer.point, members)), offer.threshold, len(offer.holders))
        held = filled(self.keys.held[org].shares[self.index])
        await self.work.share(offer.chunks, of, held, aggregate, fd)
        if org == self.liar:  # a share of another key: every byte of it is well formed
            await self.work.share(offer.chunks, of, filled(self.keys.held[org].shares[1 - self.index]), aggregate, fd)
        if org == self.garbler:
            os.ftruncate(fd, os.fstat(fd).st_size - 1)
        return kev.ShareMade(call, self.keep(fd).digest)

    async def fuse(self, job: kev.StartFuse) -> Any:
        aggregate = self.blobs[self.states[LEAD].seen.notice.aggregate]
        for org, digest in job.shares:
            size = os.fstat(self.blobs[digest]).st_size
            if size != self.blob_size:
                return kev.ShareRefused(org, job.call, ComityError(ErrorCode.CIPHERTEXT_INVALID))
        slots = await self.work.fuse(self.offer.chunks, aggregate, [self.blobs[digest] for _, digest in job.shares])
        try:
            self.sums = encoder.decode(slots, job.contributors, X, 0.5)
        except ComityError:
            return kev.QuorumFailed(job.call)
        return kev.SumOpened(job.call, SHA)

    @property
    def blob_size(self) -> int:
        return 64 + self.offer.chunks * share_piece_bytes(P)

    def send(self, me: str, source: str, message: Any) -> None:
        machines = [*self.offer.parties, *(f"{org}/key" for org in self.offer.parties), LEAD, ADDER]
        for target in machines:
            if target == me:
                continue
            if me != ADDER:
                event: Any = events.Received(self.offer.lead if me == LEAD else source, message)
            elif target == ADDER:
                continue
            else:
                roster = message.KIND == "secagg.roster"
                event = events.RosterProposed(message) if roster else events.AggregatePublished(message)
            self.queue.append((target, event))

    def expected(self) -> np.ndarray:
        """The mean of what was encoded, from the slots themselves."""
        slots = sum(item.slots for item in self.encoded.values())
        return encoder.decode(slots, len(self.encoded), X, 0.5).arrays["w"]


@pytest.mark.parametrize(("n", "threshold"), [(3, 3), (3, 2), (4, 3)])
async def test_a_batch_of_keys_opens_its_rounds_exactly(pool: BfvWorkers, n: int, threshold: int) -> None:
    keys = await made(pool, n, threshold)
    assert keys.failures == {}
    held = list(keys.held.values())
    assert {item.keys for item in held} == {held[0].keys}
    assert {item.transcript for item in held} == {held[0].transcript}
    assert len(set(held[0].keys)) == 2
    for index in range(2):
        found = await Round(pool, keys, index).run()
        assert isinstance(found.ended[LEAD], events.Finished)
        assert np.array_equal(found.sums.arrays["w"], found.expected())
        assert np.abs(found.sums.arrays["w"] - X["w"]).max() < 0.01 * n + 1e-3
        assert found.erased == set(ORGS[:n])
        assert found.suspects == ()


@pytest.mark.parametrize("liar", ["org-00", "org-01"])
async def test_a_share_of_another_key_is_named_and_the_sum_is_exact(pool: BfvWorkers, liar: str) -> None:
    found = await Round(pool, await made(pool, 3, 2), 0, liar=liar).run()
    assert isinstance(found.ended[LEAD], events.Finished)
    assert found.suspects == (liar,)
    assert np.array_equal(found.sums.arrays["w"], found.expected())
    assert found.erased == set(ORGS[:3])


async def test_where_everybody_is_needed_a_wrong_share_ends_the_round_without_a_name(pool: BfvWorkers) -> None:
    found = await Round(pool, await made(pool, 3, 3), 0, liar="org-02").run()
    failed = found.ended[LEAD]
    assert isinstance(failed, events.Failed)
    assert (failed.error.code, failed.missing) == (ErrorCode.BAD_SHARE, ())
    assert found.sums is None
    assert found.erased == set(ORGS[:3])


async def test_a_share_that_is_cut_short_names_its_holder(pool: BfvWorkers) -> None:
    found = await Round(pool, await made(pool, 3, 3), 1, garbler="org-01").run()
    failed = found.ended[LEAD]
    assert (failed.error.code, failed.missing) == (ErrorCode.BAD_SHARE, ("org-01",))


async def test_a_dealer_whose_boxes_do_not_fit_is_named_by_all(pool: BfvWorkers) -> None:
    keys = await Ceremony(KeyWorkers(pool, P), plan_for(4, 3), wrong_dealer="org-01").run()
    assert set(keys.failures) == set(ORGS)
    found = [failed.error for failed in keys.failures.values() if failed.error.facts.get("org") == "org-01"]
    assert found
    assert all(error.code is ErrorCode.BAD_SHARE for error in found)
    assert all(not item.keys for item in keys.held.values())


async def test_strangers_files_are_refused_with_their_place(pool: BfvWorkers) -> None:
    work, target = KeyWorkers(pool, P), memory_file("out")
    for dealt, size in ((False, P.poly_bytes(KEY_LIMBS)), (True, dealt_bytes(P))):
        for bad in (b"", bytes(size - 1), bytes(size + 1), b"\xff" * size):
            fds = [filled(bytes(size)), filled(bad), filled(bytes(size))]
            job = work.gather(1, bytes(32), fds, target) if dealt else work.combine(bytes(32), 1, fds, target)
            with pytest.raises(ComityError) as caught:
                await job
            assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID
            assert caught.value.facts["holder"] == 1


async def test_strangers_shares_and_aggregates_are_refused_before_any_arithmetic(pool: BfvWorkers) -> None:
    found = await Round(pool, await made(pool, 3, 3), 0).run()
    offer, work = found.offer, found.work
    aggregate = found.blobs[found.states[LEAD].seen.notice.aggregate]
    share = next(fd for digest, fd in found.blobs.items() if os.fstat(fd).st_size == found.blob_size)
    other = bytearray(whole(share))
    other[48] = BlobKind.UPLOAD
    high = whole(share)[:64] + b"\xff" * (found.blob_size - 64)
    for bad in (b"", whole(share)[:-1], whole(share) + b"\0", bytes(other), high, whole(aggregate)):
        with pytest.raises(ComityError) as caught:
            await work.fuse(offer.chunks, aggregate, [share, filled(bad), share])
        assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID
    of, held = QuorumOf(1, (1, 2, 3), 3, 3), filled(found.keys.held[ORGS[0]].shares[0])
    for bad in (b"", whole(aggregate)[:-1], whole(share)):
        with pytest.raises(ComityError) as caught:
            await work.share(offer.chunks, of, held, filled(bad), memory_file("out"))
        assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


def test_opened_names_suspects_or_nobody() -> None:
    for suspects in ([], ["org-01"], ["org-01", "org-02"]):
        body = {"session": SHA, "notice": SHA, "suspects": suspects, "call": SHA, "sum": SHA}
        assert Opened.from_json(body).suspects == tuple(suspects)
