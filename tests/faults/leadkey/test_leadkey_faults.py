"""Disturbed runs under `lead-key`: whatever dies, is lost, repeated or late, the model is the one of a quiet run."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.workers import ServerAppProcess

ROUNDS = 3
PARAMS = 9_000


@pytest.fixture(autouse=True)
def fixed_secrets(monkeypatch):
    """The rounding depends on a node's secret and the order; here on the place alone, so that runs can be compared."""
    monkeypatch.setattr(
        "comity_node.training.profiles.lead_key.replies.rounding_key",
        lambda secret, agreement, digest: b"%32d" % 7,
    )


async def began(rig, dummy, **wishes):
    config = {"params": PARAMS, "num-server-rounds": ROUNDS}
    agreement = rig.agree(dummy, rounds=ROUNDS, config=config, **wishes)
    return agreement, rig.board.prepare(agreement)


def sums(rig, run):
    """How many sums the lead has opened."""
    return sum(1 for org, kind in rig.board.words if kind == "secagg.aggregate" and org == "hospital-a")


def said(rig, kind):
    return sum(1 for name, body in rig.board.seen if name == "secagg" and kind.encode() in body)


async def check_end(rig, agreement, run, dropped=False):
    finished = await rig.finish(run, 90)
    assert finished["state"] == "COMPLETED", finished
    if not dropped:
        assert all(row["dropped"] == [] for row in finished["manifest"]), finished["manifest"]
    await rig.until((rig.result("hospital-b", run) / "card.json").exists, 30)
    with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
        whole = np.concatenate([arrays[name].ravel() for name in arrays.files])
    assert np.abs(whole - ROUNDS).max() < 0.01
    for org in rig.nodes:
        assert rig.spent(org, agreement)["rounds"] == ROUNDS
        if not dropped:  # no sum was opened that lacks a receipt
            await rig.until(lambda org=org: {each["seq"] for each in results(rig, org, run)} == set(range(ROUNDS)), 30)
    return whole


def results(rig, org, run):
    return [each for each in rig.receipts(org) if each["run"] == run and each["outcome"] == "result"]


_quiet = []


@pytest.fixture
async def quiet(rig, dummy):
    """The model of an undisturbed run; with fixed secrets it is the same in every consortium, so it is run once."""
    if not _quiet:
        agreement, run = await began(rig, dummy)
        _quiet.append(await check_end(rig, agreement, run))
    return _quiet[0]


async def crash(rig, victim):
    node = rig.nodes[victim]
    await node.crash()
    await node.up()


def few(kept, *others):
    """Parameters of which the `kept` ones run always, the `others` in the slow tests."""
    return [*kept, *(pytest.param(*each, marks=pytest.mark.slow) for each in others)]


LEAD, PARTY = "hospital-a", "hospital-b"
READY, SEED, SIGNED, DIGEST = (
    "secagg.ready",
    "secagg.mask-seed",
    "secagg.commitments-signature",
    "secagg.linear-digest",
)


@pytest.mark.parametrize(
    ("moment", "victim"),
    few(
        [(READY, LEAD), (DIGEST, PARTY)],
        (READY, PARTY),
        (SEED, PARTY),
        (DIGEST, LEAD),
        (SEED, LEAD),
        (SIGNED, LEAD),
        (SIGNED, PARTY),
    ),
)
async def test_a_crash_repeats_the_same_integers(rig, dummy, quiet, victim, moment):
    before = said(rig, moment)
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: said(rig, moment) > before + 2, 60)
    await crash(rig, victim)
    assert np.array_equal(await check_end(rig, agreement, run), quiet)


async def test_an_app_that_dies_as_the_sum_arrives_gets_the_whole_sum(rig, dummy, quiet, monkeypatch):
    died, send = [], ServerAppProcess.send_reply

    async def dying(process, seq, *answer, **words):
        if seq == 1 and not died:
            died.append(seq)
            os.killpg(process.pid, signal.SIGKILL)
            raise ComityError(ErrorCode.WORKER_DIED)
        await send(process, seq, *answer, **words)

    monkeypatch.setattr(ServerAppProcess, "send_reply", dying)
    agreement, run = await began(rig, dummy)
    assert np.array_equal(await check_end(rig, agreement, run), quiet)
    assert died


@pytest.mark.parametrize("moment", few([SIGNED], (READY,), ('secagg.commitment"',)))
async def test_a_coordinator_that_starts_anew_goes_on(rig, dummy, quiet, moment):
    before = said(rig, moment)
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: said(rig, moment) > before, 60)
    await rig.board.stop_coordinator()
    rig.board.start_coordinator()
    assert np.array_equal(await check_end(rig, agreement, run), quiet)


@pytest.mark.parametrize("seed", few([0], (1,), (2,)))
async def test_lost_messages_are_said_again(rig, dummy, quiet, monkeypatch, seed):
    monkeypatch.setattr("comity_node.training.profiles.sum_exchange.RESEND_S", 0.5)
    chance = random.Random(seed)
    rig.board.drop = lambda kind, sender, receiver: kind.startswith("secagg") and chance.random() < 0.25
    agreement, run = await began(rig, dummy)
    assert np.array_equal(await check_end(rig, agreement, run), quiet)


async def test_messages_may_come_twice_late_and_in_any_order(rig, dummy, quiet):
    rig.board.repeat, rig.board.shuffle = 3, random.Random(11)
    agreement, run = await began(rig, dummy)
    assert np.array_equal(await check_end(rig, agreement, run), quiet)


@pytest.mark.parametrize("seed", few([0], *((seed,) for seed in range(1, 8))))
async def test_crashes_at_random_moments(rig, dummy, quiet, seed):
    chance = random.Random(seed)
    agreement, run = await began(rig, dummy)
    for _ in range(4):
        await asyncio.sleep(0.3 + chance.random() * 0.5)
        if rig.board.finished[run].done():
            break
        await crash(rig, chance.choice(sorted(rig.nodes)))
    assert np.array_equal(await check_end(rig, agreement, run), quiet)
