"""Networks for the machines of `threshold` without cryptographic work: jobs answer at once with stand-ins.

Time, order, loss, repetition and forgery are all in the hands of the test. A round runs contributor and key holder of
every party, the lead's machine and the coordinator's aggregator; a ceremony runs the holders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES, sum_digests
from comity_crypto.secagg.bfv.params import AGG_Q16, LIMBS
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.frame.boxes import BOX_KEY_BYTES, BoxKey
from comity_crypto.secagg.lead_key import aggregator, contributor
from comity_crypto.secagg.lead_key import events as encrypted
from comity_crypto.secagg.threshold import ceremony, keyholder, opener
from comity_crypto.secagg.threshold import events as threshold_events
from comity_crypto.secagg.threshold import lead as threshold_lead
from comity_crypto.secagg.threshold.messages import KeyPlan, ThresholdOffer, parse_threshold_message

ADDER, LEAD = "(adder)", "(lead)"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def orgs(n: int) -> tuple[str, ...]:
    return tuple(f"org-{index:02d}" for index in range(n))


def plan_for(n: int, threshold: int, **changes: Any) -> KeyPlan:
    base = KeyPlan("agr-1", "run-1", 0, orgs(n)[0], orgs(n), threshold, AGG_Q16.name, AGG_Q16.digest, 2)
    return replace(base, **changes)


def offer_for(n: int, threshold: int, **changes: Any) -> ThresholdOffer:
    base = ThresholdOffer(
        agreement="agr-1",
        run="run-1",
        step="train",
        round=1,
        attempt=0,
        lead=orgs(n)[0],
        parties=orgs(n),
        minimum=3,
        parameters=AGG_Q16.name,
        parameters_digest=AGG_Q16.digest,
        key_id=sha("key"),
        order_digest=sha("order"),
        chunks=2,
        ceremony=sha("ceremony"),
        transcript=sha("transcript"),
        holders=orgs(n),
        threshold=threshold,
        openers=orgs(n)[:1],
        box_key=bytes(BOX_KEY_BYTES),
    )
    return replace(base, **changes)


def stand_in(challenge: bytes, upload: str) -> tuple[int, ...]:
    seed = hashlib.sha256(challenge + upload.encode()).digest()
    return tuple(int.from_bytes(hashlib.sha256(seed + bytes([i])).digest()[:6], "big") for i in range(DIGEST_VALUES))


@dataclass
class Base:
    """A queue of (target, event), the machines' states and what they put out."""

    lost: Callable[[str, str, Any], bool] = lambda target, source, message: False
    forge: Callable[[str, str, Any], Any] = lambda target, source, message: message
    states: dict[str, Any] = field(default_factory=dict)
    queue: list[tuple[str, events.Event]] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    refused: list[ComityError] = field(default_factory=list)
    now: float = 1.0

    def run(self, pick: Callable[[int], int] = lambda waiting: 0, repeat: Callable[[], bool] = lambda: False) -> Any:
        for _ in range(40_000):
            if not self.queue:
                return self
            target, event = self.queue.pop(pick(len(self.queue)))
            if repeat():
                self.queue.append((target, event))
            self.deliver(target, event)
        raise AssertionError("it does not end")

    def machine(self, target: str) -> Any:
        raise AssertionError(target)

    def perform(self, me: str, out: list[Any]) -> None:
        raise AssertionError(me)

    def deliver(self, target: str, event: events.Event) -> None:
        before = self.states[target]
        try:
            self.states[target], out = self.machine(target).step(before, event, self.now)
        except ComityError as error:
            assert self.states[target] is before, "a refused event leaves the state alone"
            self.refused.append(error)
            return
        self.perform(target, out)

    def tick(self, now: float = 1e9) -> Any:
        self.now = now
        for target in list(self.states):
            self.deliver(target, events.Tick())
        return self

    def settle(self) -> Any:
        """Let time pass from deadline to deadline until nobody waits any more."""
        for _ in range(200):
            waiting = [state.deadline for state in self.states.values() if state.phase not in ("done", "failed")]
            if not waiting:
                return self
            self.tick(max(self.now, min(waiting)))
            self.run()
        raise AssertionError("somebody waits for ever")

    def arrive(self, me: str, target: str, event: events.Event, message: Any) -> None:
        if not self.lost(target, me, message):
            self.queue.append((target, event))

    def count(self, me: str, kind: type) -> int:
        return sum(isinstance(item, kind) for item in self.outputs.get(me, []))

    def messages(self, me: str, kind: type) -> list[Any]:
        return [
            item.message
            for item in self.outputs.get(me, [])
            if isinstance(item, events.Send) and isinstance(item.message, kind)
        ]

    def found(self, me: str, kind: type) -> list[Any]:
        return [item for item in self.outputs.get(me, []) if isinstance(item, kind)]

    def failure(self, me: str) -> events.Failed | None:
        return next(iter(self.found(me, events.Failed)), None)


