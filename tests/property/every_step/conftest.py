"""The networks of the three profiles' own tests, side by side, on one clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness.networks import networks_of

from comity_crypto.secagg.frame import events

ROUNDS_MAX = 200
ADDER, OVER = "(adder)", ("done", "failed")


def _tell_failure(network: Any) -> None:
    """Have the coordinator tell everybody why it gave up, as it does."""
    perform = network.perform

    def tell(me: str, out: list[Any]) -> None:
        perform(me, out)
        for each in out:
            if me == ADDER and isinstance(each, events.Failed):
                network.queue[:0] = [(who, events.WorkFailed(each.error)) for who in network.states if who != ADDER]

    network.perform = tell


def _keep_time(network: Any) -> Callable[[], None]:
    """Give the networks of `lead-key` and `masked` a clock; returns what lets time pass until nobody waits."""
    deliver, clock = network.deliver, [1.0]
    network.deliver = lambda target, event: deliver(target, event, clock[0])

    def settle() -> None:
        for _ in range(ROUNDS_MAX):
            waiting = {who: state.deadline for who, state in network.states.items() if state.phase not in OVER}
            if not waiting:
                return
            clock[0] = max(clock[0], min(waiting.values()))
            for who in waiting:
                network.deliver(who, events.Tick())
            network.run()
        raise AssertionError("somebody waits for ever")

    return settle


@pytest.fixture
def make_sum() -> Callable[..., Any]:
    """Return a round of a profile that ran to its end; `lost` and `forge` are asked about each message."""

    def make(profile: str, n: int, threshold: int, **hooks: Any) -> Any:
        tamper = hooks.pop("tampered", lambda network: None)
        if profile == "threshold":
            made = networks_of("threshold")
            wrong = hooks.pop("wrong", "")
            liars = {"liars": lambda org, members, number: org == wrong} if wrong else {}
            network = made.Rounds(offer=made.offer_for(n, threshold), **liars, **hooks)
            tamper(network)
            _tell_failure(network)
            return network.start().run().settle()
        if profile == "masked":
            made = networks_of("masked_sum")
            secret = made.RoundSecret(made.os.urandom)
            network = made.Network(made.offer_for(n, secret), secret, **hooks)
        else:
            made = networks_of("secagg")
            network = made.Network(made.offer_for(n), **hooks)
        tamper(network)
        _tell_failure(network)
        settle = _keep_time(network)
        network.start().run()
        settle()
        return network

    return make
