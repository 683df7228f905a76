"""Items of a review under every event in any order, duplicated, late and forged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.wire.errors import ComityError
from comity_node.reviews import model
from comity_node.reviews.model import APPROVE, DENY, Review, ReviewAsk, ReviewState, Voter
from comity_policies.documents import Reason

USERS = ("anna", "bert", "carla", "dora", "emil", "fred", "local")
START, UNTIL, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T00:00:01Z"


def ask(approvals: int = 1, **changes: Any) -> ReviewAsk:
    values: dict[str, Any] = {
        "stage": "proposal",
        "subject": "ab" * 32,
        "title": "a training",
        "document": {"purpose": "research", "rounds": 3},
        "reasons": (Reason("proposal.app", "APP_UNREVIEWED", "nobody has read the app"),),
        "role": "reviewer",
        "approvals": approvals,
        "until": UNTIL,
    }
    return ReviewAsk(**{**values, **changes})


voters = st.builds(
    Voter,
    st.sampled_from(USERS),
    st.booleans(),
    st.lists(st.sampled_from(USERS), max_size=3, unique=True).map(tuple),
)


class Reviewing(RuleBasedStateMachine):
    """One item; whatever comes, its rules hold."""

    @initialize(approvals=st.integers(1, 5), asker=st.sampled_from(("", *USERS)))
    def begin(self, approvals: int, asker: str) -> None:
        self.review = model.open_review(ask(approvals), START, asker)
        self.ended: Review | None = None
        self.denied = False

    def take(self, after: Review) -> None:
        assert after.ask == self.review.ask
        assert after.votes[: len(self.review.votes)] == self.review.votes, "votes are never taken back"
        if self.ended is not None:
            assert after is self.ended, "a terminal state stays"
        self.review = after
        if after.state is not ReviewState.OPEN and self.ended is None:
            self.ended = after

    @rule(voter=voters, decision=st.sampled_from((APPROVE, DENY)), reason=st.sampled_from(("", "no", "fine")),
          late=st.booleans(), forged=st.booleans())  # fmt: skip
    def vote(self, voter: Voter, decision: str, reason: str, late: bool, forged: bool) -> None:
        document = "f" * 64 if forged else self.review.ask.document_digest
        before = self.review
        try:
            after = model.cast(before, voter, decision, reason, document, LATE if late else START)
        except ComityError:
            return
        assert not forged
        again = model.cast(after, voter, decision, reason, document, LATE)
        assert again is after, "the same vote again changes nothing, even later"
        if after is not before:
            assert not late
            assert voter.user != model.excluded(before)
            assert voter.has_role or voter.voices
            assert decision == APPROVE or reason.strip()
        self.take(after)

    @rule(late=st.booleans())
    def expire(self, late: bool) -> None:
        after = model.expire(self.review, LATE if late else START)
        assert late or after is self.review
        self.take(after)

    @precondition(lambda self: self.ended is None)
    @rule(rare=st.integers(0, 5))
    def obsolete(self, rare: int) -> None:
        if rare == 0:
            self.take(model.make_obsolete(self.review, "the run ended", START))

    @invariant()
    def rules_hold(self) -> None:
        review = getattr(self, "review", None)
        if review is None:
            return
        approvals = [vote for vote in review.votes if vote.decision == APPROVE]
        users, voices = [vote.user for vote in review.votes], [vote.voice for vote in approvals]
        assert len(set(users)) == len(users), "one user, one vote"
        assert len(set(voices)) == len(voices), "one voice approves once"
        barred = model.excluded(review)
        assert not barred or barred not in {*users, *(vote.voice for vote in review.votes)}
        assert (review.state is ReviewState.DENIED) == any(vote.decision == DENY for vote in review.votes)
        enough = len(approvals) >= review.ask.approvals
        assert (review.state is ReviewState.APPROVED) == enough
        verdict = model.verdict_of(review)
        assert (verdict is None) == (review.state is ReviewState.OPEN)
        assert verdict is None or verdict.allowed == enough
        assert review.missing >= 0


Reviewing.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestReviewing = Reviewing.TestCase

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), plain, max_size=4), st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_an_id_names_one_document(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other = ask(document=first), ask(document=second)
    assert (one.id == other.id) == (one.document_digest == other.document_digest)
    assert ask(document=first, stage="agreement").id != one.id
    assert ask(document=first, subject="cd" * 32).id != one.id


@pytest.mark.parametrize(
    "changes",
    [{"approvals": 0}, {"approvals": 6}, {"approvals": True}, {"subject": "no"}, {"stage": "later"}, {"title": "a\nb"},
     {"until": "tomorrow"}, {"document": {"a": 0.5}}, {"role": "r" * 65}, {"proposal": "x"}],
)  # fmt: skip
def test_what_has_not_its_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ComityError):
        ask(**changes)