@dataclass
class Ceremonies(Base):
    """Holders in a ceremony. `points` are the values of the check, by (dealer, holder); fitting ones by default."""

    plan: KeyPlan = field(default_factory=lambda: plan_for(3, 3))
    spoiled: tuple[str, str] = ("", "")

    def start(self) -> Ceremonies:
        for number, org in enumerate(self.plan.holders):
            self.states[org], out = ceremony.start(
                org,
                self.plan,
                box_key=BoxKey().public,
                entropy=lambda size, number=number: bytes([number]) * size,
                now=0.0,
            )
            self.perform(org, out)
        return self

    def machine(self, target: str) -> Any:
        return ceremony

    def perform(self, me: str, out: list[Any]) -> None:
        self.outputs.setdefault(me, []).extend(out)
        for output in out:
            match output:
                case events.Send(message=message):
                    for target in self.plan.holders:
                        if target != me:
                            said = self.forge(target, me, parse_threshold_message(message.KIND, message.to_json()))
                            self.arrive(me, target, events.Received(me, said), said)
                case threshold_events.StartDraw(crs=crs):
                    self.queue.append((me, threshold_events.PublicSharesReady(sha(f"{me} {crs.hex()}"))))
                case threshold_events.StartCombine(shares=shares):
                    made = tuple(sha(f"{index} {shares}") for index in range(self.plan.keys))
                    self.queue.append((me, threshold_events.KeysCombined(made)))
                case threshold_events.StartDeal(box_keys=receivers):
                    boxes = tuple((org, sha(f"box {me} {org}")) for org, _ in receivers)
                    self.queue.append((me, threshold_events.BoxesReady(boxes)))
                case threshold_events.StartOpenBoxes(boxes=boxes):
                    wanted = tuple((org, sha(f"box {org} {me}")) for org in self.plan.holders if org != me)
                    fits = threshold_events.BoxesOpened(self.values(me))
                    broken = events.WorkFailed(ComityError(ErrorCode.PAYLOAD_DIGEST))
                    self.queue.append((me, fits if boxes == wanted else broken))
                case _:
                    pass

    def values(self, me: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Points of a line for every dealer (degree 1 is below every T - 1 >= 1)."""
        point = self.plan.point(me)
        found = []
        for place, dealer in enumerate(self.plan.holders):
            extra = 1 if self.spoiled == (dealer, me) else 0
            found.append((dealer, (7 + place + 5 * point + extra,) * (self.plan.keys * LIMBS)))
        return tuple(found)


@dataclass
class Rounds(Base):
    """A round. `liars(org, members, number)` says whether a holder's share in a call is wrong."""

    offer: ThresholdOffer = field(default_factory=lambda: offer_for(3, 3))
    honest_sum: bool = True
    liars: Callable[[str, tuple[str, ...], int], bool] = lambda org, members, number: False
    garbled: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    # What an opener says of the sum that a call opened; all see the same by default.
    sees: Callable[[str, str], str] = lambda org, call: sha(f"sum {call}")

    def start(self) -> Rounds:
        self.states[LEAD], _ = threshold_lead.start(self.offer, now=0.0)
        self.states[ADDER], _ = aggregator.start(self.offer, now=0.0)
        for number, org in enumerate(self.offer.parties):
            self.states[f"{org}/key"], _ = keyholder.start(org, self.offer, now=0.0)
            self.states[org], out = contributor.start(
                org,
                self.offer,
                order_digest=self.offer.order_digest,
                chunks=self.offer.chunks,
                box_key=BoxKey(),
                entropy=lambda size, number=number: bytes([number]) * size,
                now=0.0,
            )
            self.perform(org, out)
            self.queue.append((org, events.ValuesReady(sha(f"values {org}"))))
        for org in self.offer.openers[1:]:
            self.states[f"{org}/opener"], _ = opener.start(org, self.offer, now=0.0)
        return self

    def machine(self, target: str) -> Any:
        if target.endswith("/opener"):
            return opener
        if target.endswith("/key"):
            return keyholder
        return {LEAD: threshold_lead, ADDER: aggregator}.get(target, contributor)

    def perform(self, me: str, out: list[Any]) -> None:
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
                    if me.endswith("/key") and digest != sha("aggregate"):
                        self.queue.append((me, events.WorkFailed(ComityError(ErrorCode.PAYLOAD_DIGEST))))
                    else:
                        self.queue.append((me, encrypted.DigestReady(self.digest(me, challenge, digest))))
                case threshold_events.StartShare(call=call):
                    org = me.removesuffix("/key")
                    if org not in self.silent:
                        self.queue.append((me, threshold_events.ShareMade(call, sha(f"share {org} {call}"))))
                case threshold_events.StartFuse():
                    self.queue.append((me, self.fused(me, output)))
                case _:
                    pass

    def fused(self, me: str, job: threshold_events.StartFuse) -> events.Event:
        call = self.states[LEAD].call if me == LEAD else self.states[me].fusing
        assert {org for org, _ in job.shares} == set(call.members)
        for org, share in job.shares:
            assert share == sha(f"share {org} {job.call}")
            if org in self.garbled:
                return threshold_events.ShareRefused(org, job.call, ComityError(ErrorCode.CIPHERTEXT_INVALID))
        if any(self.liars(org, call.members, call.number) for org in call.members):
            return threshold_events.QuorumFailed(job.call)
        org = self.offer.lead if me == LEAD else me.removesuffix("/opener")
        return threshold_events.SumOpened(job.call, self.sees(org, job.call), sha(f"slots {self.sees(org, '')}"))

    def digest(self, me: str, challenge: bytes, digest: str) -> tuple[int, ...]:
        if not me.endswith("/key"):
            return stand_in(challenge, digest)
        members = self.states[me].seen.members if self.honest_sum else self.states[me].seen.members[1:]
        return sum_digests(AGG_Q16, [stand_in(challenge, sha(f"upload {org}")) for org in members])

    def send(self, me: str, to: events.Audience, message: Any) -> None:
        keyholders = [f"{org}/key" for org in self.offer.parties]
        openers = [f"{org}/opener" for org in self.offer.openers[1:]]
        everyone = [*self.offer.parties, *keyholders, *openers, LEAD, ADDER]
        lead_nodes = [self.offer.lead, f"{self.offer.lead}/key", LEAD]
        audiences = {
            events.Audience.ALL: everyone,
            events.Audience.LEAD: lead_nodes,
            events.Audience.OPENERS: [*lead_nodes, *openers],
        }
        source = self.offer.lead if me == LEAD else me.removesuffix("/key").removesuffix("/opener")
        for target in audiences[to]:
            if target == me:
                continue
            said = self.forge(target, me, parse_threshold_message(message.KIND, message.to_json()))
            if me != ADDER:
                self.arrive(me, target, events.Received(source, said), said)
            elif target != ADDER:
                kind = events.RosterProposed if said.KIND == "secagg.roster" else events.AggregatePublished
                self.arrive(me, target, kind(said), said)


@pytest.fixture
def make_ceremony() -> Callable[..., Ceremonies]:
    def make(n: int = 3, threshold: int = 3, **settings: Any) -> Ceremonies:
        return Ceremonies(plan=plan_for(n, threshold, **settings.pop("plan", {})), **settings)

    return make


@pytest.fixture
def make_round() -> Callable[..., Rounds]:
    def make(n: int = 3, threshold: int = 3, **settings: Any) -> Rounds:
        return Rounds(offer=offer_for(n, threshold, **settings.pop("offer", {})), **settings)

    return make
