"""Four parties, of whom three open a sum: whoever leaves, whenever, what is opened is the exact sum of a stated set."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest

from comity.wire.errors import ErrorCode
from comity_crypto.secagg.bfv.encoder import LEVELS
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.threshold.shares import share_bytes
from comity_crypto.secagg.threshold.workers import KeyWorkers
from comity_node.training import store
from comity_node.training.profiles import sum_form, sum_lead, threshold_collector, threshold_store
from comity_node.training.profiles.threshold_openings import Openings
from comity_node.training.questions import QuestionDesk

pytestmark = pytest.mark.usefixtures("four")

PARAMS = 2_000
LEAD, LEAVER = "hospital-a", "hospital-d"
WEIGHT_MAX, CLIP = 100, 60.0
# All have committed, and not all have said their last word: nobody's part can be left out, nor be completed for it.
BETWEEN = ("secagg.commitments-signature", "secagg.linear-digest")
FEW = {"min_participants": 3}


def few(kept, *others):
    """Moments of which the `kept` ones run always, the `others` in the slow tests."""
    return [*kept, *(pytest.param(each, marks=pytest.mark.slow) for each in others)]


def asked(rig, app, **terms):
    config = {"params": PARAMS, "num-server-rounds": 1, "differ": 0}
    wanted = {"weight_max": WEIGHT_MAX, "clip_norm": str(CLIP), **terms}
    agreement = rig.agree(app, rounds=1, config=config, terms=wanted, parties=tuple(rig.nodes))
    return agreement, rig.board.prepare(agreement)


def said(rig, kind):
    return sum(1 for name, body in rig.board.seen if name == "secagg" and kind.encode() in body)


async def events(rig, run, kind):
    page = await rig.nodes[LEAD].service.events.page(run)
    return [event.body for event in page if event.kind == kind]


async def check_mean(rig, run, parties):
    """The model is the weighted mean of exactly these parties' parts."""
    await rig.until((rig.result(LEAD, run) / "card.json").exists, 30)
    with np.load(rig.result(LEAD, run) / "model.npz") as arrays:
        found = arrays[arrays.files[0]]
    x = np.linspace(-1, 1, PARAMS, dtype=np.float32)
    places = [sorted(rig.nodes).index(org) for org in parties]
    parts = [np.random.default_rng(place).standard_normal(PARAMS).astype(np.float32) for place in places]
    weights = [10 * (place + 1) / WEIGHT_MAX for place in places]
    mean = np.average(parts, axis=0, weights=weights)
    spread = np.abs(np.asarray(parts) - mean).max()
    most = sum_form.mean_error(8 * CLIP / PARAMS**0.5, LEVELS, weights, spread) + np.spacing(np.abs(found).max())
    assert np.abs(found - (x + mean)).max() <= most


@pytest.mark.parametrize(
    "moment",
    few(
        ["secagg.share-commitment", "secagg.checked"],
        "secagg.commitments-signature",
        "secagg.nonce-commitment",
        "secagg.deal-check",
        'secagg.ready"',
        "secagg.mask-seed",
        'secagg.commitment"',
        "secagg.linear-digest",
        "secagg.quorum-call",
    ),
)
async def test_who_leaves_is_done_without_or_named(consortium, make_app, monkeypatch, moment):
    rig = consortium
    monkeypatch.setattr("comity_node.training.questions.GONE_S", 0.2)
    _, run = asked(rig, make_app(), **FEW)
    await rig.until(lambda: said(rig, moment) > 0, 60)
    await rig.nodes[LEAVER].down()
    finished = await rig.finish(run, 90)
    if finished["state"] == "FAILED" and moment in BETWEEN:
        dropped = {each["org"]: each["code"] for each in finished["manifest"][0]["dropped"]}
        stayed = dict.fromkeys(set(rig.nodes) - {LEAVER}, "PARTICIPANTS_TOO_FEW")
        assert dropped == {LEAVER: "UNAVAILABLE", **stayed}
        return
    assert finished["state"] == "COMPLETED", finished
    train = next(each for each in await events(rig, run, "question") if each["type"] == "train")
    assert set(train["participants"]) | set(train["dropped"]) == set(rig.nodes)
    assert set(train["participants"]) >= set(rig.nodes) - {LEAVER}
    await check_mean(rig, run, train["participants"])


async def test_who_leaves_once_the_sum_is_open_is_in_it_and_named_so(consortium, make_app, monkeypatch):
    """What the manifest says and what the model is made of are one set, whenever a node is given up."""
    rig = consortium
    monkeypatch.setattr("comity_node.training.questions.GONE_S", 0.2)
    saw, give_up = Openings.saw, QuestionDesk._give_up
    opened, given_up = asyncio.Event(), asyncio.Event()

    async def saw_late(self, offer, org, *of):
        if self._exchange.me == org == LEAD and not opened.is_set():
            opened.set()
            await given_up.wait()
        await saw(self, offer, org, *of)

    async def give_up_seen(self, org):
        await give_up(self, org)
        if org == LEAVER:
            given_up.set()

    monkeypatch.setattr(Openings, "saw", saw_late)
    monkeypatch.setattr(QuestionDesk, "_give_up", give_up_seen)
    _, run = asked(rig, make_app(), **FEW)
    await rig.until(opened.is_set, 60)
    await rig.nodes[LEAVER].down()
    finished = await rig.finish(run, 90)
    assert finished["state"] == "COMPLETED", finished
    train = next(each for each in await events(rig, run, "question") if each["type"] == "train")
    assert (train["participants"], train["dropped"]) == (sorted(rig.nodes), {})
    await check_mean(rig, run, sorted(rig.nodes))


