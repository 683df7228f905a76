"""Counter-offers, revisions, people and bad weather, through both sides' real services."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.negotiation import store
from comity_node.negotiation.drafting import Revision, revised
from comity_policies.decisions import Decision, ReviewNeed
from comity_policies.documents import Reason
from comity_policies.history import verify_export
from comity_policies.terms import Terms

# What every negotiation does also runs on a real PostgreSQL, at SERIALIZABLE.
on_both = pytest.mark.parametrize("world", ["sqlite", "postgresql"], indirect=True)


def verified(world: Any) -> Any:
    file = world.folder / "export.jsonl"
    file.write_bytes(world.export())
    return verify_export(file, world.charter.digest)


@on_both
async def test_from_proposal_to_final_everywhere(world: Any) -> None:
    proposal = await world.propose()
    news = world.news(proposal)
    assert news["state"] == "FINALIZED"
    for node in world.nodes.values():
        assert node.read(lambda conn: store.find_agreement(conn, news["agreement"])).state == "final"
    assert verified(world).counts["agreement"] == 1
    assert not world.refused
    assert not world.failed


async def test_nodes_pass_over_what_a_newer_coordinator_adds_to_its_documents(world: Any) -> None:
    added: set[str] = set()

    def newer(org: str, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if "signature" in body:  # a statement is what was signed, and nothing more
            return body
        added.add(kind)
        return {**body, "of_next_version": {"number": 1}}

    world.alter = newer
    proposal = await world.propose()
    assert world.news(proposal)["state"] == "FINALIZED"
    assert not world.failed
    assert len(added) >= 3, added


@on_both
async def test_a_counter_offer_waits_for_the_proposer_and_is_shown_as_signed(world: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=2)
    proposal = await world.propose(accepts="none")
    assert world.legs(proposal) == {"alpha": "ACCEPTED", "beta": "OFFERED", "gamma": "ACCEPTED"}
    leg = next(each for each in world.news(proposal)["legs"] if each["org"] == "beta")
    assert leg["move"] == "alpha"
    assert leg["message"] == "ContractOfferMessage"
    assert leg["difference"] == [{"field": "rounds", "asked": 3, "offered": 2}]
    assert world.news(proposal)["then"] == "it ends: alpha did not answer in time"
    alpha = world.nodes["alpha"]
    (counter,) = alpha.read(lambda conn: store.list_counters(conn, proposal.digest))
    assert (counter.org, counter.answer.terms.to_json(), counter.accepted_at) == ("beta", {"rounds": 2}, None)
    with pytest.raises(ComityError, match="made no counter-offer"):
        await alpha.service.accept(proposal.proposal_id, "gamma")
    await alpha.service.accept(proposal.proposal_id, "beta")
    with pytest.raises(ComityError, match="accepted before"):
        await alpha.service.accept(proposal.proposal_id, "beta")
    await world.settle()
    news = world.news(proposal)
    assert news["state"] == "FINALIZED"
    held = alpha.read(lambda conn: store.find_agreement(conn, news["agreement"]))
    assert held.agreement.terms["rounds"] == 2
    assert verified(world).counts["counter-acceptance"] == 1


@pytest.mark.parametrize(("rounds", "state"), [(2, "FINALIZED"), (1, "ANSWERING")])
async def test_bounds_take_what_lies_within(world: Any, rounds: int, state: str) -> None:
    world.nodes["beta"].policy.allow(rounds=rounds)
    proposal = await world.propose(accepts="within", bounds=Terms.parse({"rounds": 2}))
    assert world.news(proposal)["state"] == state


async def test_what_the_own_policy_adds_needs_no_second_word(world: Any) -> None:
    world.nodes["alpha"].policy.allow(rounds=2)
    proposal = await world.propose(accepts="none")
    assert world.news(proposal)["state"] == "FINALIZED"


@on_both
async def test_a_revision_takes_the_place_of_the_one_before(world: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=2)
    first = await world.propose(accepts="none")
    change = Revision(terms={"rounds": 2}, deadline_s=200)
    second = revised(first, change, now=world.clock())
    assert second.steps[0].rounds == 2
    await world.nodes["alpha"].service.revise(second)
    await world.settle()
    old, new = world.news(first), world.news(second)
    assert (old["state"], old["ended"]["code"], old["ended"]["move"]) == ("TERMINATED", "SUPERSEDED", "alpha")
    assert (new["state"], new["revision"]) == ("FINALIZED", 2)
    with pytest.raises(ComityError, match="not revised"):
        await world.nodes["alpha"].service.revise(revised(second, change, now=world.clock()))
    assert verified(world).counts["proposal"] == 2


async def test_a_late_word_about_a_superseded_revision_changes_nothing(world: Any) -> None:
    world.nodes["beta"].policy.review()
    first = await world.propose(accepts="none")
    world.nodes["gamma"].policy.review()
    second = revised(first, Revision(deadline_s=200), now=world.clock())
    await world.nodes["alpha"].service.revise(second)
    await world.settle()
    assert [item.ask.subject for item in world.nodes["beta"].open_items()] == [second.digest]
    late = world.nodes["beta"].service._answering
    await late.by_person(first.digest, True, "too late")
    await world.settle()
    assert [(org, error.code) for org, _, error in world.refused] == [("beta", ErrorCode.SUPERSEDED)]
    await world.nodes["beta"].service._withdraw_from(first.proposal_id, "late", first.digest)
    await world.settle()
    assert world.refused[-1][2].code is ErrorCode.SUPERSEDED
    assert world.legs(second) == {"alpha": "ACCEPTED", "beta": "REQUESTED", "gamma": "REQUESTED"}


async def test_a_denied_proposal_may_be_revised_and_only_by_its_proposer(world: Any) -> None:
    world.nodes["beta"].policy.says = Decision.denied("NO", "not like this", rule="proposal.rounds")
    first = await world.propose()
    assert world.news(first)["state"] == "TERMINATED"
    world.nodes["beta"].policy.allow()
    second = revised(first, Revision(), now=world.clock())
    await world.nodes["alpha"].service.revise(second)
    await world.settle()
    assert world.news(second)["state"] == "FINALIZED"
    assert world.news(first)["ended"]["code"] == "POLICY_DENIED"


@on_both
async def test_people_answer_where_the_policy_asks_for_them(world: Any) -> None:
    beta = world.nodes["beta"]
    beta.policy.review(rounds=2)
    proposal = await world.propose(user="paul")
    assert beta.answer(proposal).decision == "review"
    assert world.legs(proposal)["beta"] == "REQUESTED"
    await beta.vote("approve", "the ethics board agreed")
    await world.until(lambda: bool(world.final))
    answer = beta.answer(proposal)
    assert answer.terms.to_json() == {"rounds": 2}
    first = answer.reasons[0]
    assert (first.rule, first.code) == ("review.person", "APPROVED_BY_PERSON")
    assert first.message == "the ethics board agreed"
    assert verified(world).counts["answer"] == 4


@on_both
async def test_a_persons_denial_ends_it_with_the_reason(world: Any) -> None:
    beta = world.nodes["beta"]
    beta.policy.review()
    proposal = await world.propose()
    await beta.vote("deny", "not our patients")
    await world.until(lambda: world.news(proposal)["state"] == "TERMINATED")
    leg = next(each for each in world.news(proposal)["legs"] if each["org"] == "beta")
    assert [(each["code"], each["message"]) for each in leg["reasons"]] == [("DENIED_BY_PERSON", "not our patients")]


async def test_whoever_asked_does_not_approve(world: Any) -> None:
    alpha = world.nodes["alpha"]
    alpha.policy.review()
    await world.propose(user="ruth")
    with pytest.raises(ComityError) as error:
        await alpha.vote("approve", user="ruth")
    assert error.value.code is ErrorCode.FORBIDDEN
    await alpha.vote("approve", user="olga")
    await world.until(lambda: bool(world.final))


async def test_a_new_policy_answers_what_waits_for_a_person(world: Any) -> None:
    beta = world.nodes["beta"]
    beta.policy.review()
    proposal = await world.propose()
    await beta.service.reconsider(proposal.digest)
    assert len(beta.open_items()) == 1
    beta.policy.review(rounds=2)
    await beta.service.reconsider(proposal.digest)
    (item,) = beta.open_items()
    assert item.ask.document["terms"] == {"rounds": 2}
    with pytest.raises(ComityError) as error:
        await beta.service.answer_by_person(proposal.digest, True, "", document="ab" * 32)
    assert error.value.code is ErrorCode.CONFLICT
    beta.policy.review()
    await beta.service.reconsider(proposal.digest)
    (item,) = beta.open_items()
    assert (item.ask.document["terms"], item.ask.document["round"]) == ({}, 3)
    beta.policy.allow(rounds=2)
    await beta.service.reconsider_all()
    await world.settle()
    assert world.final
    assert beta.open_items() == []
    with pytest.raises(ComityError) as error:
        await beta.service.answer_by_person(proposal.digest, True, "")
    assert error.value.code is ErrorCode.ILLEGAL_EVENT
    asked = beta.policy.asked
    await beta.service.reconsider(proposal.digest)
    assert beta.policy.asked == asked


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_people_see_the_very_agreement_where_the_terms_ask_for_them(world: Any, decision: str) -> None:
    gamma = world.nodes["gamma"]
    for org in ("alpha", "beta"):
        world.nodes[org].policy.says = Decision("allow")
    gamma.policy.allow(human_review=["agreement"])
    proposal = await world.propose()
    for org in world.nodes:
        (item,) = world.nodes[org].open_items()
        assert item.ask.stage == "agreement"
        assert item.ask.document["agreement"]["terms"]["human_review"] == ["agreement"]
    assert not world.final
    for org in ("alpha", "beta"):
        await world.nodes[org].vote("approve")
    await gamma.vote(decision, "as agreed")
    if decision == "approve":
        await world.until(lambda: bool(world.final))
        return
    await world.until(lambda: world.news(proposal)["state"] == "TERMINATED")
    assert "people here denied it: as agreed" in world.news(proposal)["legs"][2]["reasons"][0]["message"]


async def test_those_who_looked_at_the_proposal_look_at_the_agreement(world: Any) -> None:
    gamma = world.nodes["gamma"]
    gamma.policy.says = Decision("review", (Reason("own.large", "LARGE", "look"),), review=ReviewNeed("admin", 2))
    await world.propose(terms=Terms.parse({"human_review": ["agreement"]}))
    await gamma.vote("approve", "one", user="anna")
    gamma.policy.says = Decision("allow")
    await gamma.vote("approve", "two", user="bert")
    await world.until(lambda: all(len(node.open_items()) == 1 for node in world.nodes.values()))
    for org in ("alpha", "beta"):
        (item,) = world.nodes[org].open_items()
        assert (item.ask.stage, item.ask.role, item.ask.approvals) == ("agreement", "reviewer", 1)
    (item,) = gamma.open_items()
    assert (item.ask.stage, item.ask.role, item.ask.approvals) == ("agreement", "admin", 2)
    assert item.ask.document["review"] == {"role": "admin", "approvals": 2}


async def test_nobody_decides_on_an_agreement_in_time(world: Any) -> None:
    proposal = await world.propose(terms=Terms.parse({"human_review": ["agreement"]}))
    gamma = world.nodes["gamma"]
    for org in ("alpha", "beta"):
        await world.nodes[org].vote("approve")
    world.clock.pass_s(601)
    gamma.service._pending.wake()
    gamma.reviews._wake.set()
    await world.until(lambda: world.news(proposal)["state"] == "TERMINATED")
    assert world.news(proposal)["ended"]["move"] == "gamma"
    assert gamma.open_items() == []


@pytest.mark.parametrize("code", [ErrorCode.UNAVAILABLE, ErrorCode.BUSY, ErrorCode.PAYLOAD_MISSING])
async def test_bad_weather_at_an_offer_is_no_answer(world: Any, code: ErrorCode) -> None:
    world.spool.broken = ComityError(code)
    proposal = await world.propose()
    assert world.legs(proposal) == {"alpha": "ACCEPTED", "beta": "REQUESTED", "gamma": "REQUESTED"}
    pending = world.nodes["beta"].read(store.list_pending)
    assert str(code) in pending[proposal.digest]["why"]
    world.spool.broken = None
    await world.until(lambda: bool(world.final))
    assert world.nodes["beta"].read(store.list_pending) == {}


@pytest.mark.parametrize("comes_back", [True, False])
async def test_an_engine_out_of_reach_is_asked_a_few_times(world: Any, comes_back: bool) -> None:
    beta = world.nodes["beta"]
    beta.policy.says = Decision.denied("POLICY_UNAVAILABLE", "the engine is out of reach")
    proposal = await world.propose()
    assert world.legs(proposal)["beta"] == "REQUESTED"
    if comes_back:
        beta.policy.allow()
        await world.until(lambda: bool(world.final))
        return
    await world.until(lambda: world.news(proposal)["state"] == "TERMINATED", 20)
    leg = next(each for each in world.news(proposal)["legs"] if each["org"] == "beta")
    assert [(each["rule"], each["code"]) for each in leg["reasons"]] == [("engine", "POLICY_UNAVAILABLE")]
    assert beta.policy.asked == 4


async def test_bad_weather_until_the_deadline_is_a_denial_that_names_it(world: Any) -> None:
    world.spool.broken = ComityError(ErrorCode.UNAVAILABLE)
    proposal = await world.propose()
    world.clock.pass_s(298)
    for org in ("beta", "gamma"):
        world.nodes[org].service._pending.wake()
    await world.until(lambda: world.news(proposal)["state"] == "TERMINATED")
    reasons = [reason["code"] for leg in world.news(proposal)["legs"] for reason in leg["reasons"]]
    assert "UNAVAILABLE" in reasons


async def test_an_optional_party_that_stays_silent_costs_its_place_only(world: Any) -> None:
    world.nodes["gamma"].policy.review()
    proposal = await world.propose(required=("alpha", "beta"), optional=("gamma",), minimum=2)
    assert world.news(proposal)["then"] == "it goes on without gamma"
    world.clock.pass_s(300)
    until = world.deadline(proposal.proposal_id)
    await world.settle()
    assert world.news(proposal)["state"] == "FINALIZED", "signatures are given beyond the deadline"
    assert until is not None
    assert world.legs(proposal)["gamma"] == "TERMINATED"
    assert world.nodes["gamma"].open_items() == []


@on_both
async def test_signatures_end_an_hour_after_the_deadline(world: Any) -> None:
    signs = lambda org, kind, body: None if (org, kind) == ("gamma", "agreement.sign") else body  # noqa: E731
    world.alter = signs
    deadline = instants.to_text(world.clock() + timedelta(seconds=300))
    proposal = await world.propose(deadline=deadline)
    assert world.news(proposal)["state"] == "SIGNING"
    world.clock.pass_s(4000)
    assert world.deadline(proposal.proposal_id) is None
    await world.settle()
    assert world.news(proposal)["ended"]["move"] == "gamma"


@on_both
async def test_a_charter_that_comes_into_force_while_parties_sign_costs_a_new_draft(world: Any) -> None:
    world.alter = lambda org, kind, body: None if (org, kind) == ("gamma", "agreement.sign") else body
    proposal = await world.propose()
    assert world.legs(proposal) == {"alpha": "AGREED", "beta": "AGREED", "gamma": "ACCEPTED"}
    changed = replace(world.charter, version=2, previous=world.charter.digest, max_checkpoint_age_s=700)
    said, world.charter = world.final_charter(changed), changed
    for node in world.nodes.values():
        await node.context.charters.accept(said)
    world.alter = lambda org, kind, body: body
    world.db.transact(lambda conn: world.ledger.append(conn, said, ()))
    world.db.transact(world.negotiation.charter_changed)
    await world.settle()
    assert world.news(proposal)["state"] == "FINALIZED"
    digest = world.news(proposal)["agreement"]
    for node in world.nodes.values():
        held = node.read(lambda conn: store.find_agreement(conn, digest))
        assert (held.state, held.agreement.charter_digest) == ("final", changed.digest)
    file = world.folder / "export"
    file.write_bytes(world.export())
    assert verify_export(file, None).counts["agreement"] == 1
