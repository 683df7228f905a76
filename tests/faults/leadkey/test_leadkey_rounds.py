"""Whole runs under `lead-key`, undisturbed: one model for all, and what the coordinator gets to see."""

from __future__ import annotations

import numpy as np


async def test_three_rounds_give_every_recipient_the_mean(rig, dummy):
    agreement = rig.agree(dummy, rounds=3, config={"params": 1000, "num-server-rounds": 3})
    run = rig.board.prepare(agreement)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    everyone = ["hospital-a", "hospital-b", "hospital-c"]
    assert finished["manifest"] == [{"round": n, "participants": everyone, "dropped": []} for n in (1, 2, 3)]
    await rig.until(lambda: rig.proved_sums(agreement, run))
    assert rig.proved_sums(agreement, run) == dict.fromkeys(range(3), tuple(everyone))
    await rig.until(lambda: all((rig.result(org, run) / "card.json").exists() for org in rig.nodes))
    assert len({rig.model_digest(org, run) for org in rig.nodes}) == 1
    with np.load(rig.result("hospital-c", run) / "model.npz") as arrays:
        for name in arrays.files:
            assert np.abs(arrays[name] - 3.0).max() < 0.01
