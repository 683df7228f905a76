"""A network for the three machines without any cryptographic work: jobs answer at once with stand-in digests.

The machines are pure, so time, order, loss, repetition and forgery are all in the hands of the test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES, sum_digests
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame.boxes import BoxKey
from comity_crypto.secagg.lead_key import aggregator, contributor, holder
from comity_crypto.secagg.lead_key import events as encrypted
from comity_crypto.secagg.lead_key.messages import Offer, parse_message

ADDER, BOSS = "(adder)", "(boss)"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def offer_for(n: int, **changes: Any) -> Offer:
    parties = tuple(f"org-{index:02d}" for index in range(n))
    base = Offer(
        agreement="agr-1",
        run="run-1",
        step="train",
        round=1,
        attempt=0,
        lead=parties[0],
        parties=parties,
        minimum=3,
        parameters=AGG_Q16.name,
        parameters_digest=AGG_Q16.digest,
        key_id=sha("key"),
        order_digest=sha("order"),
        chunks=2,
    )
    return replace(base, **changes)


def stand_in(challenge: bytes, upload: str) -> tuple[int, ...]:
    seed = hashlib.sha256(challenge + upload.encode()).digest()
    return tuple(int.from_bytes(hashlib.sha256(seed + bytes([i])).digest()[:6], "big") for i in range(DIGEST_VALUES))


@dataclass
class Network:
    offer: Offer
    previous: dict[str, events.Release] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    lost: Callable[[str, str, Any], bool] = lambda target, source, message: False
    forge: Callable[[str, str, Any], Any] = lambda target, source, message: message
    honest_sum: bool = True
    states: dict[str, Any] = field(default_factory=dict)
    queue: list[tuple[str, events.Event]] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    refused: list[ComityError] = field(default_factory=list)

    def start(self) -> Network:
        self.states[BOSS], _ = holder.start(self.offer, now=0.0)
        self.states[ADDER], _ = aggregator.start(self.offer, now=0.0)
        for number, org in enumerate(self.offer.parties):
            self.states[org], out = contributor.start(
                org,
                self.offer,
                order_digest=self.offer.order_digest,
                chunks=self.offer.chunks,
                box_key=BoxKey(),
                entropy=lambda size, number=number: bytes([number]) * size,
                now=0.0,
                previous=self.previous.get(org),
            )
            self.perform(org, out)
            self.queue.append((org, events.ValuesReady(self.values.get(org, sha(f"values {org}")))))
        return self

    def run(
        self, pick: Callable[[int], int] = lambda waiting: 0, repeat: Callable[[], bool] = lambda: False
    ) -> Network:
        for _ in range(20_000):
            if not self.queue:
                return self
            target, event = self.queue.pop(pick(len(self.queue)))
            if repeat():
                self.queue.append((target, event))
            self.deliver(target, event)
        raise AssertionError("the session does not end")

    def deliver(self, target: str, event: events.Event, now: float = 1.0) -> None:
        machine = {BOSS: holder, ADDER: aggregator}.get(target, contributor)
        before = self.states[target]
        try:
            self.states[target], out = machine.step(before, event, now)
        except ComityError as error:
            assert self.states[target] is before, "a refused event leaves the state alone"
            self.refused.append(error)
            return
        self.perform(target, out)

    def tick(self, now: float = 1e9) -> None:
        for target in list(self.states):
            self.deliver(target, events.Tick(), now)

    def perform(self, me: str, out: list[events.Output]) -> None:
        self.outputs.setdefault(me, []).extend(out)
        for output in out:
            match output:
                case events.Send(to=to, message=message):
                    self.send(me, to, message)
                case encrypted.StartEncrypt():
                    self.queue.append((me, events.BlobReady(sha(f"upload {me}"), self.offer.upload_bytes)))
                case events.StartUpload(digest=digest, size_bytes=size):
                    self.arrive(me, ADDER, events.UploadStored(me, digest, size), output)
                case events.StartAdd():
                    self.queue.append((ADDER, events.BlobReady(sha("aggregate"), self.offer.upload_bytes)))
                case encrypted.StartDigest(challenge=challenge, digest=digest):
                    if me == BOSS and digest != sha("aggregate"):  # the download does not match the announcement
                        self.queue.append((me, events.WorkFailed(ComityError(ErrorCode.PAYLOAD_DIGEST))))
                    else:
                        self.queue.append((me, encrypted.DigestReady(self.digest(me, challenge, digest))))
                case encrypted.StartDecrypt():
                    self.queue.append((me, events.SumDecoded()))
                case _:
                    pass

    def digest(self, me: str, challenge: bytes, digest: str) -> tuple[int, ...]:
        if me != BOSS:
            return stand_in(challenge, digest)
        members = self.states[BOSS].seen.members if self.honest_sum else self.states[BOSS].seen.members[1:]
        return sum_digests(AGG_Q16, [stand_in(challenge, sha(f"upload {org}")) for org in members])

    def send(self, me: str, to: events.Audience, message: Any) -> None:
        targets = [*self.offer.parties, BOSS, ADDER] if to is events.Audience.ALL else [BOSS]
        source = self.offer.lead if me == BOSS else me
        for target in targets:
            if target == me:
                continue
            said = self.forge(target, me, parse_message(message.KIND, message.to_json()))
            if me != ADDER:
                self.arrive(me, target, events.Received(source, said), said)
            elif target != ADDER:
                kind = events.RosterProposed if said.KIND == "secagg.roster" else events.AggregatePublished
                self.arrive(me, target, kind(said), said)

    def arrive(self, me: str, target: str, event: events.Event, message: Any) -> None:
        if not self.lost(target, me, message):
            self.queue.append((target, event))

    def count(self, me: str, kind: type) -> int:
        return sum(isinstance(item, kind) for item in self.outputs.get(me, []))

    def sent(self, me: str, kind: str) -> int:
        return sum(isinstance(item, events.Send) and kind == item.message.KIND for item in self.outputs[me])

    def failure(self, me: str) -> events.Failed | None:
        return next((item for item in self.outputs.get(me, []) if isinstance(item, events.Failed)), None)


@pytest.fixture
def make_network() -> Callable[..., Network]:
    def make(n: int = 3, **settings: Any) -> Network:
        changes = settings.pop("offer", {})
        return Network(offer_for(n, **changes), **settings)

    return make
