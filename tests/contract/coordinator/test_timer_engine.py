"""The engine of plain timers rings at deadlines, also those that an earlier process left behind."""

import asyncio

from comity_coordinator.training import store as training_store
from comity_coordinator.workflows.timers import TimerEngine


async def until(found, tries=200):
    for _ in range(tries):
        if found():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def test_a_deadline_that_passed_while_nobody_ran_is_judged_at_start(world):
    proposal, _, _ = world.propose()
    world.clock.pass_s(400)
    engine = TimerEngine(world.db)
    # The test's clock is ahead of the machine's, which timers go by: let every timer ring at once.
    engine._arm = lambda family, subject, _deadline: engine._after(family, subject, 0.0)
    await engine.start(world.negotiation, world.training)
    try:
        await until(lambda: world.hub.sent["beta"][-1][1].get("state") == "TERMINATED")
    finally:
        await engine.close()
    assert proposal.proposal_id == world.hub.sent["beta"][-1][1]["proposal_id"]


async def test_it_rings_for_a_negotiation_and_closes_a_run(world):
    engine = TimerEngine(world.db)
    await engine.start(world.negotiation, world.training)
    rung = []
    real = world.training.on_deadline
    world.training.on_deadline = lambda conn, run: rung.append(run) or real(conn, run)
    try:
        _, _, run = await asyncio.to_thread(world.agree)
        engine.run_created(run)
        await until(lambda: rung)
        await until(lambda: ("run", run) in engine._timers)
        world.clock.pass_s(901)
        engine.run_changed(run)
        await until(lambda: world.read(lambda conn: training_store.get(conn, run)).state == "FAILED")
    finally:
        await engine.close()
    assert not engine._timers
