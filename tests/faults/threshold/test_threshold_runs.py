"""Whole runs under `threshold`, undisturbed: one model for all, and no key outlives it on disk."""

from __future__ import annotations

import numpy as np

from comity_node.training import store


async def test_three_rounds_give_every_recipient_the_mean(consortium, dummy):
    rig = consortium
    agreement = rig.agree(dummy, rounds=3, config={"params": 1000, "num-server-rounds": 3})
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    everyone = ["hospital-a", "hospital-b", "hospital-c"]
    assert finished["manifest"] == [{"round": n, "participants": everyone, "dropped": []} for n in (1, 2, 3)]
    await rig.until(lambda: all((rig.result(org, run) / "card.json").exists() for org in rig.nodes))
    assert len({rig.model_digest(org, run) for org in rig.nodes}) == 1
    with np.load(rig.result("hospital-c", run) / "model.npz") as arrays:
        for name in arrays.files:
            assert np.abs(arrays[name] - 3.0).max() < 0.01
    for node in rig.nodes.values():
        folder = node.home / "payloads"
        await rig.until(lambda node=node: node.read(lambda conn: store.find_run(conn, run)).closed)
        assert not list(folder.glob("key-*")), "keys go with their run"
        assert not list(folder.glob(".ceremony-*"))
        assert not [kind for kind, _ in node.link.refused if kind == "run.closed"]
