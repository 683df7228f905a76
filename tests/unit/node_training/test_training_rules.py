"""The pure rules of training: rounds from questions, manifests, grants, verdicts, run ids."""

from __future__ import annotations

import json

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.training import grants
from comity_node.training.enforcement import word_of
from comity_node.training.led import MANIFEST_ROUNDS_MAX, RoundCounter, manifest, orders_sent, verdict_on
from comity_node.training.tables import CLOSED, AnswerRow, QuestionRow
from comity_policies.documents import Agreement, AppRef, Proposal, TrainStep, run_id
from comity_policies.terms import Terms

ORGS = ("hospital-a", "hospital-b")


def agreement_with(terms=None, rounds=3, uses=1):
    step = TrainStep("fit", "hospital-a", AppRef("a" * 64, 1, "app", "us", "1"), rounds, {}, 60)
    wanted = Terms.parse(terms or {})
    proposal = Proposal(
        "p-1", 1, "oncology", "hospital-a", "research", "t", (step,), ORGS, (), 2, (), wanted,
        "2099-01-01T00:00:00Z", uses,
    )  # fmt: skip
    return Agreement("agr-1", "oncology", "c" * 64, proposal, ORGS, wanted)


def question(seq, number, receivers=ORGS):
    return QuestionRow("run-1", seq, "train", number, json.dumps(receivers), "0" * 64, b"", b"", None, None, CLOSED, "")


def answer(seq, org, code=None):
    error = None if code is None else json.dumps(ComityError(code).to_json())
    outcome = "result" if code is None else "failed"
    return AnswerRow("run-1", seq, org, outcome, error, None, None, None, None)


def test_a_round_begins_when_somebody_trains_again():
    counter = RoundCounter()
    asked = [
        ("evaluate", ORGS, 0),
        ("train", ORGS, 1),
        ("evaluate", ORGS, 1),
        ("train", ORGS[:1], 2),
        ("train", ORGS[1:], 2),
        ("query", ORGS, 2),
        ("train", ORGS[1:], 3),
    ]
    assert [counter.next(word, receivers) for word, receivers, _ in asked] == [number for *_, number in asked]


def test_a_manifest_names_who_took_part_and_who_was_dropped():
    rows = manifest(
        [question(0, 1), question(1, 1), question(2, 2)],
        [
            answer(0, "hospital-a"), answer(0, "hospital-b"), answer(1, "hospital-a"),
            answer(1, "hospital-b", ErrorCode.TIMEOUT), answer(2, "hospital-a"), answer(2, "hospital-b"),
        ],
    )  # fmt: skip
    assert rows == [
        {"round": 1, "participants": ["hospital-a"], "dropped": [{"org": "hospital-b", "code": "TIMEOUT"}]},
        {"round": 2, "participants": list(ORGS), "dropped": []},
    ]


def test_a_long_manifest_keeps_the_rounds_that_differ():
    rounds = MANIFEST_ROUNDS_MAX + 500
    answers = [answer(seq, "hospital-a", ErrorCode.TIMEOUT if seq == 700 else None) for seq in range(rounds)]
    rows = manifest([question(seq, seq + 1) for seq in range(rounds)], answers)
    assert [row["round"] for row in rows] == [1, 701, 702]


def test_orders_are_counted_by_receiver():
    assert orders_sent([question(0, 1), question(1, 2, ORGS[:1])]) == {"hospital-a": 2, "hospital-b": 1}


def test_too_few_results_are_a_verdict():
    gone, denied = ComityError(ErrorCode.TIMEOUT), ComityError(ErrorCode.POLICY_DENIED)
    assert verdict_on(2, 2, {}) is None
    assert verdict_on(1, 2, {"b": gone}).code is ErrorCode.PARTICIPANTS_TOO_FEW
    assert verdict_on(0, 1, {"a": denied, "b": denied}).code is ErrorCode.POLICY_DENIED
    assert verdict_on(0, 1, {"a": denied, "b": gone}).code is ErrorCode.PARTICIPANTS_TOO_FEW


def test_limits_are_the_stricter_of_proposal_and_terms():
    assert agreement_with(rounds=3, uses=2).limits == {"uses": 2, "rounds": 6}
    terms = {"rounds": 2, "uses": 5, "releases": 4}
    assert agreement_with(terms, rounds=3, uses=1).limits == {"uses": 1, "rounds": 2, "releases": 4}


def test_a_grant_ends_exactly_at_its_limit():
    agreement = agreement_with({"releases": 2}, rounds=9)
    cost = grants.cost_of_start("evaluate", first_of_run=False)
    grants.check(agreement, {"releases": 1}, cost)
    with pytest.raises(ComityError) as refusal:
        grants.check(agreement, {"releases": 2}, cost)
    assert refusal.value.facts["field"] == "releases"


def test_an_agreement_counts_to_the_second_that_it_names():
    agreement = agreement_with({"not_after": "2030-01-01T00:00:00Z"})
    grants.check_open(agreement, {}, "2030-01-01T00:00:00Z")
    with pytest.raises(ComityError) as refusal:
        grants.check_open(agreement, {}, "2030-01-01T00:00:01Z")
    assert refusal.value.code is ErrorCode.GRANT_EXPIRED


def test_the_first_order_of_a_run_costs_a_use():
    assert grants.cost_of_start("train", first_of_run=True) == {"releases": 1, "rounds": 1, "uses": 1}
    assert grants.cost_of_start("evaluate", first_of_run=False) == {"releases": 1}


def test_names_follow_the_plan():
    assert run_id("a" * 64, 1).startswith("run-")
    assert len(run_id("a" * 64, 1)) == 30
    assert run_id("a" * 64, 1) != run_id("a" * 64, 2)
    assert word_of("train.first") == "train"
