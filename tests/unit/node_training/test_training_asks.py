"""What people are asked about orders and results: who has to look, what the document says, what each state means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.reviews import model
from comity_node.reviews.model import ReviewState, Voter
from comity_node.training import people
from comity_node.training.intake import Received
from comity_node.training.needs import ONE_REVIEWER, TERM_ASKS, Need, need_of
from comity_policies.decisions import Decision, ReviewNeed, Stage
from comity_policies.documents import Agreement, AppRef, DatasetAsk, OrderHeader, Proposal, Reason, TrainStep
from comity_policies.terms import Terms

ORGS, ME = ("hospital-a", "hospital-b"), "hospital-b"
NOW, SOON, LATER = "2026-11-22T10:00:00Z", "2026-11-22T10:30:00Z", "2026-11-22T11:00:00Z"
KEYS = OrgKeys.generate()
LOOK, OTHER = Reason("own.look", "LOOK", "round 1 is large"), Reason("own.other", "OTHER", "why not")
NOBODY = Terms.parse({"aggregation": "plain"})


def agreement(**terms: Any) -> Agreement:
    step = TrainStep("fit", ORGS[0], AppRef("ab" * 32, 1, "app", "us", "1"), 3, {}, 60)
    asks = tuple(DatasetAsk(org, "patients", ("age", "name")) for org in ORGS)
    wanted = Terms.parse({"aggregation": "plain", **terms})
    proposal = Proposal(
        "p-1", 1, "oncology", ORGS[0], "research", "a title", (step,), ORGS, (), 2, asks, wanted, "2099-01-01T00:00:00Z"
    )
    return Agreement("agr-1", "oncology", "cd" * 32, proposal, ORGS, wanted)


def order(number: int = 1) -> Received:
    header = OrderHeader(
        agreement=agreement().digest,
        run="run-1",
        step="fit",
        round=number,
        seq=number,
        message_type="train",
        lead=ORGS[0],
        receivers=ORGS,
        payload={},
        content_digest="ef" * 32,
        reply_by=LATER,
    )
    body = header.to_json()
    return Received(
        header, sign_statement(KEYS, kind="order", consortium="oncology", issuer=ORGS[0], body=body), b"", None
    )


def review(*need: Any, reason: Reason = LOOK) -> Decision:
    return Decision("review", (reason,), review=ReviewNeed(*need))


def test_nobody_looks_unless_the_policy_or_a_term_says_so() -> None:
    looks = ReviewNeed("admin", 2)
    assert need_of(NOBODY, Stage.DISPATCH, [Decision("allow")], looks) is None
    asked = Terms.parse({"human_review": ["egress"]})
    assert need_of(asked, Stage.DISPATCH, [Decision("allow")], looks) is None
    assert need_of(asked, Stage.EGRESS, [Decision("allow")], looks) == Need(looks, (TERM_ASKS,))
    assert need_of(asked, Stage.EGRESS, [review()], looks) == Need(ReviewNeed(), (LOOK,)), "the policy knows better"


def test_several_decisions_are_one_question_as_strict_as_the_strictest() -> None:
    decisions = [Decision("allow"), review("reviewer", 2), review("reviewer", 1, "order", reason=OTHER), review()]
    wanted = Need(ReviewNeed("reviewer", 2, "order"), (LOOK, OTHER))
    assert need_of(NOBODY, Stage.DISPATCH, decisions, ONE_REVIEWER) == wanted


def test_the_step_of_a_run_is_one_question_whatever_the_round() -> None:
    need = Need(ReviewNeed(), (LOOK,))
    first = people.ask_for_order(order(1), agreement(), need, ME, NOW)
    second = people.ask_for_order(
        order(2), agreement(), replace(need, reasons=(replace(LOOK, message="round 2 is large"),)), ME, SOON
    )
    assert first.id == second.id
    assert first.until == "2026-11-29T10:00:00Z"
    assert (first.run, first.proposal) == ("run-1", agreement().proposal.digest)
    assert people.ask_for_order(order(1), agreement(not_after=SOON), need, ME, NOW).until == SOON
    document = first.document
    assert document["datasets"] == [{"org": ME, "dataset": "patients", "columns": ["age", "name"]}]
    assert (document["step"]["app"]["digest"], document["who"]["approvals"]) == ("ab" * 32, 1)


@pytest.mark.parametrize(
    "other",
    [
        Need(ReviewNeed("reviewer", 2), (LOOK,)),
        Need(ReviewNeed("admin", 1), (LOOK,)),
        Need(ReviewNeed(), (LOOK, OTHER)),
        Need(ReviewNeed("reviewer", 1, "order"), (LOOK,)),
    ],
)
def test_another_need_is_another_question(other: Need) -> None:
    first = people.ask_for_order(order(), agreement(), Need(ReviewNeed(), (LOOK,)), ME, NOW)
    assert people.ask_for_order(order(), agreement(), other, ME, NOW).id != first.id


def test_one_order_is_one_question() -> None:
    need = Need(ReviewNeed("reviewer", 1, "order"), (LOOK,))
    first, second = (people.ask_for_order(order(number), agreement(), need, ME, NOW) for number in (1, 2))
    assert first.subject == order(1).digest
    assert first.subject != second.subject
    assert (first.until, first.document["order"]["round"]) == (LATER, 1)


def test_another_result_is_another_question() -> None:
    facts = {"kind": "model", "cohort": 40, "size_bytes": 10, "metrics": [], "clipped": False, "noise": False}
    asks = [
        people.ask_for_result(
            agreement(), order().header, order().digest, {**facts, "sha256": digest}, Need(ReviewNeed(), (LOOK,)), ME
        )
        for digest in ("01" * 32, "02" * 32)
    ]
    assert asks[0].subject == asks[1].subject == order().digest
    assert asks[0].id != asks[1].id
    assert (asks[0].stage, asks[0].document["result"]["cohort"]) == ("egress", 40)


def test_check_6_by_state() -> None:
    item = people.ask_for_order(order(), agreement(), Need(ReviewNeed("reviewer", 2), (LOOK,)), ME, NOW)
    asked = model.open_review(item, NOW)

    def code(found: model.Review) -> tuple[ErrorCode, dict[str, Any]]:
        with pytest.raises(ComityError) as caught:
            people.check_6_person(found)
        return caught.value.code, dict(caught.value.facts)

    needed, facts = code(asked)
    assert needed is ErrorCode.REVIEW_NEEDED
    assert facts == {
        "stage": "dispatch", "role": "reviewer", "missing": 2, "since": NOW, "until": item.until, "review": item.id,
    }  # fmt: skip
    once = model.cast(asked, Voter("anna", True), "approve", "", item.document_digest, SOON)
    assert code(once)[1]["missing"] == 1
    people.check_6_person(model.cast(once, Voter("bert", True), "approve", "", item.document_digest, SOON))
    denied = model.cast(once, Voter("bert", True), "deny", "no", item.document_digest, SOON)
    assert code(denied)[0] is ErrorCode.REVIEW_DENIED
    assert code(model.expire(asked, item.until))[0] is ErrorCode.DEADLINE_PASSED
    assert code(model.make_obsolete(asked, "over", SOON))[0] is ErrorCode.REVIEW_DENIED
    assert {asked.state, denied.state} == {ReviewState.OPEN, ReviewState.DENIED}
