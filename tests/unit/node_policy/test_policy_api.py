"""The policy's routes: bundles, the log page by page, why, reloading, adopting."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from comity.wire import http_api
from comity_crypto.keys import OrgKeys
from comity_node.context import Services
from comity_node.journal import Journal
from comity_node.negotiation.service import NegotiationService
from comity_node.policy import api
from comity_node.policy.consortium import ConsortiumPolicy
from comity_node.policy.engine import ReloadablePolicy
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy
from comity_node.settings import NodeSettings
from comity_node.training import store as training_store
from comity_node.training.tables import RunRow
from comity_policies.bundle import Bundle, shipped_folder, write_defaults
from comity_policies.charter_document import PolicyRef
from comity_policies.decisions import Stage, example

KEYS = OrgKeys.generate()


class Reconsidering(NegotiationService):
    """Counts how often open reviews were put before the policy again."""

    def __init__(self) -> None:
        self.count = 0

    async def reconsider_all(self) -> None:
        self.count += 1


class Node(SimpleNamespace):
    """What the routes use of a node, all real but the negotiation."""

    def __init__(self, home: Path) -> None:
        write_defaults(home / "policy", "hospital-b")
        settings = NodeSettings(
            home=home,
            org="hospital-b",
            consortium="demo",
            title="B",
            owner="B",
            coordinator="127.0.0.1:1",
            log_key=base64.b64encode(KEYS.public.statement).decode(),
        )
        journal = Journal.open(settings.journal_file)
        journal.create_all()
        self.charter: Any = None
        held = ConsortiumPolicy(settings, lambda: self.charter)
        held.load(journal)
        policy = RecordedPolicy(
            ReloadablePolicy(settings, lambda: KEYS.public.statement),
            held,
            DecisionLog(settings.decisions_file, settings.decision_log),
        )
        services = Services()
        super().__init__(settings=settings, journal=journal, policy=policy, services=services)
        self.negotiation = Reconsidering()
        services._by_type[NegotiationService] = self.negotiation

    def close(self) -> None:
        self.policy.close()
        self.journal.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def client(node: Node) -> AsyncIterator[httpx.AsyncClient]:
    from fastapi import FastAPI

    app = FastAPI()
    http_api._answer_errors(app)
    app.include_router(api.router(node))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node") as opened:
        yield opened


def decide(node: Node, stage: Stage = Stage.PROPOSAL, **proposal: Any) -> Any:
    document = example(stage)
    document.get("proposal", {}).update(proposal)
    return node.policy.decide(stage, document)


async def test_the_log_page_by_page(node: Node, client: httpx.AsyncClient) -> None:
    for _ in range(3):
        decide(node, purpose="marketing")
    decide(node, Stage.EGRESS)
    page = (await client.get("/v1/policy/decisions", params={"limit": 2})).json()["decisions"]
    assert [(each["id"], each["stage"]) for each in page] == [("dec-4", "egress"), ("dec-3", "proposal")]
    assert "input" not in page[0]
    rest = (await client.get("/v1/policy/decisions", params={"before": 3, "inputs": True})).json()["decisions"]
    assert [each["id"] for each in rest] == ["dec-2", "dec-1"]
    assert rest[0]["input"]["proposal"]["purpose"] == "marketing"
    denied = (await client.get("/v1/policy/decisions", params={"decision": "deny", "stage": "proposal"})).json()
    assert len(denied["decisions"]) == 3
    for bad in ({"limit": 0}, {"limit": 501}, {"before": 0}, {"stage": "x" * 33}):
        assert (await client.get("/v1/policy/decisions", params=bad)).status_code == 400


async def test_why(node: Node, client: httpx.AsyncClient) -> None:
    decide(node, purpose="marketing")
    decide(node, Stage.DISPATCH)
    proposal = example(Stage.PROPOSAL)["proposal"]["proposal_id"]
    for name in ("dec-1", proposal):
        found = (await client.get(f"/v1/policy/decisions/{name}")).json()
        (decision,) = found["decisions"]
        assert decision["result"]["decision"] == "deny"
        (place,) = found["rules"]["proposal.purpose"]
        assert (place["file"], place["title"]) == (
            "proposal/proposal.rego",
            "The purpose is one that this organisation supports",
        )
        assert place["bundle"] == decision["result"]["bundle_digest"]
    agreement = example(Stage.DISPATCH)["agreement"]["digest"]
    now = "2030-01-01T00:00:00Z"
    row = RunRow("run-1", agreement, "hospital-a", "[]", "RUNNING", now, None, None, None, False)
    node.journal.transact(lambda conn: training_store.put_run(conn, row))
    for name in (agreement, "run-1"):
        found = (await client.get(f"/v1/policy/decisions/{name}")).json()
        assert [each["id"] for each in found["decisions"]] == ["dec-2"]
    for name in ("dec-99", "prop-unknown", "dec-x", "%2e%2e"):
        assert (await client.get(f"/v1/policy/decisions/{name}")).status_code == 404


async def test_reload_asks_the_new_bundle_about_what_waits(node: Node, client: httpx.AsyncClient) -> None:
    before = (await client.get("/v1/policy")).json()["bundle"]
    path = node.settings.policy_folder / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "min_cohort": 30}))
    after = (await client.post("/v1/policy/reload")).json()["bundle"]
    assert (await client.get("/v1/policy")).json()["bundle"] == after != before
    assert node.negotiation.count == 1
    path.write_text("{}")
    assert (await client.post("/v1/policy/reload")).json()["code"] == "BUNDLE_INVALID"
    assert node.negotiation.count == 1


async def test_the_consortiums_bundle_is_the_one_of_the_charter(node: Node, client: httpx.AsyncClient) -> None:
    bundle = Bundle.load(shipped_folder(), node.settings.policy_folder)
    body = {"archive": base64.b64encode(bundle.archive()).decode()}
    assert (await client.post("/v1/policy/consortium", json=body)).json()["code"] == "CONFLICT"
    node.charter = SimpleNamespace(policy=PolicyRef(bundle.digest, "rules"))
    assert (await client.get("/v1/policy")).json()["consortium"] == {"held": None, "wanted": bundle.digest}
    for bad, code in (("%%%", "MALFORMED"), ("", "BUNDLE_INVALID"), ("AAAA", "BUNDLE_INVALID")):
        assert (await client.post("/v1/policy/consortium", json={"archive": bad})).json()["code"] == code
    assert (await client.post("/v1/policy/consortium", json={"other": 1})).status_code == 400
    assert (await client.post("/v1/policy/consortium", json=body)).json() == {"consortium": bundle.digest}
    assert (await client.get("/v1/policy")).json()["consortium"]["held"] == bundle.digest
    assert node.negotiation.count == 1
