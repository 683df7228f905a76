"""Disturbed runs under `threshold`: whatever dies or is lost, the model is the one of a quiet run under `lead-key`."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.threshold.shares import share_bytes
from comity_crypto.secagg.threshold.workers import KeyWorkers

ROUNDS, PARAMS = 2, 9_000
LEAD, PARTY = "hospital-a", "hospital-b"


@pytest.fixture(autouse=True)
def fixed_secrets(monkeypatch):
    """The rounding depends on a node's secret and the order; here on the place alone, so that runs can be compared."""
    monkeypatch.setattr(
        "comity_node.training.profiles.lead_key.replies.rounding_key",
        lambda secret, agreement, digest: b"%32d" % 7,
    )


async def began(rig, dummy, rounds=ROUNDS, **wishes):
    config = {"params": PARAMS, "num-server-rounds": rounds}
    agreement = rig.agree(dummy, rounds=rounds, config=config, **wishes)
    return agreement, rig.board.prepare(agreement)


def said(rig, kind):
    return sum(1 for name, body in rig.board.seen if name == "secagg" and kind.encode() in body)


async def model(rig, run, rounds=ROUNDS):
    finished = await rig.finish(run, 90)
    assert finished["state"] == "COMPLETED", finished
    assert all(row["dropped"] == [] for row in finished["manifest"]), finished["manifest"]
    await rig.until((rig.result("hospital-b", run) / "card.json").exists, 30)
    with np.load(rig.result("hospital-b", run) / "model.npz") as arrays:
        whole = np.concatenate([arrays[name].ravel() for name in arrays.files])
    assert np.abs(whole - rounds).max() < 0.01
    return whole


_quiet = []


@pytest.fixture
async def quiet(rig, consortium, dummy):
    """The model of an undisturbed run under `lead-key`: the same integers must give the same model."""
    if not _quiet:
        _, run = await began(rig, dummy, terms={"aggregation": "lead-key"})
        _quiet.append(await model(rig, run))
    return _quiet[0]


async def test_the_model_is_lead_keys_and_the_coordinator_holds_ciphertext_only(consortium, dummy, quiet):
    _, run = await began(consortium, dummy)
    assert np.array_equal(await model(consortium, run), quiet)
    assert said(consortium, "secagg.transcript-signature") >= 6
    assert said(consortium, "secagg.share-ready") >= 2 * ROUNDS
    assert not any(b"patient" in body for _, body in consortium.board.seen)


async def test_batches_follow_each_other_and_no_key_serves_twice(consortium, dummy):
    _, run = await began(consortium, dummy, rounds=6)
    await model(consortium, run, 6)
    offers = {body for kind, body in consortium.board.seen if kind == "secagg" and b"secagg.threshold-offer" in body}
    keys = [body.split(b'"key_id":"')[1][:64] for body in offers]
    assert len(set(keys)) == len(keys) >= 6
    assert said(consortium, "secagg.key-plan") > 0


@pytest.mark.parametrize(
    ("moment", "victim"),
    [
        ("secagg.nonce-reveal", PARTY),
        pytest.param("secagg.share-commitment", LEAD, marks=pytest.mark.slow),
        pytest.param("secagg.mask-seed", PARTY, marks=pytest.mark.slow),
        ("secagg.linear-digest", LEAD),
        pytest.param("secagg.linear-digest", PARTY, marks=pytest.mark.slow),
    ],
)
async def test_a_crash_repeats_the_same_integers(consortium, dummy, quiet, moment, victim):
    rig = consortium
    before = said(rig, moment)
    _, run = await began(rig, dummy)
    await rig.until(lambda: said(rig, moment) > before + 1, 60)
    node = rig.nodes[victim]
    await node.crash()
    await node.up()
    assert np.array_equal(await model(rig, run), quiet)


async def test_a_coordinator_that_starts_anew_goes_on(consortium, dummy, quiet):
    before = said(consortium, "secagg.commitments-signature")
    _, run = await began(consortium, dummy)
    await consortium.until(lambda: said(consortium, "secagg.commitments-signature") > before, 60)
    await consortium.board.stop_coordinator()
    consortium.board.start_coordinator()
    assert np.array_equal(await model(consortium, run), quiet)


@pytest.mark.slow
async def test_lost_messages_are_said_again(consortium, dummy, quiet, monkeypatch):
    monkeypatch.setattr("comity_node.training.profiles.sum_exchange.RESEND_S", 0.5)
    chance = random.Random(3)
    consortium.board.drop = lambda kind, sender, receiver: kind.startswith("secagg") and chance.random() < 0.2
    _, run = await began(consortium, dummy)
    assert np.array_equal(await model(consortium, run), quiet)


@pytest.mark.slow
async def test_messages_may_come_twice_late_and_in_any_order(consortium, dummy, quiet):
    consortium.board.repeat, consortium.board.shuffle = 3, random.Random(11)
    _, run = await began(consortium, dummy)
    assert np.array_equal(await model(consortium, run), quiet)


@pytest.mark.slow
async def test_one_wrong_share_where_all_are_needed_costs_an_attempt_and_no_sum(consortium, dummy, quiet, monkeypatch):
    """The first share of one holder is of another quorum's weight: nothing opens, and the next attempt does."""
    spoiled = []
    share = KeyWorkers.share

    async def wrong(self, chunks, of, held, aggregate, fd):
        made = await share(self, chunks, of, held, aggregate, fd)
        if of.point == 2 and not spoiled:
            spoiled.append(of)
            return await share(self, chunks, of, _zeros(share_bytes(self._parameters)), aggregate, fd)
        return made

    monkeypatch.setattr(KeyWorkers, "share", wrong)
    _, run = await began(consortium, dummy)
    assert np.array_equal(await model(consortium, run), quiet)
    assert spoiled


def _zeros(size):
    fd = memory_file("zeros")
    os.ftruncate(fd, size)
    return fd
