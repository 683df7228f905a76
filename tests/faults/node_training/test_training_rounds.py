"""Whole runs under `plain`, undisturbed: results, receipts, grants, events, and what the coordinator gets to see."""

from __future__ import annotations

import json
import random

import numpy as np

from comity_node.training import store


async def test_three_rounds_give_every_recipient_the_same_model(rig, dummy):
    agreement = rig.agree(dummy, rounds=3, config={"params": 1000, "num-server-rounds": 3})
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED"
    assert finished["error"] is None
    assert finished["rounds"] == 3
    everyone = ["hospital-a", "hospital-b", "hospital-c"]
    assert finished["manifest"] == [{"round": n, "participants": everyone, "dropped": []} for n in (1, 2, 3)]
    assert finished["orders"] == dict.fromkeys(everyone, 3)
    await rig.until(lambda: all((rig.result(org, run) / "card.json").exists() for org in rig.nodes))
    assert len({rig.model_digest(org, run) for org in rig.nodes}) == 1
    with np.load(rig.result("hospital-c", run) / "model.npz") as arrays:
        assert all((arrays[name] == 3.0).all() for name in arrays.files)
        assert sum(arrays[name].size for name in arrays.files) == 1000
    card = json.loads((rig.result("hospital-b", run) / "card.json").read_text())
    assert card["app"]["digest"] == agreement.proposal.steps[0].app.digest
    assert card["participants"] == everyone


async def test_receipts_and_grants_say_what_was_spent(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config={"params": 100, "num-server-rounds": 2})
    run = rig.board.prepare(agreement)
    await rig.finish(run)
    await rig.until(lambda: all(len(rig.receipts(org)) == 2 for org in rig.nodes))
    for org in rig.nodes:
        spent = rig.spent(org, agreement)
        assert (spent["uses"], spent["rounds"], spent["releases"]) == (1, 2, 2)
        receipts = rig.receipts(org)
        assert [receipt["journal_seq"] for receipt in receipts] == [1, 2]
        assert all(receipt["outcome"] == "result" and receipt["result"] for receipt in receipts)
        assert all(all(receipt["predicates"].values()) and len(receipt["predicates"]) == 6 for receipt in receipts)
        assert receipts[-1]["grants"] == spent


async def test_large_models_go_through_the_spool_and_leave_no_payload_behind(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config={"params": 200_000, "num-server-rounds": 2})
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED"
    assert rig.board.spool, "nothing was large enough"
    await rig.until((rig.result("hospital-b", run) / "card.json").exists)
    for node in rig.nodes.values():
        await rig.until(lambda node=node: node.read(lambda conn: store.find_run(conn, run)).closed)
        # The sealed result goes too, once every recipient has confirmed that it keeps it.
        await rig.until(lambda node=node: list((node.home / "payloads").iterdir()) == [])


async def test_an_app_sees_only_the_granted_columns(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config={"params": 100, "num-server-rounds": 1})
    rig.board.auto_close = False
    run = rig.board.prepare(agreement)
    await rig.finish(run)
    data = rig.nodes["hospital-b"].home / "runs" / run / "data" / "patients.csv"
    lines = data.read_text().splitlines()
    assert lines[0] == "age,outcome"
    assert len(lines) == 41
    assert "patient-1" not in data.read_text()
    assert data.stat().st_mode & 0o777 == 0o400


async def test_policies_see_measured_facts(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config={"params": 100, "num-server-rounds": 1})
    run = rig.board.prepare(agreement)
    await rig.finish(run)
    stages = dict(rig.nodes["hospital-c"].policy.asked)
    dispatch, egress = stages["dispatch"], stages["egress"]
    assert dispatch["grants"] == {
        "uses_left": 1, "rounds_left": 1, "releases_left": None, "egress_bytes_left": None, "privacy_left": None,
    }  # fmt: skip
    assert dispatch["dataset"]["columns"] == ["age", "outcome"]
    result = egress["result"]
    assert result["kind"] == "model"
    assert result["cohort"] == 40
    assert result["metrics"] == ["num-examples"]
    assert result["aggregation"] == "plain"


async def test_events_tell_the_story_once_and_in_order(rig, dummy):
    agreement = rig.agree(dummy, rounds=2, config={"params": 100, "num-server-rounds": 2})
    run = rig.board.prepare(agreement)
    kinds = [event.kind async for event in rig.nodes["hospital-a"].service.events.watch(run)]
    assert kinds[-1] == "closed"
    assert kinds.count("question") == 2
    assert kinds.count("ended") == 1
    pages = await rig.nodes["hospital-a"].service.events.page(run)
    assert [event.no for event in pages] == list(range(1, len(pages) + 1))


async def test_relayed_messages_may_come_twice_and_in_any_order(rig, dummy):
    rig.board.repeat = 3
    rig.board.shuffle = random.Random(7)
    agreement = rig.agree(dummy, rounds=3, config={"params": 1000, "num-server-rounds": 3})
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED"
    for org in rig.nodes:
        assert rig.spent(org, agreement)["rounds"] == 3
