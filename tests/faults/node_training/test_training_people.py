"""People in a run: nothing runs and nothing leaves before they say so, and the run's story names who is awaited."""

from __future__ import annotations

import asyncio

import pytest

from comity_node.access.model import Principal
from comity_node.reviews import store as reviews
from comity_node.reviews.model import ReviewState
from comity_node.training import questions
from comity_policies.decisions import Decision, ReviewNeed, Stage
from comity_policies.documents import Reason

CONFIG = {"params": 100, "num-server-rounds": 2}
PAIR = ("hospital-a", "hospital-b")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(questions, "OWN_RETRY_S", 0.1)


def look(rig, org, stage, approvals=1, scope="run"):
    need = ReviewNeed("reviewer", approvals, scope)
    rig.nodes[org].policy.denied[stage] = Decision("review", (Reason("own.look", "LOOK", "look"),), review=need)


def items(rig, org, *, open_only=True):
    return rig.nodes[org].read(lambda conn: reviews.every(conn, open_only=open_only, whole=True))


async def asked(rig, org):
    await rig.until(lambda: items(rig, org))
    return items(rig, org)[0]


async def vote(rig, org, review, decision="approve", user="anna", reason="read it"):
    who = Principal(user, frozenset({"reviewer", "auditor"}), "token")
    digest = review.ask.document_digest
    await rig.nodes[org].reviews.vote(review.ask.id, who, decision=decision, reason=reason, document=digest)


async def events(rig, org, run, kind):
    return [event.body for event in await rig.nodes[org].service.events.page(run) if event.kind == kind]


def orders_started(rig, org, agreement):
    return rig.spent(org, agreement).get("rounds", 0)


async def test_an_order_waits_for_a_person_and_the_lead_says_who(rig, dummy):
    look(rig, "hospital-b", Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=2, config=CONFIG, parties=PAIR)
    run = rig.board.prepare(agreement)
    review = await asked(rig, "hospital-b")
    assert (review.ask.run, review.ask.proposal) == (run, agreement.proposal.digest)
    assert review.ask.document["agreement"]["digest"] == agreement.digest
    assert review.ask.document["step"]["app"]["digest"] == agreement.proposal.steps[0].app.digest
    waiting = []
    async with asyncio.timeout(10):
        while not waiting:
            waiting = await events(rig, "hospital-a", run, "waiting")
            await asyncio.sleep(0.02)
    error = waiting[0]["error"]
    assert (waiting[0]["org"], error["code"]) == ("hospital-b", "REVIEW_NEEDED")
    assert (error["facts"]["role"], error["facts"]["until"]) == ("reviewer", review.ask.until)
    passing = rig.nodes["hospital-a"].service.runs.host(run).desk.passing()
    assert {org: str(why.code) for org, why in passing.items()} == {"hospital-b": "REVIEW_NEEDED"}
    assert orders_started(rig, "hospital-b", agreement) == 0
    await vote(rig, "hospital-b", review)
    finished = await rig.finish(run)
    assert finished["state"] == "COMPLETED"
    assert all(row["dropped"] == [] for row in finished["manifest"])
    # One word was enough for the whole step, and the receipts say that a person agreed.
    assert len(items(rig, "hospital-b", open_only=False)) == 1
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 3)
    said = [
        (each["outcome"], each["code"], each["predicates"].get("person_agreed")) for each in rig.receipts("hospital-b")
    ]
    assert said == [("refused", "REVIEW_NEEDED", False), ("result", None, True), ("result", None, True)]
    told = [(each["what"], each["stage"]) for each in await events(rig, "hospital-b", run, "review")]
    assert told == [("asked", "dispatch"), ("voted", "dispatch"), ("approved", "dispatch")]


async def test_a_denial_is_final_for_the_run_and_leaves_receipts(rig, dummy):
    look(rig, "hospital-b", Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=2, config=CONFIG, parties=PAIR)
    run = rig.board.prepare(agreement)
    await vote(rig, "hospital-b", await asked(rig, "hospital-b"), "deny", reason="not this week")
    finished = await rig.finish(run)
    dropped = [{"org": "hospital-b", "code": "REVIEW_DENIED"}]
    assert [row["dropped"] for row in finished["manifest"]] == [dropped, dropped]
    await rig.until(lambda: len(rig.receipts("hospital-b")) == 3)
    codes = [each["code"] for each in rig.receipts("hospital-b")]
    assert codes == ["REVIEW_NEEDED", "REVIEW_DENIED", "REVIEW_DENIED"]
    assert len(items(rig, "hospital-b", open_only=False)) == 1, "nobody is asked again"
    assert rig.spent("hospital-b", agreement) == {}


