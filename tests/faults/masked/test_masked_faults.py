"""Disturbed runs under `masked`: whatever dies, is lost, repeated or late, the mean is that of a stated set."""

from __future__ import annotations

import asyncio
import json
import random

import numpy as np
import pytest

from comity_node.training.profiles import sum_store

ROUNDS = 2
PARAMS = 5_000
LEAD, PARTY = "hospital-a", "hospital-b"
READY, KEYS, SIGNED, NOTICE, REVEAL = (
    '"secagg.masked.ready',
    '"secagg.masked.keys',
    '"secagg.commitments-signature',
    '"secagg.masked.notice-signature',
    '"secagg.masked.reveal',
)


def few(kept, *others):
    """Parameters of which the `kept` ones run always, the `others` in the slow tests."""
    return [*kept, *(pytest.param(*each, marks=pytest.mark.slow) for each in others)]


async def began(rig, dummy, **wishes):
    config = {"params": PARAMS, "num-server-rounds": ROUNDS}
    agreement = rig.agree(dummy, rounds=ROUNDS, config=config, **wishes)
    return agreement, rig.board.prepare(agreement)


def said(rig, kind):
    return sum(1 for name, body in rig.board.seen if name == "secagg" and kind.encode() in body)


async def check_end(rig, agreement, run, lost=()):
    """The run ends well; whoever is in no sum of it is one of `lost`."""
    finished = await rig.finish(run, 100)
    assert finished["state"] == "COMPLETED", finished
    dropped = {each["org"] for row in finished["manifest"] for each in row["dropped"]}
    assert dropped <= set(lost), finished["manifest"]
    await rig.until((rig.result("hospital-c", run) / "card.json").exists, 30)
    with np.load(rig.result("hospital-c", run) / "model.npz") as arrays:
        whole = np.concatenate([arrays[name].ravel() for name in arrays.files])
    # Each of four adds one; a masked value is rounded by less than 2^-25 of the range.
    assert np.abs(whole - ROUNDS).max() < 1e-5
    return dropped


async def crash(rig, victim):
    node = rig.nodes[victim]
    await node.crash()
    await node.up()


@pytest.mark.parametrize(
    ("moment", "victim"),
    few(
        [(READY, LEAD), (SIGNED, PARTY), (REVEAL, PARTY)],
        (READY, PARTY),
        (KEYS, PARTY),
        (SIGNED, LEAD),
        (KEYS, LEAD),
        (NOTICE, LEAD),
        (NOTICE, PARTY),
        (REVEAL, LEAD),
    ),
)
async def test_a_crash_costs_an_attempt_or_a_party(rig, dummy, victim, moment):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: said(rig, moment) > 2, 60)
    await crash(rig, victim)
    await check_end(rig, agreement, run, lost=(victim,))


async def test_a_party_that_drops_out_after_the_commitments_is_done_without(rig, dummy, monkeypatch):
    """Its upload never comes, and it does not come back: the others' sum is opened, and says whose it is."""
    monkeypatch.setattr("comity_node.training.questions.GONE_S", 0.3)
    put = type(rig.payloads("hospital-d")).put
    gone = asyncio.Event()

    async def losing(payloads, source, ref, receivers):
        if payloads.org == "hospital-d" and receivers == ("coordinator",):
            gone.set()
            await asyncio.Event().wait()
        await put(payloads, source, ref, receivers)

    monkeypatch.setattr(type(rig.payloads("hospital-d")), "put", losing)
    agreement, run = await began(rig, dummy, terms={"min_participants": 3})
    await asyncio.wait_for(gone.wait(), 60)
    await rig.nodes["hospital-d"].down()
    finished = await rig.finish(run, 100)
    assert finished["state"] == "COMPLETED", finished
    first = finished["manifest"][0]
    assert first["participants"] == ["hospital-a", "hospital-b", "hospital-c"]
    assert [each["org"] for each in first["dropped"]] == ["hospital-d"]
    assert said(rig, REVEAL) >= 3
    assert all(row["participants"] == first["participants"] for row in finished["manifest"])
    await rig.until(lambda: rig.proved_sums(agreement, run))
    assert set(rig.proved_sums(agreement, run).values()) == {tuple(first["participants"])}
    with np.load(rig.result("hospital-a", run) / "model.npz") as arrays:
        assert np.abs(arrays[arrays.files[0]] - ROUNDS).max() < 1e-5
    for org in ("hospital-a", "hospital-b", "hospital-c"):
        assert rig.spent(org, agreement)["rounds"] == ROUNDS


