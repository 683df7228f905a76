"""A coordinator that lies between honest nodes: nothing becomes final, and the ledger's reader would see it too."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from comity.wire.errors import ErrorCode
from comity_crypto.quorum import make_certificate, message_for
from comity_node.negotiation import store
from comity_node.negotiation.drafting import Revision, revised
from comity_policies.documents import Agreement
from comity_policies.history import verify_export
from comity_policies.terms import Terms

KIND = "agreement.sign"


def weaker(body: dict[str, Any]) -> dict[str, Any]:
    body["agreement"]["terms"]["rounds"] = 3
    return body


def other_code(body: dict[str, Any]) -> dict[str, Any]:
    body["agreement"]["proposal"]["steps"][0]["app"]["digest"] = "cd" * 32
    return body


def altered_answer(body: dict[str, Any]) -> dict[str, Any]:
    body["answers"][1]["content"]["body"]["terms"] = {"rounds": 3}
    body["agreement"]["terms"]["rounds"] = 3
    return body


def fewer_answers(body: dict[str, Any]) -> dict[str, Any]:
    body["answers"] = body["answers"][:2]
    return body


def foreign_charter(body: dict[str, Any]) -> dict[str, Any]:
    body["agreement"]["charter_digest"] = "ef" * 32
    return body


@pytest.mark.parametrize("lie", [weaker, other_code, altered_answer, fewer_answers, foreign_charter])
async def test_a_lie_to_one_party_is_never_signed(world: Any, lie: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=2)
    world.alter = lambda org, kind, body: lie(copy.deepcopy(body)) if (org, kind) == ("gamma", KIND) else body
    proposal = await world.propose()
    gamma = world.nodes["gamma"]
    assert gamma.read(lambda conn: store.signed_for(conn, proposal.digest)) == []
    assert not world.final
    if lie is foreign_charter:
        pending = gamma.read(store.list_pending)[proposal.digest]
        assert "charter" in pending["why"]
        world.clock.pass_s(601)
        gamma.service._pending.wake()
        await world.until(lambda: world.news(proposal)["state"] == "TERMINATED")
    news = world.news(proposal)
    assert (news["state"], news["ended"]["move"]) == ("TERMINATED", "gamma")


async def test_a_certificate_that_not_everybody_signed_puts_nothing_in_force(world: Any) -> None:
    def forge(org: str, kind: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if kind != "agreement.final" or org != "gamma":
            return body
        said = copy.deepcopy(body["statement"]["content"]["body"])
        agreement = Agreement.from_json(said["agreement"])
        message = message_for("agreement", agreement.digest)
        voices = {each: world.keys["stranger" if each == "gamma" else each].bls_sign(message) for each in world.nodes}
        said["certificate"] = make_certificate(agreement.digest, voices).to_json()
        return {"statement": world.sign("agreement", said).to_json()}

    world.alter = forge
    proposal = await world.propose()
    digest = world.news(proposal)["agreement"]
    states = {
        org: node.read(lambda conn: store.find_agreement(conn, digest)).state for org, node in world.nodes.items()
    }
    assert states == {"alpha": "final", "beta": "final", "gamma": "signed"}
    assert [(org, error.code) for org, _, error in world.failed] == [("gamma", ErrorCode.QUORUM_MISSING)]


async def test_a_coordinator_that_accepts_a_counter_offer_for_the_proposer(world: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=2)
    proposal = await world.propose(accepts="none")
    record = world.db.transact(lambda conn: _accept_by_itself(world, conn, proposal))
    assert record == "SIGNING"
    await world.settle()
    alpha = world.nodes["alpha"]
    assert alpha.read(lambda conn: store.signed_for(conn, proposal.digest)) == []
    assert world.news(proposal)["ended"]["move"] == "alpha"


async def test_a_ledger_without_the_proposers_word_does_not_verify(world: Any) -> None:
    world.nodes["beta"].policy.allow(rounds=2)
    proposal = await world.propose(accepts="none")
    await world.nodes["alpha"].service.accept(proposal.proposal_id, "beta")
    append = world.ledger.append
    world.ledger.append = lambda conn, said, *a, **kw: said.kind == "counter-acceptance" or append(conn, said, *a, **kw)
    await world.settle()
    assert world.final
    file = world.folder / "export"
    file.write_bytes(world.export())
    with pytest.raises(Exception, match="obligation 5: the proposer never took the terms of beta"):
        verify_export(file, world.charter.digest)


async def test_an_agreement_on_a_revision_that_was_put_aside(world: Any) -> None:
    kept: list[dict[str, Any]] = []

    def hold(org: str, kind: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if kind == KIND and body["agreement"]["proposal"]["revision"] == 1:
            kept.append(body)
            return None
        return body

    world.alter = hold
    first = await world.propose()
    second = revised(first, Revision(deadline_s=200), now=world.clock())
    await world.nodes["alpha"].service.revise(second)
    await world.settle()
    assert world.news(second)["state"] == "FINALIZED"
    for org in world.nodes:
        await world.hand(org, KIND, kept[0])
    await world.settle()
    assert len(world.final) == 1
    for node in world.nodes.values():
        assert node.read(lambda conn: store.signed_for(conn, first.digest)) == []


async def test_a_counter_offer_shown_milder_than_it_was_signed(world: Any) -> None:
    def milder(org: str, kind: str, body: dict[str, Any]) -> dict[str, Any] | None:
        body = copy.deepcopy(body)
        if kind == "counter.offer":
            body["answer"]["content"]["body"]["terms"] = {"rounds": 3}
        if kind == "negotiation.update":
            for leg in body["legs"]:
                leg["difference"] = []
        return body

    world.nodes["beta"].policy.allow(rounds=1)
    world.alter = milder
    proposal = await world.propose(accepts="within", bounds=Terms.parse({"rounds": 2}))
    assert [(kind, error.code) for _, kind, error in world.failed] == [("counter.offer", ErrorCode.SIGNATURE_INVALID)]
    assert world.nodes["alpha"].read(lambda conn: store.list_counters(conn, proposal.digest)) == []


def _accept_by_itself(world: Any, conn: Any, proposal: Any) -> str:
    from comity_coordinator.negotiation import model
    from comity_coordinator.negotiation import store as negotiation_store

    record = negotiation_store.by_id(conn, proposal.proposal_id)
    assert record is not None
    event = model.CounterAccepted("beta", record.negotiation.legs["beta"].answer)
    return str(world.negotiation.apply(conn, record, event, world.charter).phase)