async def test_who_watches_hears_once_that_people_are_awaited(rig, dummy, monkeypatch):
    monkeypatch.setattr(questions, "RESEND_S", 0.1)
    for org in PAIR:
        look(rig, org, Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    run = rig.board.prepare(agreement)
    for org in PAIR:
        await asked(rig, org)
    await rig.until(lambda: rig.board.log.count(("reply", "hospital-b", "hospital-a")) > 3)
    for org in PAIR:
        await vote(rig, org, await asked(rig, org))
    assert (await rig.finish(run))["state"] == "COMPLETED"
    assert sorted(each["org"] for each in await events(rig, "hospital-a", run, "waiting")) == list(PAIR)


async def test_the_term_asks_even_where_the_policy_does_not(rig, dummy):
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1},
                          terms={"human_review": ["dispatch", "egress"]}, parties=PAIR)  # fmt: skip
    rig.nodes["hospital-b"].reviews.need = lambda: ReviewNeed("auditor", 1)
    run = rig.board.prepare(agreement)
    for stage in ("dispatch", "egress"):
        for org in PAIR:
            review = await asked(rig, org)
            assert (review.ask.stage, review.ask.reasons[0].rule) == (stage, "terms.human_review")
            assert review.ask.role == ("reviewer" if org == "hospital-a" else "auditor")
            await vote(rig, org, review)
            await rig.until(lambda org=org: not items(rig, org) or items(rig, org)[0].ask.stage == "egress")
    assert (await rig.finish(run))["state"] == "COMPLETED"
    assert all(review.state is ReviewState.APPROVED for org in PAIR for review in items(rig, org, open_only=False))


async def test_each_order_is_asked_where_the_policy_says_so(rig, dummy):
    look(rig, "hospital-b", Stage.DISPATCH, scope="order")
    agreement = rig.agree(dummy, rounds=2, config=CONFIG, parties=PAIR)
    run = rig.board.prepare(agreement)
    for number in (1, 2):
        review = await asked(rig, "hospital-b")
        assert review.ask.document["order"]["round"] == number
        await vote(rig, "hospital-b", review)
        await rig.until(lambda number=number: orders_started(rig, "hospital-b", agreement) == number)
    assert (await rig.finish(run))["state"] == "COMPLETED"


async def test_four_eyes_before_an_order(rig, dummy):
    look(rig, "hospital-b", Stage.DISPATCH, approvals=2)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    run = rig.board.prepare(agreement)
    review = await asked(rig, "hospital-b")
    await vote(rig, "hospital-b", review, user="anna")
    await asyncio.sleep(0.3)
    assert orders_started(rig, "hospital-b", agreement) == 0
    await vote(rig, "hospital-b", review, user="bert")
    assert (await rig.finish(run))["state"] == "COMPLETED"


