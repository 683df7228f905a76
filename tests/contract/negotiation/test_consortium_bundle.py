"""The consortium's policy bundle: refused early by the coordinator, binding at every node, the stricter answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.governance.policy import ConsortiumGate, install
from comity_crypto.vouching import key_name, vouch
from comity_node.negotiation import store
from comity_node.negotiation.vouchers import Vouchers
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy
from comity_node.settings import DecisionLogLimits
from comity_policies import settings
from comity_policies.bundle import Bundle, apart, read_texts, shipped_folder, write_defaults
from comity_policies.charter import Charter
from comity_policies.charter_document import AgentRef, PolicyRef
from comity_policies.decisions import Stage, example

OPEN = {"min_cohort": 1, "aggregation": "plain", "terms": {}}


def bundle_of(folder: Path, own: str = "", **changes: Any) -> Bundle:
    """A consortium's bundle with the shipped rules; every app of the tests' is listed in it."""
    write_defaults(folder, "demo")
    modules, _ = apart(read_texts(shipped_folder(), folder))
    if own:
        modules["own/consortium.rego"] = own
    return Bundle.of(modules, settings.defaults("demo") | OPEN | changes)


@pytest.fixture
def open_bundle(tmp_path: Path, world: Any) -> Bundle:
    app = world.proposal().steps[0].app.digest
    return bundle_of(tmp_path / "policy", app_digests=[app], rounds_max=50)


class Bound:
    """The nodes' policies over the test's own answers, and a charter that names a bundle."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.policies: dict[str, ConsortiumPolicy] = {}
        self.logs = []
        for org, node in world.nodes.items():
            held = ConsortiumPolicy(node.context.settings, node.context.charters.current)
            held.load(node.journal)
            log = DecisionLog(folder / f"{org}.db", DecisionLogLimits())
            self.logs.append(log)
            object.__setattr__(node.context, "policy", RecordedPolicy(node.policy, held, log))
            self.policies[org] = held

    async def name(self, bundle: Bundle, agents: tuple[AgentRef, ...] = (), **values: Any) -> Charter:
        """Put a charter into force that names `bundle`."""
        before = self.world.charter
        charter = replace(
            before,
            version=before.version + 1,
            previous=before.digest,
            policy=PolicyRef(bundle.digest, "rules"),
            agents=agents,
            **values,
        )
        self.world.charter = charter
        for node in self.world.nodes.values():
            await node.context.charters.accept(self.world.final_charter(charter))
        return charter

    def adopt(self, bundle: Bundle, *orgs: str) -> None:
        for org in orgs or self.world.nodes:
            self.policies[org].adopt(bundle.archive(), self.world.nodes[org].journal)

    def close(self) -> None:
        for policy in self.policies.values():
            policy.close()
        for log in self.logs:
            log.close()


@pytest.fixture
def bound(world: Any, tmp_path: Path) -> Iterator[Bound]:
    made = Bound(world, tmp_path)
    yield made
    made.close()


async def test_nodes_deny_until_they_hold_the_bundle(world: Any, bound: Bound, open_bundle: Bundle) -> None:
    await bound.name(open_bundle)
    bound.adopt(open_bundle, "alpha", "beta")
    proposal = await world.propose()
    answer = world.nodes["gamma"].answer(proposal)
    assert (answer.decision, [reason.code for reason in answer.reasons]) == ("deny", ["BUNDLE_STALE"])
    assert world.nodes["beta"].answer(proposal).decision == "allow"
    assert world.news(proposal)["state"] == "TERMINATED"
    bound.adopt(open_bundle, "gamma")
    again = await world.propose(proposal_id="prop-again")
    assert world.news(again)["state"] == "FINALIZED"


async def test_a_new_version_binds_only_after_it_is_adopted(
    world: Any, bound: Bound, open_bundle: Bundle, tmp_path: Path
) -> None:
    await bound.name(open_bundle)
    bound.adopt(open_bundle)
    newer = Bundle.of(dict(open_bundle.modules), dict(open_bundle.settings) | {"rounds_max": 40})
    await bound.name(newer)
    policy = bound.policies["beta"]
    stale = policy.decide(Stage.PROPOSAL, example(Stage.PROPOSAL))
    assert stale is not None
    assert stale.reasons[0].code == "BUNDLE_STALE"
    running = policy.decide(Stage.EGRESS, example(Stage.EGRESS) | {"result": {**example(Stage.EGRESS)["result"]}})
    assert running is not None
    assert (running.decision, running.bundle_digest) == ("allow", open_bundle.digest)
    with pytest.raises(ComityError, match="another bundle") as caught:
        policy.adopt(open_bundle.archive(), world.nodes["beta"].journal)
    assert caught.value.code == ErrorCode.CONFLICT
    bound.adopt(newer, "beta")
    fresh = policy.decide(Stage.PROPOSAL, example(Stage.PROPOSAL))
    assert fresh is not None
    assert fresh.bundle_digest == newer.digest


