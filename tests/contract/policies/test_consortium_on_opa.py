"""The consortium's bundle beside one's own where OPA servers decide: each server holds one of the two."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.governance.policy import ConsortiumGate, install
from comity_crypto.keys import OrgKeys
from comity_node.journal import Journal
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy
from comity_node.settings import DecisionLogLimits, NodeSettings
from comity_policies.bundle import Bundle
from comity_policies.charter_document import PolicyRef
from comity_policies.decisions import Stage, example
from comity_policies.documents import Proposal
from comity_policies.engine import PolicyEngine


@pytest.fixture
def rules(bundle: Bundle) -> Bundle:
    """The consortium's: it knows the purpose of the example, and fewer rounds."""
    return Bundle.of(dict(bundle.modules), dict(bundle.settings) | {"organisation": "hospitals", "rounds_max": 15})


def charter_naming(bundle: Bundle) -> Any:
    return SimpleNamespace(policy=PolicyRef(bundle.digest, "rules"), version=2, roles={}, agents=(), trust_roots=())


def proposal(rounds: int) -> dict[str, Any]:
    document = example(Stage.PROPOSAL)
    document["proposal"]["steps"][0]["rounds"] = rounds
    return document


def test_both_servers_are_asked_and_the_stricter_holds(
    open_named: Callable[[str, Bundle], PolicyEngine],
    start_opa: Callable[[Bundle], str],
    bundle: Bundle,
    rules: Bundle,
    tmp_path: Path,
) -> None:
    settings = NodeSettings(
        home=tmp_path,
        org="hospital-b",
        consortium="hospitals",
        title="B",
        owner="B",
        coordinator="127.0.0.1:1",
        log_key=base64.b64encode(OrgKeys.generate().public.statement).decode(),
        engine="opa",
        opa_url="http://127.0.0.1:1",
        consortium_opa_url=start_opa(rules),
    )
    journal = Journal.open(tmp_path / "journal.db")
    journal.create_all()
    held = ConsortiumPolicy(settings, lambda: charter_naming(rules))
    held.load(journal)
    held.adopt(rules.archive(), journal)
    policy = RecordedPolicy(
        open_named("opa", bundle), held, DecisionLog(tmp_path / "decisions.db", DecisionLogLimits())
    )
    good = policy.decide(Stage.PROPOSAL, proposal(10))
    assert (good.decision, good.terms["rounds"]) == ("allow", 15)
    refused = policy.decide(Stage.PROPOSAL, proposal(16))
    assert (refused.decision, refused.reasons[0].rule) == ("deny", "proposal.rounds")
    held.close()
    assert policy.decide(Stage.PROPOSAL, proposal(10)).reasons[0].code == "POLICY_UNAVAILABLE"
    policy.log.close()
    journal.close()


def test_the_coordinator_asks_its_own_server(
    start_opa: Callable[[Bundle], str], bundle: Bundle, rules: Bundle, tmp_path: Path
) -> None:
    install(tmp_path, rules.archive())
    asked = [Proposal.from_json(proposal(rounds)["proposal"]) for rounds in (10, 16)]
    now = "2029-06-01T10:00:00Z"
    for url in (start_opa(rules), ""):
        gate = ConsortiumGate(tmp_path, url)
        gate(charter_naming(rules), asked[0], now)
        with pytest.raises(ComityError, match="the consortium's policy: step fit asks for 16 rounds") as caught:
            gate(charter_naming(rules), asked[1], now)
        assert caught.value.code == ErrorCode.POLICY_DENIED
        gate.close()
    away = ConsortiumGate(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(ComityError) as caught:
        away(charter_naming(rules), asked[0], now)
    assert caught.value.code == ErrorCode.POLICY_UNAVAILABLE
    away.close()


def test_a_file_under_another_name_is_not_the_bundle(bundle: Bundle, rules: Bundle, tmp_path: Path) -> None:
    install(tmp_path, rules.archive())
    (tmp_path / "policies" / f"{rules.digest}.tar.gz").rename(tmp_path / "policies" / f"{bundle.digest}.tar.gz")
    gate = ConsortiumGate(tmp_path)
    with pytest.raises(ComityError, match="another bundle"):
        gate(charter_naming(bundle), Proposal.from_json(proposal(10)["proposal"]), "2029-06-01T10:00:00Z")