async def test_the_leads_own_orders_wait_too(rig, dummy):
    look(rig, "hospital-a", Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    rig.nodes["hospital-a"].read(
        lambda conn: rig.nodes["hospital-a"].reviews.note_asker(conn, agreement.proposal.digest, "anna")
    )
    run = rig.board.prepare(agreement)
    review = await asked(rig, "hospital-a")
    assert review.asker == "anna"
    await vote(rig, "hospital-a", review, user="bert")
    assert (await rig.finish(run))["state"] == "COMPLETED"


async def test_a_result_is_held_until_a_person_lets_it_out(rig, dummy):
    look(rig, "hospital-b", Stage.EGRESS)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    run = rig.board.prepare(agreement)
    review = await asked(rig, "hospital-b")
    facts = review.ask.document["result"]
    assert (facts["kind"], facts["cohort"], len(facts["sha256"])) == ("model", 40, 64)
    await asyncio.sleep(0.3)
    assert not run_answers(rig, "hospital-b")
    assert orders_started(rig, "hospital-b", agreement) == 1, "the order stays started"
    waiting = await events(rig, "hospital-a", run, "waiting")
    assert (waiting[0]["org"], waiting[0]["error"]["facts"]["stage"]) == ("hospital-b", "egress")
    await vote(rig, "hospital-b", review)
    finished = await rig.finish(run)
    assert (finished["state"], finished["manifest"][0]["dropped"]) == ("COMPLETED", [])


def run_answers(rig, org):
    """Receipts of results: what left."""
    return [each for each in rig.receipts(org) if each["outcome"] == "result"]


async def test_a_result_that_a_person_keeps_inside_never_leaves(rig, dummy):
    look(rig, "hospital-b", Stage.EGRESS)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    run = rig.board.prepare(agreement)
    await vote(rig, "hospital-b", await asked(rig, "hospital-b"), "deny", reason="too few patients")
    finished = await rig.finish(run)
    assert finished["manifest"][0]["dropped"] == [{"org": "hospital-b", "code": "EGRESS_DENIED"}]
    await rig.until(lambda: rig.receipts("hospital-b"))
    receipt = rig.receipts("hospital-b")[0]
    assert (receipt["outcome"], receipt["code"], receipt["result"], receipt["egress_bytes"]) == (
        "failed", "EGRESS_DENIED", None, 0,
    )  # fmt: skip
    assert "egress_bytes" not in rig.spent("hospital-b", agreement)


async def test_a_result_that_nobody_looks_at_in_time_stays_inside(rig, dummy):
    look(rig, "hospital-b", Stage.EGRESS)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR, timeout_s=4)
    finished = await rig.finish(rig.board.prepare(agreement))
    # Kept inside by the party, or dropped by a lead that was a moment quicker: either way by name.
    assert [each["code"] in ("EGRESS_DENIED", "REVIEW_NEEDED") for each in finished["manifest"][0]["dropped"]] == [True]
    await rig.until(lambda: rig.receipts("hospital-b"))
    assert [each["code"] for each in rig.receipts("hospital-b")] == ["EGRESS_DENIED"]
    assert [review.state for review in items(rig, "hospital-b", open_only=False)] == [ReviewState.EXPIRED]


async def test_a_held_result_is_asked_about_again_after_a_crash(rig, dummy, monkeypatch):
    monkeypatch.setattr(questions, "RESEND_S", 0.3)
    look(rig, "hospital-b", Stage.EGRESS)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR)
    run = rig.board.prepare(agreement)
    before = await asked(rig, "hospital-b")
    await rig.nodes["hospital-b"].crash()
    await rig.nodes["hospital-b"].up()
    node = rig.nodes["hospital-b"]
    await rig.until(lambda: node.service._participant._active)
    review = await asked(rig, "hospital-b")
    assert review.ask.document["order"]["digest"] == before.ask.document["order"]["digest"]
    await rig.until(lambda: node.reviews._waiting)
    for each in items(rig, "hospital-b"):
        await vote(rig, "hospital-b", each)
    finished = await rig.finish(run)
    assert (finished["state"], finished["manifest"][0]["dropped"]) == ("COMPLETED", [])
    assert rig.spent("hospital-b", agreement)["rounds"] == 1


async def test_what_waits_becomes_obsolete_with_its_run(rig, dummy):
    look(rig, "hospital-b", Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR, timeout_s=2)
    run = rig.board.prepare(agreement)
    review = await asked(rig, "hospital-b")
    await rig.finish(run)
    await rig.until(lambda: not items(rig, "hospital-b"))
    after = rig.nodes["hospital-b"].read(lambda conn: reviews.find(conn, review.ask.id))
    assert (after.state, after.why) == (ReviewState.OBSOLETE, "the run has ended")
    last = []
    async with asyncio.timeout(10):
        while not last or last[-1].kind != "closed":
            last = await rig.nodes["hospital-b"].service.events.page(run)
            await asyncio.sleep(0.05)


async def test_a_full_queue_is_a_denial_for_now(rig, dummy, monkeypatch):
    monkeypatch.setattr("comity_node.reviews.service.OPEN_MAX", 0)
    look(rig, "hospital-b", Stage.DISPATCH)
    agreement = rig.agree(dummy, rounds=1, config={**CONFIG, "num-server-rounds": 1}, parties=PAIR, timeout_s=2)
    finished = await rig.finish(rig.board.prepare(agreement))
    assert finished["manifest"][0]["dropped"] == [{"org": "hospital-b", "code": "BUSY"}]
    assert rig.spent("hospital-b", agreement) == {}
