"""Budgets in whole runs: noise of the right size at every party, paid by each grant, refused when it is used up."""

from __future__ import annotations

import math

import pytest

from comity.wire.errors import ComityError
from comity_crypto.noise import budget
from comity_node.statistics import party, vectors
from comity_node.statistics.questions import Question
from comity_node.training import grants, store
from comity_node.training.datasets import Copy
from comity_policies.documents import AggregateStep

PRIVACY = {"epsilon": "1", "delta": "0.000001"}


@pytest.mark.parametrize(("profile", "honest"), [("plain", 1), ("threshold", 2)])
def test_each_party_adds_its_own_share_of_the_noise(ask, profile, honest):
    """500 cells of one party: their noise has the variance that the budget asks for, not half of it, not none."""
    edges = ", ".join(str(edge) for edge in range(1_000, 1_501))
    agreement = ask.agree(f"histogram(age: {edges})", terms={"aggregation": profile, "privacy": PRIVACY})
    step = agreement.proposal.steps[0]
    assert isinstance(step, AggregateStep)
    node = ask.rig.nodes["hospital-b"]
    copy = Copy(node.home / "people.csv", ("age", "bmi", "group", "smoker"), 120)
    counted = party.count(agreement, step, Question(1).to_bytes(), copy, node.org)
    noise, parties = vectors.read(counted.content, 500)
    assert (counted.noise, parties) == (True, 1)
    # Nobody is that old: all that is there is noise.
    rho = budget.rho_of("1", "0.000001", 1)
    wanted = 1 / (2 * rho * honest)
    found = sum(each * each for each in noise) / len(noise)
    # Five standard errors of a sample variance of 500 are 0.32: half the noise, and twice the noise, are found out.
    assert abs(found / wanted - 1) < 5 * math.sqrt(2 / 500)
    assert abs(sum(noise)) / len(noise) < 5 * math.sqrt(wanted / 500)
    assert party.count(agreement, step, Question(1).to_bytes(), copy, node.org).content != counted.content


async def test_the_grant_pays_what_dp_accounting_says_and_then_nothing_runs(ask, rows):
    agreement = ask.agree("count where smoker = 1", uses=2, terms={"aggregation": "masked", "privacy": PRIVACY})
    rho = budget.rho_of("1", "0.000001", 2)
    for use in (1, 2):
        finished = await ask.run(agreement, use)
        assert finished["state"] == "COMPLETED", finished
        for org in ask.rig.nodes:
            spent = ask.rig.spent(org, agreement)
            assert (spent["privacy"], spent["noised"]) == (budget.cost_nano(rho, use, "0.000001"), use)
    assert budget.nano("1") - 2_000 < spent["privacy"] <= budget.nano("1")
    await ask.rig.until(lambda: len(ask.rig.receipts("hospital-b")) == 2)
    assert ask.rig.receipts("hospital-b")[-1]["grants"]["privacy"] == spent["privacy"]
    card = ask.rig.result("hospital-c", finished["run"]) / "card.json"
    await ask.rig.until(card.exists)
    with pytest.raises(ComityError, match="no privacy left"):
        grants.check(agreement, spent, grants.cost_of_noise(agreement, spent))


async def test_a_used_up_budget_is_a_named_refusal(ask):
    agreement = ask.agree("count", terms={"privacy": PRIVACY, "min_participants": 3})
    node = ask.rig.nodes["hospital-b"]
    node.read(lambda conn: store.spend(conn, agreement.digest, {"privacy": 5, "noised": 1}))
    finished = await ask.run(agreement)
    assert finished["state"] == "FAILED"
    await ask.rig.until(lambda: ask.rig.receipts("hospital-b"))
    refused = ask.rig.receipts("hospital-b")[-1]
    assert (refused["outcome"], refused["code"]) == ("refused", "GRANT_EXHAUSTED")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("count where age > 125", "EGRESS_DENIED"),
        ("mean(group in 0..1)", "DATASET_COLUMNS"),
        ("count where age > -5", "EGRESS_DENIED"),
    ],
)
async def test_too_few_records_or_no_numbers_leave_nothing(ask, text, code):
    least = {f"{org}/people": 20 for org in ask.rig.nodes}
    finished = await ask.run(ask.agree(text, terms={"min_cohort": least}))
    assert finished["state"] == "FAILED"
    await ask.rig.until(lambda: all(ask.rig.receipts(org) for org in ask.rig.nodes))
    assert {receipt["code"] for org in ask.rig.nodes for receipt in ask.rig.receipts(org)} == {code}
    assert finished["result"] is None
