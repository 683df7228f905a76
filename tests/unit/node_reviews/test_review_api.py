"""The routes of reviews behind the gate: who sees what, who may vote, what a vote has to name."""

from __future__ import annotations

import httpx
import pytest

from comity.wire.http_api import build_api
from comity_crypto.encoding import from_base64
from comity_crypto.statements import Statement, verify_statement
from comity_node.access.model import LOCAL, Principal
from comity_node.access.rows import ROUTES
from comity_node.reviews.api import router

UNTIL = "2026-01-05T00:00:00Z"


async def authenticate(credentials: str) -> Principal:
    user, _, roles = credentials.partition(":")
    return LOCAL if user == "local" else Principal(user, frozenset(roles.split(",")) - {""}, "oidc")


@pytest.fixture
async def ask_as(clinic):
    async def status():
        return {}

    api = build_api("test", authenticate, ROUTES, [router(clinic.node)], status)
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:

        async def ask(who, method, path, body=None):
            headers = {"authorization": f"Bearer {who}"}
            answer = await client.request(method, path, json=body, headers=headers)
            return answer.status_code, answer.json()

        yield ask


async def test_what_is_shown_is_what_is_signed(clinic, ask_as):
    item = await clinic.put(approvals=2)
    status, shown = await ask_as("anna:reviewer", "GET", f"/v1/reviews/{item.id}")
    assert (status, shown["document"], shown["document_digest"]) == (200, item.document, item.document_digest)
    vote = {"decision": "approve", "document": shown["document_digest"], "reason": "fine"}
    wrong = {**vote, "document": "0" * 64}
    assert (await ask_as("anna:reviewer", "POST", f"/v1/reviews/{item.id}/votes", wrong))[0] == 409
    assert (await ask_as("anna:auditor", "POST", f"/v1/reviews/{item.id}/votes", vote))[0] == 403
    status, after = await ask_as("anna:reviewer", "POST", f"/v1/reviews/{item.id}/votes", vote)
    assert (status, after["state"], after["missing"]) == (201, "OPEN", 1)
    assert [(each["user"], each["reason"]) for each in after["votes"]] == [("anna", "fine")]
    statement = Statement.from_bytes(from_base64(after["votes"][0]["statement"], what="a vote"))
    verify_statement(statement, clinic.node.keys.public.statement, kind="review-vote", consortium="demo")
    said = statement.body
    assert (said["document"], said["user"], said["via"]) == (shown["document_digest"], "anna", "oidc")
    status, after = await ask_as("local", "POST", f"/v1/reviews/{item.id}/votes", vote)
    assert (status, after["state"], [each["kind"] for each in after["events"]]) == (
        201, "APPROVED", ["asked", "voted", "voted", "approved"],
    )  # fmt: skip


async def test_a_list_marks_what_is_yours_and_hides_the_rest_from_outsiders(clinic, ask_as):
    item = await clinic.put()

    async def listed(who, state="open"):
        status, found = await ask_as(who, "GET", f"/v1/reviews?state={state}")
        assert status == 200
        return [(each["id"], each["yours"]) for each in found]

    assert await listed("anna:reviewer") == [(item.id, True)]
    assert await listed("otto:auditor") == [(item.id, False)]
    assert await listed("carla:") == []
    assert (await ask_as("carla:", "GET", f"/v1/reviews/{item.id}"))[0] == 403
    body = {"receiver": "carla", "until": UNTIL}
    assert (await ask_as("anna:reviewer", "POST", "/v1/delegations", body))[0] == 201
    assert await listed("carla:") == [(item.id, True)]
    assert (await ask_as("carla:", "GET", f"/v1/reviews/{item.id}"))[0] == 200
    vote = {"decision": "deny", "document": item.document_digest, "reason": "no"}
    assert (await ask_as("carla:", "POST", f"/v1/reviews/{item.id}/votes", vote))[1]["state"] == "DENIED"
    assert await listed("anna:reviewer") == []
    assert await listed("anna:reviewer", "all") == [(item.id, False)]


async def test_delegations_are_listed_and_taken_back(ask_as):
    body = {"receiver": "carla", "until": UNTIL, "role": "reviewer"}
    status, made = await ask_as("anna:reviewer", "POST", "/v1/delegations", body)
    assert (status, made["giver"], made["entered_by"]) == (201, "anna", "anna")
    assert (await ask_as("otto:auditor", "GET", "/v1/delegations"))[1] == [made]
    assert (await ask_as("otto:auditor", "DELETE", f"/v1/delegations/{made['id']}"))[0] == 403
    assert (await ask_as("bert:reviewer", "DELETE", f"/v1/delegations/{made['id']}"))[0] == 403
    assert (await ask_as("anna:reviewer", "DELETE", f"/v1/delegations/{made['id']}"))[0] == 200
    assert (await ask_as("otto:auditor", "GET", "/v1/delegations"))[1] == []
    assert (await ask_as("otto:auditor", "POST", "/v1/delegations", body))[0] == 403


@pytest.mark.parametrize(
    "body",
    [{}, {"decision": "maybe", "document": "0" * 64}, {"decision": "deny", "document": "0"},
     {"decision": "deny", "document": "0" * 64, "reason": "x" * 501},
     {"decision": "deny", "document": "0" * 64, "as": 1}],
)  # fmt: skip
async def test_a_vote_in_another_form_is_refused(clinic, ask_as, body):
    item = await clinic.put()
    assert (await ask_as("anna:reviewer", "POST", f"/v1/reviews/{item.id}/votes", body))[0] == 400
