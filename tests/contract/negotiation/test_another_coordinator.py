"""Another coordinator takes over while something is being negotiated: nothing is lost, nothing is decided twice."""

from __future__ import annotations

from typing import Any

from comity.wire.errors import ErrorCode
from comity_node.negotiation import store
from comity_policies.decisions import Decision
from comity_policies.terms import Terms


async def test_what_is_open_is_submitted_and_answered_again(world: Any) -> None:
    gamma = world.nodes["gamma"]
    gamma.policy.review()
    proposal = await world.propose()
    assert world.legs(proposal) == {"alpha": "ACCEPTED", "beta": "ACCEPTED", "gamma": "REQUESTED"}
    asked = {org: node.policy.asked for org, node in world.nodes.items()}
    answers = {org: node.answer(proposal) for org, node in world.nodes.items()}
    (item,) = gamma.open_items()
    await world.move()
    await world.settle()
    assert world.legs(proposal) == {"alpha": "ACCEPTED", "beta": "ACCEPTED", "gamma": "REQUESTED"}
    assert {org: node.policy.asked for org, node in world.nodes.items()} == asked, "nobody was asked again"
    assert {org: node.answer(proposal) for org, node in world.nodes.items()} == answers
    assert gamma.open_items() == [item], "people go on looking at the same item"
    await gamma.vote("approve")
    await world.until(lambda: bool(world.final))
    assert world.news(proposal)["state"] == "FINALIZED"
    (agreement,) = gamma.read(lambda conn: store.signed_for(conn, proposal.digest))
    assert agreement.charter_digest == world.charter.digest
    submitted = [row for row in world.log if row[1] == "offer"]
    await world.nodes["alpha"].link.connect()
    await world.settle()
    assert [row for row in world.log if row[1] == "offer"] == submitted, "once for each coordinator"


async def test_what_was_being_signed_is_signed_anew(world: Any) -> None:
    world.alter = lambda org, kind, body: None if (org, kind) == ("gamma", "agreement.sign") else body
    proposal = await world.propose()
    assert world.news(proposal)["state"] == "SIGNING" or not world.final
    world.alter = lambda org, kind, body: body
    await world.move()
    await world.settle()
    assert world.news(proposal)["state"] == "FINALIZED"
    digest = world.news(proposal)["agreement"]
    for node in world.nodes.values():
        assert node.read(lambda conn: store.final_of(conn, proposal.digest)) == digest


async def test_a_counter_offer_that_was_accepted_stays_accepted(world: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=1)
    world.nodes["gamma"].policy.review()
    proposal = await world.propose(accepts="none")
    assert world.legs(proposal)["beta"] == "OFFERED"
    await world.nodes["alpha"].service.accept(proposal.proposal_id, "beta")
    await world.settle()
    assert world.legs(proposal)["beta"] == "ACCEPTED"
    await world.move()
    await world.settle()
    assert world.legs(proposal)["beta"] == "ACCEPTED"


async def test_what_is_final_somewhere_is_not_decided_twice(world: Any) -> None:
    world.alter = lambda org, kind, body: None if (org, kind) == ("alpha", "agreement.final") else body
    proposal = await world.propose()
    gamma = world.nodes["gamma"]
    final = gamma.read(lambda conn: store.final_of(conn, proposal.digest))
    assert final is not None
    assert world.nodes["alpha"].read(lambda conn: store.final_of(conn, proposal.digest)) is None
    # The proposer has not even heard that it was agreed, and submits it again.
    alpha = world.nodes["alpha"]
    alpha.read(lambda conn: store.set_news(conn, proposal.proposal_id, 1, {"state": "SIGNING", "ended": None}))
    world.alter = lambda org, kind, body: body
    await world.move()
    await world.settle()
    assert gamma.read(lambda conn: store.final_of(conn, proposal.digest)) == final
    news = world.news(proposal)
    assert news["state"] == "TERMINATED"
    assert f"agreement {final} of this proposal is final here" in str(news)


async def test_what_cannot_be_submitted_any_more_ends_with_the_reason(world: Any) -> None:
    world.nodes["gamma"].policy.review()
    proposal = await world.propose(terms=Terms.parse({"human_review": ["agreement"]}))
    world.spool.held.clear()
    (world.folder / "alpha" / "apps" / f"{proposal.steps[0].app.digest}.zip").unlink()
    await world.move()
    await world.settle()
    news = world.news(proposal)
    assert (news["state"], news["ended"]["code"], news["ended"]["move"]) == ("TERMINATED", "APP_INVALID", "alpha")
    assert not world.failed


async def test_ended_ones_stay_ended(world: Any) -> None:
    world.nodes["beta"].policy.says = Decision.denied("NO", "no")
    denied = await world.propose()
    assert world.news(denied)["state"] == "TERMINATED"
    world.nodes["beta"].policy.says = Decision("allow")
    agreed = await world.propose(proposal_id="prop-good")
    offers = len([row for row in world.log if row[1] == "offer"])
    await world.move()
    await world.settle()
    assert len([row for row in world.log if row[1] == "offer"]) == offers
    assert world.news(agreed)["state"] == "FINALIZED"
    assert ErrorCode.COORDINATOR_CHANGED not in [error.code for *_, error in world.refused]
