"""Processes that die in the middle of a round: nothing is run twice, nothing charged twice, the model is the same."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3

import numpy as np
import pytest

from comity_node.training import store
from comity_node.training.tables import FINISHED

ROUNDS = 4
PARAMS = 60_000


async def began(rig, dummy, **wishes):
    config = {"params": PARAMS, "num-server-rounds": ROUNDS}
    agreement = rig.agree(dummy, rounds=ROUNDS, config=config, **wishes)
    return agreement, rig.board.prepare(agreement)


def in_round(rig, run, number):
    """Whether the lead's app has asked the question of round `number`."""
    host = rig.nodes["hospital-a"].service and rig.nodes["hospital-a"].service.runs.host(run)
    return host is not None and host.desk.round >= number


async def check_end(rig, agreement, run):
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    assert all(row["dropped"] == [] for row in finished["manifest"])
    await rig.until((rig.result("hospital-b", run) / "card.json").exists, 30)
    with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
        assert all((arrays[name] == ROUNDS).all() for name in arrays.files)
    await rig.until(lambda: all(len(rig.receipts(org)) >= ROUNDS for org in rig.nodes), 10)
    for org in rig.nodes:
        assert rig.spent(org, agreement)["rounds"] == ROUNDS
        receipts = [receipt for receipt in rig.receipts(org) if receipt["run"] == run]
        assert len({receipt["order"] for receipt in receipts}) == len(receipts) == ROUNDS


@pytest.mark.parametrize("victim", ["hospital-a", "hospital-b"])
async def test_a_killed_worker_is_started_again(rig, dummy, victim):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 2))
    os.killpg(rig.nodes[victim].worker_pid, signal.SIGKILL)
    await check_end(rig, agreement, run)


async def test_a_killed_serverapp_replays_what_was_answered(rig, dummy):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 3))
    host = rig.nodes["hospital-a"].service.runs.host(run)
    os.killpg(host._process.pid, signal.SIGKILL)
    await check_end(rig, agreement, run)
    page = await rig.nodes["hospital-a"].service.events.page(run)
    kinds = [event.kind for event in page]
    assert kinds.count("restart") == 1
    assert kinds.count("question") == ROUNDS, "a recorded question was told twice"


async def test_a_serverapp_that_always_dies_ends_the_run(rig, dummy, monkeypatch):
    _, run = await began(rig, dummy)
    monkeypatch.setattr("comity_node.training.lead.RESTART_PAUSE_S", 0.0)
    monkeypatch.setattr("comity_node.training.lead.RESTARTS_MAX", 2)
    killed = set()
    await rig.until(lambda: in_round(rig, run, 1))
    while not rig.board.finished[run].done():
        host = rig.nodes["hospital-a"].service.runs.host(run)
        pid = host._process.pid if host and host._process else None
        if pid and pid not in killed:
            killed.add(pid)
            os.killpg(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
    finished = await rig.finish(run)
    assert finished["state"] == "FAILED"
    assert finished["error"]["code"] == "WORKER_DIED"
    assert len(killed) >= 3


async def test_a_lead_that_cannot_go_on_says_so(rig, dummy):
    """A record that a disk damaged: the run ends by name, instead of leaving everybody waiting for its lead."""
    _, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 3))
    node = rig.nodes["hospital-a"]
    await node.crash()
    journal = sqlite3.connect(node.home / "journal.db")
    journal.execute("UPDATE training_answers SET reference = '{' WHERE seq = 0")
    journal.commit()
    journal.close()
    await node.up()
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "INTERNAL")


async def test_a_crashed_party_takes_its_order_up_again(rig, dummy):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 2))
    node = rig.nodes["hospital-b"]
    await node.crash()
    await node.up()
    await check_end(rig, agreement, run)


async def test_a_crashed_lead_takes_its_run_up_again(rig, dummy):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 3))
    node = rig.nodes["hospital-a"]
    await node.crash()
    await node.up()
    await check_end(rig, agreement, run)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
async def test_crashes_at_random_moments(rig, dummy, seed):
    chance = random.Random(seed)
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: in_round(rig, run, 1))
    for _ in range(3):
        await asyncio.sleep(chance.random() * 0.3)
        if rig.board.finished[run].done():
            break
        node = rig.nodes[chance.choice(sorted(rig.nodes))]
        await node.crash()
        await node.up()
    await check_end(rig, agreement, run)
    rows = rig.nodes["hospital-c"].read(lambda conn: [store.find_order(conn, run, seq) for seq in range(ROUNDS)])
    assert all(row.state == FINISHED for row in rows)


async def test_a_lost_message_is_repeated(rig, dummy, monkeypatch):
    monkeypatch.setattr("comity_node.training.questions.RESEND_S", 0.3)
    monkeypatch.setattr("comity_node.training.replies.RESEND_S", 0.3)
    chance = random.Random(3)
    rig.board.drop = lambda kind, sender, receiver: chance.random() < 0.4 and kind in ("order", "reply", "reply.ack")
    for node in rig.nodes.values():
        await node.down()
        await node.up()
    agreement, run = await began(rig, dummy)
    await check_end(rig, agreement, run)