async def test_the_stricter_answer_holds(world: Any, bound: Bound, open_bundle: Bundle, tmp_path: Path) -> None:
    """Every node's own policy allows everything; the consortium's does not, and nobody but the nodes asks it."""
    await bound.name(open_bundle)
    bound.adopt(open_bundle)
    denied = await world.propose(purpose="marketing", terms=world.proposal().terms.parse({"purposes": ["marketing"]}))
    for org in world.nodes:
        answer = world.nodes[org].answer(denied)
        assert (answer.decision, answer.reasons[0].rule) == ("deny", "proposal.purpose")
    agreed = await world.propose(proposal_id="prop-good")
    assert world.news(agreed)["state"] == "FINALIZED"
    (agreement,) = world.nodes["beta"].read(lambda conn: store.signed_for(conn, agreed.digest))
    assert agreement.terms["uses"] == 10, "the consortium's terms are met too"


async def test_a_review_of_either_is_a_review(world: Any, bound: Bound, tmp_path: Path) -> None:
    unlisted = bundle_of(tmp_path / "policy", reviews={"role": "admin", "approvals": 2})
    await bound.name(unlisted)
    bound.adopt(unlisted)
    proposal = await world.propose()
    (item,) = world.nodes["beta"].open_items()
    assert (item.ask.role, item.ask.approvals) == ("admin", 2)
    assert world.legs(proposal)["beta"] == "REQUESTED"


async def test_an_app_that_the_members_published_needs_no_review(world: Any, bound: Bound, tmp_path: Path) -> None:
    trusting = bundle_of(tmp_path / "policy", app_signers=["consortium"])
    await bound.name(trusting)
    bound.adopt(trusting)
    unpublished = await world.propose()
    assert world.nodes["beta"].answer(unpublished) is None or world.legs(unpublished)["beta"] == "REQUESTED"
    app = unpublished.steps[0].app
    await bound.name(trusting, (AgentRef(app.digest, app.name, app.version, app.publisher),))
    published = await world.propose(proposal_id="prop-published")
    assert world.news(published)["state"] == "FINALIZED"


async def test_an_app_that_a_named_reviewer_signed_needs_no_review(world: Any, bound: Bound, tmp_path: Path) -> None:
    reviewer, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trusting = bundle_of(tmp_path / "policy", reviewers=[key_name(reviewer)])
    await bound.name(trusting)
    bound.adopt(trusting)
    app, at = world.proposal().steps[0].app.digest, "2029-01-01T00:00:00Z"
    homes = [Vouchers(node.context.settings.home) for node in world.nodes.values()]
    for home in homes:
        home.keep(vouch(stranger, app, at).to_bytes())
        home.keep(vouch(reviewer, "cd" * 32, at).to_bytes())
    waiting = await world.propose()
    assert set(world.legs(waiting).values()) == {"REQUESTED"}
    for home in homes:
        home.keep(vouch(reviewer, app, at).to_bytes())
    assert world.news(await world.propose(proposal_id="prop-signed"))["state"] == "FINALIZED"


async def test_only_published_code_and_only_whom_the_charter_lets_propose(
    world: Any, bound: Bound, tmp_path: Path
) -> None:
    strict = bundle_of(tmp_path / "policy", published_only=True, app_signers=["consortium"], proposers=["role:lead"])
    await bound.name(strict)
    bound.adopt(strict)

    def rules(proposal: Any) -> set[str]:
        return {reason.rule for reason in world.nodes["beta"].answer(proposal).reasons}

    denied = await world.propose()
    assert rules(denied) == {"proposal.published", "proposal.proposer"}
    app = denied.steps[0].app
    published = (AgentRef(app.digest, app.name, app.version, app.publisher),)
    await bound.name(strict, published, roles={"lead": ("beta",)})
    assert rules(await world.propose(proposal_id="prop-nobody")) == {"proposal.proposer"}
    await bound.name(strict, published, roles={"lead": ("alpha",)})
    assert world.news(await world.propose(proposal_id="prop-lead"))["state"] == "FINALIZED"


