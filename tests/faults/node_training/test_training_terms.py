"""Terms at work: what is measured is compared with them, and a refusal costs nothing and names the term."""

from __future__ import annotations

import pytest

CONFIG = {"params": 100, "num-server-rounds": 3}


async def refused(rig, dummy, terms):
    """Run under terms; returns how the run ended, B's receipt of the refusal, and what B spent."""
    agreement = rig.agree(dummy, rounds=3, config=CONFIG, terms=terms)
    finished = await rig.finish(rig.board.prepare(agreement))
    assert finished["state"] == "FAILED"

    def refusals():
        return [receipt for receipt in rig.receipts("hospital-b") if receipt["code"] is not None]

    await rig.until(refusals)  # receipts go out in batches: those of rounds that went well may come before
    return finished, refusals()[-1], rig.spent("hospital-b", agreement)


async def test_a_term_that_nobody_enforces_is_never_run(rig, dummy):
    finished, receipt, spent = await refused(rig, dummy, {"privacy": {"epsilon": "1", "delta": "0.00001"}})
    assert finished["error"]["code"] == "UNSUPPORTED"
    assert (receipt["outcome"], receipt["code"]) == ("refused", "UNSUPPORTED")
    assert receipt["predicates"]["conforms"] is False
    assert spent == {}


async def test_a_cohort_below_the_minimum_lets_nothing_out(rig, dummy):
    finished, receipt, _ = await refused(rig, dummy, {"min_cohort": {f"{org}/patients": 41 for org in rig.nodes}})
    assert finished["error"]["code"] == "EGRESS_DENIED"
    assert (receipt["outcome"], receipt["code"], receipt["egress_bytes"]) == ("failed", "EGRESS_DENIED", 0)


@pytest.mark.parametrize(("field", "limit"), [("releases", 2), ("egress_bytes", 3_000)])
async def test_a_grant_that_is_used_up_ends_the_work(rig, dummy, field, limit):
    _, receipt, spent = await refused(rig, dummy, {field: limit})
    assert receipt["code"] == "GRANT_EXHAUSTED"
    assert 0 < spent[field] <= limit
