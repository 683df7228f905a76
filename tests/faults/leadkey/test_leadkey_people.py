"""People under `lead-key`: the sum waits for a party whose people have not decided, and goes on with it."""

from __future__ import annotations

import asyncio

import pytest

from comity_node.access.model import Principal
from comity_node.reviews import store as reviews
from comity_node.training import questions
from comity_node.training.profiles import sum_exchange
from comity_policies.decisions import Decision, ReviewNeed, Stage
from comity_policies.documents import Reason

READY_S = 1.0
CONFIG = {"params": 1000, "num-server-rounds": 1}
EVERYONE = ["hospital-a", "hospital-b", "hospital-c"]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(questions, "OWN_RETRY_S", 0.2)
    monkeypatch.setattr(questions, "RESEND_S", 0.5)
    monkeypatch.setattr(questions, "REPLY_S", 0.5)
    monkeypatch.setattr(sum_exchange, "READY_S", READY_S)


async def voted(rig, org, decision, reason="looked"):
    await rig.until(lambda: rig.nodes[org].read(lambda conn: reviews.every(conn, open_only=True, whole=True)))
    await asyncio.sleep(READY_S + 1.0)  # a sum that did not wait would have closed its roster by now
    review = rig.nodes[org].read(lambda conn: reviews.every(conn, open_only=True, whole=True))[0]
    who = Principal("anna", frozenset({"reviewer"}), "token")
    digest = review.ask.document_digest
    await rig.nodes[org].reviews.vote(review.ask.id, who, decision=decision, reason=reason, document=digest)
    return review


@pytest.mark.parametrize(
    ("org", "stage"),
    [
        pytest.param("hospital-a", Stage.DISPATCH, marks=pytest.mark.slow),
        ("hospital-b", Stage.DISPATCH),
        pytest.param("hospital-b", Stage.EGRESS, marks=pytest.mark.slow),
    ],
)
async def test_a_sum_waits_for_the_people_of_a_party(rig, dummy, org, stage):
    need = ReviewNeed("reviewer", 1, "run")
    rig.nodes[org].policy.denied[stage] = Decision("review", (Reason("own.look", "LOOK", "look"),), review=need)
    agreement = rig.agree(dummy, rounds=1, config=CONFIG, terms={"min_participants": 3})
    run = rig.board.prepare(agreement)
    review = await voted(rig, org, "approve")
    assert review.ask.stage == str(stage)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED", finished
    assert finished["manifest"] == [{"round": 1, "participants": EVERYONE, "dropped": []}]


async def test_a_sum_goes_on_without_a_party_whose_people_refuse(rig, dummy):
    rig.nodes["hospital-c"].policy.denied[Stage.DISPATCH] = Decision("review", (Reason("own.look", "LOOK", "look"),))
    agreement = rig.agree(dummy, rounds=1, config=CONFIG, terms={"min_participants": 3})
    run = rig.board.prepare(agreement)
    await voted(rig, "hospital-c", "deny", "no")
    finished = await rig.finish(run)
    assert (finished["state"], finished["error"]["code"]) == ("FAILED", "PARTICIPANTS_TOO_FEW")
    assert {"org": "hospital-c", "code": "REVIEW_DENIED"} in finished["manifest"][0]["dropped"]