async def test_the_coordinator_refuses_early_and_the_proposer_reads_why(
    world: Any, bound: Bound, open_bundle: Bundle
) -> None:
    await bound.name(open_bundle)
    bound.adopt(open_bundle)
    (world.folder / "gate").mkdir()
    gate = ConsortiumGate(world.folder / "gate")
    world.negotiation._gate = gate
    early = world.proposal(purpose="marketing", terms=world.proposal().terms.parse({"purposes": ["marketing"]}))
    gate(world.charter, early, "2029-01-01T00:00:00Z")  # without the file nothing is refused early
    assert install(world.folder / "gate", open_bundle.archive()).digest == open_bundle.digest
    proposal = await world.propose(purpose="marketing", terms=early.terms)
    assert [error.code for _, kind, error in world.refused if kind == "proposal.submit"] == [ErrorCode.POLICY_DENIED]
    news = world.news(proposal)
    assert (news["state"], news["ended"]["code"]) == ("TERMINATED", "POLICY_DENIED")
    assert "the consortium's policy: purpose marketing" in news["ended"]["detail"]
    assert [row for row in world.log if row[1] == "offer"] == []
    assert world.nodes["alpha"].read(world.nodes["alpha"].context.ledger.counts).get("expected", 0) == 0
    good = await world.propose(proposal_id="prop-good")
    assert world.news(good)["state"] == "FINALIZED"
    gate.close()


async def test_an_agreement_is_not_signed_before_the_new_bundle_is_here(
    world: Any, bound: Bound, open_bundle: Bundle
) -> None:
    held: list[dict[str, Any]] = []

    def keep(org: str, kind: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if kind == "agreement.sign" and org == "gamma":
            held.append(body)
            return None
        return body

    world.alter = keep
    proposal = await world.propose()
    assert world.nodes["gamma"].answer(proposal).decision == "allow"
    await bound.name(open_bundle)
    world.alter = lambda org, kind, body: body
    await world.hand("gamma", "agreement.sign", held[0])
    assert world.nodes["gamma"].read(lambda conn: store.signed_for(conn, proposal.digest)) == []
    assert len(world.nodes["gamma"].read(lambda conn: store.pending_of(conn, proposal.digest))) == 1


async def test_a_bundle_that_is_gone_or_changed_denies_what_it_bound(
    world: Any, bound: Bound, open_bundle: Bundle
) -> None:
    await bound.name(open_bundle)
    bound.adopt(open_bundle, "beta")
    node = world.nodes["beta"]
    file = node.context.settings.consortium_policy_file
    good = file.read_bytes()
    other = Bundle.of(dict(open_bundle.modules), dict(open_bundle.settings) | {"purposes": ["marketing"]})
    for content in (None, b"", good[:-20], other.archive()):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        started = ConsortiumPolicy(node.context.settings, node.context.charters.current)
        started.load(node.journal)
        for stage in Stage:
            decision = started.decide(stage, example(stage))
            assert decision is not None
            assert (decision.decision, decision.reasons[0].code) == ("deny", "BUNDLE_STALE"), stage
    file.write_bytes(good)
    started = ConsortiumPolicy(node.context.settings, node.context.charters.current)
    started.load(node.journal)
    assert started.bundle_digest == open_bundle.digest
    started.close()


async def test_what_was_agreed_before_the_first_bundle_goes_on(world: Any, bound: Bound, open_bundle: Bundle) -> None:
    await bound.name(open_bundle)
    policy = bound.policies["gamma"]
    assert policy.decide(Stage.DISPATCH, example(Stage.DISPATCH)) is None
    assert policy.decide(Stage.EGRESS, example(Stage.EGRESS)) is None
    for stage in (Stage.PROPOSAL, Stage.MEMBERSHIP):
        decision = policy.decide(stage, example(stage))
        assert decision is not None
        assert decision.decision == "deny"


def test_without_a_bundle_in_the_charter_the_consortium_has_no_word(world: Any, bound: Bound) -> None:
    for stage in Stage:
        assert bound.policies["alpha"].decide(stage, example(stage)) is None
    with pytest.raises(ComityError, match="names no policy bundle"):
        bound.policies["alpha"].adopt(bundle_of(world.folder / "none").archive(), world.nodes["alpha"].journal)
