"""A member is suspended during a run: the next order is refused by name, and the run ends in a named state."""

from __future__ import annotations

from dataclasses import replace

PAIR = ("hospital-a", "hospital-b")
SMALL = {"params": 100}


async def test_a_suspension_stops_the_next_order(rig, dummy):
    agreement = rig.agree(dummy, rounds=30, config={**SMALL, "num-server-rounds": 30}, parties=PAIR)
    run = rig.board.prepare(agreement)
    await rig.until(lambda: rig.spent("hospital-b", agreement).get("rounds", 0) >= 2)
    charters = rig.nodes["hospital-b"].charters
    before = charters.charter
    charters.charter = replace(before, version=2, previous=before.digest, suspended=("hospital-a",))
    spent = rig.spent("hospital-b", agreement)["rounds"]
    finished = await rig.finish(run)
    assert finished["state"] in ("FAILED", "COMPLETED")
    assert finished["manifest"][-1]["dropped"] == [{"org": "hospital-b", "code": "SUSPENDED"}]
    assert rig.spent("hospital-b", agreement)["rounds"] <= spent + 1
