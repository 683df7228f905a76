"""Messages of secure sums under a fuzzer of documents: parsers read or refuse, machines refuse or go on; none crashes.

The networks of the profiles' own tests carry real rounds; what a party says is changed on the way, and whatever still
has the form of a message reaches the machines.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from harness import mutations
from harness.networks import networks_of

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import events
from comity_crypto.secagg.spoken import parse_spoken

# The networks' stand-in for fusing checks by itself that it is given what was announced.
LEFT_ALONE = frozenset({"secagg.share-ready"})
PROFILES = ("lead-key", "masked", "threshold", "ceremony")
TRIES = 20
Forge = Callable[[str, str, Any], Any]


def network_of(profile: str, forge: Forge) -> Any:
    if profile == "lead-key":
        made = networks_of("secagg")
        return made.Network(made.offer_for(4), forge=forge)
    if profile == "masked":
        made = networks_of("masked_sum")
        secret = made.RoundSecret(made.os.urandom)
        return made.Network(made.offer_for(4, secret), secret, forge=forge)
    made = networks_of("threshold")
    if profile == "ceremony":
        return made.Ceremonies(plan=made.plan_for(3, 2), forge=forge)
    return made.Rounds(offer=made.offer_for(4, 3), forge=forge)


@cache
def said(profile: str) -> dict[str, list[Any]]:
    """Return the documents of a good session by kind, what opened it among them."""
    found: dict[str, list[Any]] = {}

    def hear(target: str, source: str, message: Any) -> Any:
        found.setdefault(message.KIND, []).append(message.to_json())
        return message

    network = network_of(profile, hear)
    opening = network.plan if profile == "ceremony" else network.offer
    found[opening.KIND] = [opening.to_json()]
    network.start().run()
    return found


def forger(chance: random.Random, rate: float, counts: dict[str, int]) -> Forge:
    """Change some messages into others that parsers still read."""

    def forge(target: str, source: str, message: Any) -> Any:
        if chance.random() > rate or message.KIND in LEFT_ALONE:
            return message
        for _ in range(TRIES):
            try:
                other = parse_spoken(message.KIND, mutations.mutated_document(chance, [message.to_json()]))
            except ComityError:
                continue
            counts["changed"] = counts.get("changed", 0) + (other != message)
            return other
        return message

    return forge


def parsed(profile: str, times: int, seed: int) -> tuple[int, int]:
    """Return how many changed documents parsers refused, and how many they read and would write again alike."""
    chance, refused, read = random.Random(seed), 0, 0
    kinds = said(profile)
    everything = [each for documents in kinds.values() for each in documents[:2]]
    for _ in range(times):
        kind = chance.choice(sorted(kinds))
        document = mutations.mutated_document(chance, [chance.choice(kinds[kind]), chance.choice(everything)])
        try:
            with mutations.no_hang():
                message = parse_spoken(kind, document)
        except ComityError as error:
            if error.code is ErrorCode.INTERNAL:
                raise AssertionError(f"{kind}: a stranger's document is taken for a fault here") from error
            refused += 1
            continue
        assert parse_spoken(kind, message.to_json()) == message
        read += 1
    return refused, read


def lied(profile: str, seed: int) -> int:
    """Run a session with changed messages to its end; returns how many were."""
    chance, counts = random.Random(seed), dict[str, int]()
    network = network_of(profile, forger(chance, chance.choice((0.02, 0.1, 0.4)), counts))
    with mutations.no_hang():
        network.start().run(chance.randrange)
        for target in list(network.states) * 2:
            if profile in ("threshold", "ceremony"):
                network.now = 1e9
                network.deliver(target, events.Tick())
            else:
                network.deliver(target, events.Tick(), 1e9)
            network.run()
    if profile == "masked" and network.opened is not None:
        assert np.array_equal(network.opened, network.sum_of(network.states["(boss)"].seen.survivors))
    assert not any(error.code is ErrorCode.INTERNAL for error in network.refused)
    return counts.get("changed", 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_changed_documents_are_refused_or_read_alike(profile: str) -> None:
    refused, _ = parsed(profile, 250, 1)
    assert refused > 50


@pytest.mark.parametrize("profile", PROFILES)
def test_machines_stand_changed_messages(profile: str) -> None:
    assert sum(lied(profile, seed) for seed in range(10)) > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("profile", PROFILES)
def test_machines_stand_changed_messages_for_hundreds_of_sessions(profile: str) -> None:
    refused, read = parsed(profile, 20_000, 2)
    assert refused > read
    assert sum(lied(profile, seed) for seed in range(100, 400)) > 300