@pytest.mark.slow
async def test_a_holder_that_falls_silent_is_left_out_of_the_next_quorum(consortium, make_app, monkeypatch):
    rig, silent = consortium, []
    monkeypatch.setattr("comity_node.training.profiles.sum_exchange.STEP_S", 3.0)
    share = KeyWorkers.share

    async def late(self, chunks, of, held, aggregate, fd):
        if of.point == 2:
            silent.append(of.quorum)
            await rig.until(lambda: False, 60)
        return await share(self, chunks, of, held, aggregate, fd)

    monkeypatch.setattr(KeyWorkers, "share", late)
    _, run = asked(rig, make_app())
    assert (await rig.finish(run, 90))["state"] == "COMPLETED"
    assert silent
    assert said(rig, "secagg.quorum-call") >= 2
    await check_mean(rig, run, sorted(rig.nodes))


def wrong_share(monkeypatch, point):
    """Let the holder at a point of every quorum share another key than the round's."""
    share = KeyWorkers.share

    async def wrong(self, chunks, of, held, aggregate, fd):
        if of.point == point:
            held = memory_file("zeros")
            os.ftruncate(held, share_bytes(self._parameters))
        return await share(self, chunks, of, held, aggregate, fd)

    monkeypatch.setattr(KeyWorkers, "share", wrong)


async def test_a_wrong_share_is_named_and_another_quorum_opens_the_same_sum(consortium, make_app, monkeypatch):
    rig = consortium
    wrong_share(monkeypatch, 2)
    _, run = asked(rig, make_app())
    finished = await rig.finish(run, 60)
    assert finished["state"] == "COMPLETED", finished
    assert finished["manifest"] == [{"round": 1, "participants": sorted(rig.nodes), "dropped": []}]
    assert {tuple(each["orgs"]) for each in await events(rig, run, "suspects")} == {("hospital-b",)}
    await check_mean(rig, run, sorted(rig.nodes))


async def test_where_all_are_needed_a_wrong_share_ends_the_round_without_a_name(consortium, make_app, monkeypatch):
    rig = consortium
    monkeypatch.setattr(sum_lead, "ATTEMPTS_MAX", 2)
    wrong_share(monkeypatch, 2)
    _, run = asked(rig, make_app(), release_quorum=4)
    finished = await rig.finish(run, 60)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "BAD_SHARE")
    assert "org" not in finished["error"]["facts"]
    assert "hospital-b" not in {each["org"] for each in await events(rig, run, "suspects")}
    assert {each["code"] for each in finished["manifest"][0]["dropped"]} == {"BAD_SHARE"}


async def test_no_holder_takes_part_below_the_agreed_quorum(consortium, make_app, monkeypatch):
    """A lead that would open sums with fewer gets no keys, and so no sums."""
    rig = consortium
    monkeypatch.setattr(threshold_collector, "quorum_of", lambda agreement: 3)
    asked(rig, make_app(), release_quorum=4)
    others = [node for org, node in rig.nodes.items() if org != LEAD]
    await rig.until(lambda: all(node.link.refused for node in others), 30)
    assert {(kind, error.code) for node in others for kind, error in node.link.refused} == {
        ("secagg", ErrorCode.ROSTER_MISMATCH)
    }
    assert said(rig, "secagg.nonce-commitment") == 1, "the lead's own"
    assert not said(rig, "secagg.threshold-offer")


@pytest.mark.slow
async def test_a_node_that_starts_again_erases_what_was_in_use(consortium, make_app):
    rig = consortium
    _, run = asked(rig, make_app(), **FEW)
    await rig.until(lambda: said(rig, 'secagg.ready"') > 3, 60)
    node = rig.nodes[LEAVER]
    await node.crash()
    left = {path.name for path in (node.home / "payloads").glob("key-*")}
    await node.up()
    taken = node.read(
        lambda conn: [row for row in conn.execute(threshold_store.keys.select()) if row.session is not None]
    )
    assert taken
    assert all(row.file is None for row in taken)
    assert {f"key-{row.key_id}" for row in taken} <= left, "it was in use when the node died"
    assert (await rig.finish(run, 60))["state"] == "COMPLETED"
    await rig.until(lambda: node.read(lambda conn: store.find_run(conn, run)).closed, 30)
    assert not list((node.home / "payloads").glob("key-*"))
