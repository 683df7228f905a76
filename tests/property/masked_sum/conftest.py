"""A network for the three machines of a masked sum, with real masks over small vectors.

The machines are pure, so time, order, loss, repetition, death and forgery are all in the hands of the test.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events as common
from comity_crypto.secagg.masked import adder as masked_adder
from comity_crypto.secagg.masked import contributor as masked_contributor
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked import events
from comity_crypto.secagg.masked import recipient as masked_recipient
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.keys import RoundSecret
from comity_crypto.secagg.masked.messages import MaskedOffer, parse_masked

ADDER, BOSS = "(adder)", "(boss)"
VALUES = 5
WORDS = masked_words.CONTENT_START + VALUES


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def offer_for(n: int, secret: RoundSecret, **changes: Any) -> MaskedOffer:
    parties = tuple(f"org-{index:02d}" for index in range(n))
    base = MaskedOffer(
        agreement="agr-1",
        run="run-1",
        step="train",
        round=1,
        attempt=0,
        lead=parties[0],
        parties=parties,
        minimum=3,
        spare=1,
        key_id=secret.key_id,
        box_key=secret.box_key.public,
        order_digest=sha("order"),
        words=WORDS,
    )
    return replace(base, **changes)


@dataclass
class Network:
    """`lost` and `forge` are asked about each message; `dies` names before which own word a party falls silent."""

    offer: MaskedOffer
    secret: RoundSecret
    values: dict[str, np.ndarray] = field(default_factory=dict)
    releases: dict[str, common.Release] = field(default_factory=dict)
    stands: dict[str, events.Stand] = field(default_factory=dict)
    dies: dict[str, str] = field(default_factory=dict)
    lost: Callable[[str, str, Any], bool] = lambda target, source, message: False
    forge: Callable[[str, str, Any], Any] = lambda target, source, message: message
    add: Callable[[list[np.ndarray]], np.ndarray] = lambda parts: np.sum(parts, axis=0, dtype=np.uint32)
    states: dict[str, Any] = field(default_factory=dict)
    queue: list[tuple[str, Any]] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    blobs: dict[str, np.ndarray] = field(default_factory=dict)
    refused: list[ComityError] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    opened: np.ndarray | None = None

    def start(self) -> Network:
        self.states[BOSS], _ = masked_recipient.start(self.offer, self.secret, now=0.0)
        self.states[ADDER], _ = masked_adder.start(self.offer, now=0.0)
        for number, org in enumerate(self.offer.parties):
            self.values.setdefault(org, np.arange(VALUES, dtype=np.int64) * (number + 1) - 3)
            self.states[org], out = masked_contributor.start(
                org,
                self.offer,
                order_digest=self.offer.order_digest,
                words=self.offer.words,
                entropy=os.urandom,
                now=0.0,
                release=self.releases.get(org),
                stand=self.stands.get(org),
            )
            self.perform(org, out)
            self.queue.append((org, common.ValuesReady(masked_encoder.encode_integers(self.values[org]).digest)))
        return self

    def run(
        self, pick: Callable[[int], int] = lambda waiting: 0, repeat: Callable[[], bool] = lambda: False
    ) -> Network:
        for _ in range(50_000):
            if not self.queue:
                return self
            target, event = self.queue.pop(pick(len(self.queue)))
            if repeat():
                self.queue.append((target, event))
            self.deliver(target, event)
        raise AssertionError("the session does not end")

    def finish(self, **how: Any) -> Network:
        """Run, let the time pass for whom something is missing, one machine after the other, and run on."""
        self.run(**how)
        for target in [ADDER, *self.offer.parties, BOSS]:
            if not (target == ADDER and self.states[ADDER].phase == "done"):
                if target != ADDER and self.states[target].phase in ("done", "failed"):
                    continue
                self.deliver(target, common.Tick(), 1e9)
                self.run(**how)
        return self

    def deliver(self, target: str, event: Any, now: float = 1.0) -> None:
        if target in self.dead:
            return
        machine = {BOSS: masked_recipient, ADDER: masked_adder}.get(target, masked_contributor)
        before = self.states[target]
        try:
            self.states[target], out = machine.step(before, event, now)
        except ComityError as error:
            assert self.states[target] is before, "a refused event leaves the state alone"
            self.refused.append(error)
            return
        self.perform(target, out)

    def perform(self, me: str, out: list[Any]) -> None:
        for output in out:
            kind = output.message.KIND if isinstance(output, common.Send) else type(output).__name__
            if self.dies.get(me) == kind:
                self.dead.add(me)
            if me in self.dead:
                return
            self.outputs.setdefault(me, []).append(output)
            self.perform_one(me, output)

    def perform_one(self, me: str, output: Any) -> None:
        match output:
            case common.Send(to=to, message=message):
                self.send(me, to, message)
            case events.StartMask(masks=masks, tag_key=tag_key):
                words = masked_encoder.encode_integers(self.values[me]).words
                self.queue.append((me, self.store(masked_words.protect(words, tag_key, masks))))
            case common.StartUpload(digest=digest, size_bytes=size):
                self.arrive(me, ADDER, common.UploadStored(me, digest, size), output)
            case common.StartAdd(orgs=orgs):
                parts = [self.blobs[self.states[ADDER].seen.commitments[org].upload] for org in orgs]
                self.queue.append((ADDER, self.store(self.add(parts))))
            case events.StartSettle():
                self.queue.append((me, events.Settled()))
            case events.StartOpen():
                self.queue.append((me, self.open(output)))
            case _:
                pass

    def store(self, words: np.ndarray) -> common.BlobReady:
        digest = hashlib.sha256(words.tobytes()).hexdigest()
        self.blobs[digest] = words
        return common.BlobReady(digest, self.offer.upload_bytes)

    def open(self, job: events.StartOpen) -> Any:
        try:
            total = self.blobs[job.aggregate].copy()
            content = masked_words.unmask(total, job.tag_key, job.masks, len(job.survivors))
            self.opened = masked_encoder.decode_integers(content, len(job.survivors), VALUES)
        except ComityError as error:
            return common.WorkFailed(error)
        except KeyError:
            return common.WorkFailed(ComityError(ErrorCode.PAYLOAD_DIGEST))
        return common.SumDecoded()

    def send(self, me: str, to: common.Audience, message: Any) -> None:
        targets = [*self.offer.parties, BOSS, ADDER] if to is common.Audience.ALL else [BOSS]
        source = self.offer.lead if me == BOSS else me
        for target in targets:
            if target == me:
                continue
            said = self.forge(target, me, parse_masked(message.KIND, message.to_json()))
            if me != ADDER:
                self.arrive(me, target, common.Received(source, said), said)
            elif target != ADDER:
                kind = common.RosterProposed if said.KIND == "secagg.roster" else common.AggregatePublished
                self.arrive(me, target, kind(said), said)

    def arrive(self, me: str, target: str, event: Any, message: Any) -> None:
        if not self.lost(target, me, message):
            self.queue.append((target, event))

    def count(self, me: str, kind: type) -> int:
        return sum(isinstance(item, kind) for item in self.outputs.get(me, []))

    def sent(self, me: str, kind: str) -> list[Any]:
        return [
            item.message
            for item in self.outputs.get(me, [])
            if isinstance(item, common.Send) and kind == item.message.KIND
        ]

    def failure(self, me: str) -> common.Failed | None:
        return next((item for item in self.outputs.get(me, []) if isinstance(item, common.Failed)), None)

    def sum_of(self, orgs: Any) -> np.ndarray:
        return np.sum([self.values[org] for org in orgs], axis=0)


@pytest.fixture
def make_network() -> Callable[..., Network]:
    def make(n: int = 3, **settings: Any) -> Network:
        changes = settings.pop("offer", {})
        secret = RoundSecret(os.urandom)
        return Network(offer_for(n, secret, **changes), secret, **settings)

    return make
