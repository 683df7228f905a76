"""The rules of a review, one by one: four eyes, voices, delegations, reminders."""

from __future__ import annotations

from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.reviews import model
from comity_node.reviews.model import APPROVE, DENY, Delegation, Review, ReviewAsk, ReviewState, Voter

NOW, SOON, UNTIL = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "2026-01-11T00:00:00Z"


def item(approvals: int = 1, asker: str = "") -> Review:
    asked = ReviewAsk("dispatch", "ab" * 32, "a run", {"run": "run-1"}, (), "reviewer", approvals, UNTIL)
    return model.open_review(asked, NOW, asker)


def cast(review: Review, voter: Voter, decision: str = APPROVE, reason: str = "", now: str = SOON) -> Review:
    return model.cast(review, voter, decision, reason, review.ask.document_digest, now)


def refusal(act: Any, *arguments: Any, **named: Any) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        act(*arguments, **named)
    return caught.value.code


ANNA, BERT, CARLA = Voter("anna", True), Voter("bert", True), Voter("carla", False)


def test_one_reviewer_decides() -> None:
    approved = cast(item(), ANNA, reason="read it")
    assert (approved.state, approved.why, approved.decided_at) == (ReviewState.APPROVED, "read it", SOON)
    denied = cast(item(), ANNA, DENY, "not our purpose")
    assert (denied.state, denied.why) == (ReviewState.DENIED, "not our purpose")
    verdict = model.verdict_of(denied)
    assert verdict is not None
    assert (verdict.allowed, verdict.users) == (False, ("anna",))


def test_a_denial_gives_a_reason() -> None:
    assert refusal(cast, item(), ANNA, DENY, " ") is ErrorCode.MALFORMED


def test_four_eyes_are_two_users() -> None:
    once = cast(item(2), ANNA)
    assert (once.state, once.missing) == (ReviewState.OPEN, 1)
    assert cast(once, ANNA) is once
    assert refusal(cast, once, ANNA, DENY, "changed my mind") is ErrorCode.CONFLICT
    assert cast(once, BERT).state is ReviewState.APPROVED
    assert cast(once, BERT, DENY, "no").state is ReviewState.DENIED


@pytest.mark.parametrize("approvals", [1, 2])
def test_who_asked_does_not_decide(approvals: int) -> None:
    review = item(approvals, asker="anna")
    assert refusal(cast, review, ANNA) is ErrorCode.FORBIDDEN
    assert refusal(cast, review, ANNA, DENY, "no") is ErrorCode.FORBIDDEN
    assert refusal(cast, review, Voter("carla", False, ("anna",))) is ErrorCode.FORBIDDEN
    assert len(cast(review, BERT).votes) == 1


def test_the_local_account_alone_may_ask_and_decide_unless_four_eyes_are_asked() -> None:
    local = Voter("local", True)
    assert cast(item(1, asker="local"), local).state is ReviewState.APPROVED
    assert refusal(cast, item(2, asker="local"), local) is ErrorCode.FORBIDDEN


def test_without_the_role_it_takes_a_voice() -> None:
    assert refusal(cast, item(), CARLA) is ErrorCode.FORBIDDEN
    approved = cast(item(), Voter("carla", False, ("anna",)))
    assert [(vote.user, vote.voice) for vote in approved.votes] == [("carla", "anna")]


def test_a_voice_approves_once_but_may_still_deny() -> None:
    once = cast(item(2), Voter("carla", False, ("anna",)))
    assert refusal(cast, once, ANNA) is ErrorCode.FORBIDDEN
    assert cast(once, ANNA, DENY, "not in my name").state is ReviewState.DENIED
    assert cast(once, Voter("dora", False, ("anna", "bert"))).state is ReviewState.APPROVED


def test_a_vote_on_another_document_or_too_late_is_refused() -> None:
    assert refusal(model.cast, item(), ANNA, APPROVE, "", "0" * 64, SOON) is ErrorCode.CONFLICT
    assert refusal(cast, item(), ANNA, now=UNTIL) is ErrorCode.DEADLINE_PASSED
    expired = model.expire(item(), UNTIL)
    assert expired.state is ReviewState.EXPIRED
    assert refusal(cast, expired, ANNA) is ErrorCode.ILLEGAL_EVENT
    verdict = model.verdict_of(expired)
    assert verdict is not None
    assert not verdict.allowed


def test_nothing_is_asked_without_time_to_answer() -> None:
    asked = ReviewAsk("dispatch", "ab" * 32, "a run", {}, (), "reviewer", 1, NOW)
    assert refusal(model.open_review, asked, NOW) is ErrorCode.DEADLINE_PASSED


def test_people_are_reminded_half_way_and_near_the_end() -> None:
    review = item()
    assert model.next_reminder(review, NOW) == "2026-01-06T00:00:00Z"
    assert model.next_reminder(review, "2026-01-06T00:00:00Z") == "2026-01-10T00:00:00Z"
    assert model.next_reminder(review, "2026-01-10T00:00:00Z") == ""
    assert model.next_reminder(cast(review, ANNA), NOW) == ""


def delegation(**changes: str) -> Delegation:
    values = {"id": "del-1", "giver": "anna", "receiver": "carla", "role": "reviewer", "since": NOW, "until": UNTIL,
              "entered_by": "anna"}  # fmt: skip
    return Delegation(**{**values, **changes})


def test_a_delegation_is_one_voice_for_one_role_and_time() -> None:
    every = [delegation(), delegation(id="del-2", giver="bert"), delegation(id="del-3", giver="dora", ended_at=SOON)]
    assert model.voices_of(every, "carla", "reviewer", SOON) == ("anna", "bert")
    assert model.voices_of(every, "carla", "admin", SOON) == ()
    assert model.voices_of(every, "anna", "reviewer", SOON) == ()
    assert model.voices_of(every, "carla", "reviewer", UNTIL) == ()


@pytest.mark.parametrize(
    "changes",
    [{"receiver": "anna"}, {"until": NOW}, {"until": "2027-03-01T00:00:00Z"}, {"receiver": " "}, {"receiver": "a\nb"}],
)
def test_a_delegation_that_makes_no_sense_is_refused(changes: dict[str, str]) -> None:
    assert refusal(delegation, **changes) is ErrorCode.MALFORMED