async def test_a_party_that_dies_after_its_upload_gets_the_receipt_of_its_sum(rig, dummy):
    """The others open the sum that its part is in; when it comes back, its order ends with the upload that left."""
    victim = "hospital-d"
    rig.board.auto_close = False
    rig.board.drop = lambda kind, sender, receiver: kind == "secagg.notice" and receiver == victim and noticed()

    def noticed():
        return ("hospital-b", "secagg.masked.notice") in rig.board.words

    agreement, run = await began(rig, dummy)
    await rig.until(noticed, 60)
    await rig.nodes[victim].crash()
    await rig.until(lambda: said(rig, REVEAL) >= 2, 60)  # of the lead nothing is relayed
    assert not [each for each in rig.receipts(victim) if each["run"] == run]
    rig.board.drop = lambda kind, sender, receiver: False
    await rig.nodes[victim].up()
    assert await check_end(rig, agreement, run) == set()
    await rig.until(lambda: receipts_of(rig, victim, run) == dict.fromkeys(range(ROUNDS), "result"), 30)
    said_of = [json.loads(body) for kind, body in rig.board.seen if kind == "secagg" and b'secagg.commitment"' in body]
    uploads = {each["content"]["body"]["message"]["body"]["upload"] for each in said_of}
    assert {each["result"] for each in rig.receipts(victim) if each["run"] == run} <= uploads


def receipts_of(rig, org, run):
    return {each["seq"]: each["outcome"] for each in rig.receipts(org) if each["run"] == run}


async def test_whose_sum_a_party_stands_on_is_in_its_journal_before_it_signs(rig, dummy, monkeypatch):
    rig.board.auto_close = False
    stood = []
    relay = rig.board.relay

    async def looking(sender, kind, statement, receivers, run, inline):
        if kind == "secagg" and statement.body["message"]["kind"] == "secagg.masked.notice-signature":
            rows = rig.nodes[sender].read(
                lambda conn: [sum_store.PartRow(*row) for row in conn.execute(sum_store.parts.select())]
            )
            stood.append([row.stand.survivors for row in rows if row.stand is not None])
        await relay(sender, kind, statement, receivers, run, inline)

    rig.board.relay = looking
    agreement, run = await began(rig, dummy)
    await check_end(rig, agreement, run)
    assert len(stood) >= 4 * ROUNDS
    assert all(each and set(each) == {tuple(sorted(rig.nodes))} for each in stood)


@pytest.mark.parametrize("moment", few([SIGNED], (READY,), (KEYS,)))
async def test_a_coordinator_that_starts_anew_goes_on(rig, dummy, moment):
    agreement, run = await began(rig, dummy)
    await rig.until(lambda: said(rig, moment) > 0, 60)
    await rig.board.stop_coordinator()
    rig.board.start_coordinator()
    await check_end(rig, agreement, run, lost=tuple(rig.nodes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_lost_messages_are_said_again(rig, dummy, seed):
    chance = random.Random(seed)
    rig.board.drop = lambda kind, sender, receiver: kind.startswith("secagg") and chance.random() < 0.2
    agreement, run = await began(rig, dummy)
    await check_end(rig, agreement, run)


async def test_messages_may_come_twice_late_and_in_any_order(rig, dummy):
    rig.board.repeat, rig.board.shuffle = 3, random.Random(11)
    agreement, run = await began(rig, dummy)
    await check_end(rig, agreement, run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_crashes_at_random_moments(rig, dummy, seed):
    chance = random.Random(seed)
    agreement, run = await began(rig, dummy)
    for _ in range(3):
        await asyncio.sleep(0.3 + chance.random() * 0.5)
        if rig.board.finished[run].done():
            break
        await crash(rig, chance.choice(sorted(rig.nodes)))
    await check_end(rig, agreement, run, lost=tuple(rig.nodes))
