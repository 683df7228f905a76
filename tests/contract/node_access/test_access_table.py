"""The node's authorisation table, cell by cell: every route that it serves, for every role, through the real gate."""

from __future__ import annotations

import json
import re
from datetime import timedelta

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse

from comity.wire import http_api, instants
from comity.wire.authorisation import PUBLIC, SIGNED_IN
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import Gate, routes_of
from comity_node.access.model import ROLES, Principal
from comity_node.access.rows import ROUTES
from comity_node.rest import build_api

CALLERS = {
    "nobody": None,
    "no-role": frozenset(),
    "unknown-role": frozenset({"operator", "public", "signed-in"}),
    **{role: frozenset({role}) for role in sorted(ROLES)},
    "everything": ROLES,
}


async def authenticate(credentials: str) -> Principal:
    roles = CALLERS.get(credentials)
    if roles is None:
        raise ComityError(ErrorCode.UNAUTHENTICATED, "unknown")
    return Principal(credentials, roles, "token")


async def status() -> dict[str, str]:
    return {}


def api_of(routers: list[APIRouter]) -> FastAPI:
    return build_api(authenticate, routers, status)


def served(api: FastAPI) -> list[tuple[str, str]]:
    """Every (method, path) that the gate of this API knows."""
    (gate,) = (each for each in api.user_middleware if each.cls is Gate)
    return sorted((method, route.path) for route in gate.kwargs["routes"] for method in route.methods)


def test_every_route_has_a_row_and_every_row_a_route(routers) -> None:
    there = set(served(api_of(routers)))
    assert sorted(there - set(ROUTES)) == [], (
        "add a row for each of these to federation_node/comity_node/access/rows.py"
    )
    assert sorted(set(ROUTES) - there) == [], "nothing serves these rows of access/rows.py any more"


def test_rows_hold_known_roles() -> None:
    wrong = [key for key, row in ROUTES.items() if row not in (PUBLIC, SIGNED_IN) and not (row and row <= ROLES)]
    assert wrong == []


def test_what_is_open_to_everybody_is_little() -> None:
    assert {key for key, row in ROUTES.items() if row == PUBLIC} == {("GET", "/v1/live"), ("GET", "/v1/access/login")}
    changing = {key for key, row in ROUTES.items() if row == SIGNED_IN and key[0] != "GET"}
    # Anybody may have been delegated to: the service asks for the item's own role.
    assert changing == {("POST", "/v1/reviews/{id}/votes")}


def test_an_auditor_changes_nothing() -> None:
    assert [key for key, row in ROUTES.items() if key[0] != "GET" and "auditor" in row] == []


def test_only_an_admin_touches_keys_tokens_policy_and_charter() -> None:
    grave = re.compile(r"/v1/(access/tokens|policy|genesis|charter|invitations|link|datasets)")
    changes = [key for key in ROUTES if key[0] != "GET" and grave.match(key[1])]
    assert len(changes) >= 6
    assert [key for key in changes if ROUTES[key] != {"admin"}] == []


async def reached(api: FastAPI, method: str, path: str, caller: str) -> int:
    """Ask through the real gate; behind it stands nothing but 200, so the status is the gate's verdict."""
    (middleware,) = (each for each in api.user_middleware if each.cls is Gate)
    gate = Gate(PlainTextResponse("reached"), **middleware.kwargs)
    transport = httpx.ASGITransport(app=gate)
    filled = re.sub(r"\{[^}]+\}", "x", path)
    headers = {} if caller == "nobody" else {"authorization": f"Bearer {caller}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        return (await client.request(method, filled, headers=headers)).status_code


@pytest.mark.parametrize("caller", CALLERS)
async def test_each_cell(routers, caller) -> None:
    api = api_of(routers)
    wrong = []
    for method, path in served(api):
        row, roles = ROUTES[(method, path)], CALLERS[caller]
        if row == PUBLIC:
            expected = 200
        elif roles is None:
            expected = 401
        else:
            expected = 200 if row == SIGNED_IN or roles & row else 403
        found = await reached(api, method, path, caller)
        if found != expected:
            wrong.append((method, path, found, expected))
    assert wrong == []
    assert len(served(api)) >= 30


async def test_a_route_without_a_row_is_closed_to_everybody(routers) -> None:
    stray = APIRouter()

    @stray.get("/v1/forgotten")
    async def forgotten() -> str:
        return "the secret"

    api = api_of([*routers, stray])
    assert ("GET", "/v1/forgotten") in served(api)
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        for caller in CALLERS:
            answer = await client.get("/v1/forgotten", headers={"authorization": f"Bearer {caller}"})
            assert answer.status_code in (401, 403)
            assert "secret" not in answer.text


async def test_nothing_answers_behind_the_gate_s_back(routers) -> None:
    """A gate that overlooks a route, or looks at another one, opens none."""
    api = api_of(routers)
    (gate,) = (each for each in api.user_middleware if each.cls is Gate)
    there, gate.kwargs["routes"] = served(api), ()
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        for method, path in there:
            filled = re.sub(r"\{[^}]+\}", "x", path)
            answer = await client.request(method, filled, json={}, headers={"authorization": "Bearer everything"})
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN"), (method, path)
            assert "the gate has not opened" in answer.json()["detail"]


async def asked(
    headers: list[tuple[str, str]], method: str = "GET", path: str = "/v1/access/me", content=None
) -> tuple:
    """Ask an API with one route of each kind; returns status and code."""
    routes = APIRouter()

    @routes.get("/v1/access/me")
    async def me() -> dict[str, str]:
        return {}

    @routes.post("/v1/datasets")
    async def add(body: dict) -> dict[str, str]:
        return {}

    transport = httpx.ASGITransport(app=api_of([routes]))
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        answer = await client.request(method, path, headers=headers, content=content)
    return answer.status_code, answer.json().get("code")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "admin")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", "Basic admin")],
        [("authorization", "Bearer admin"), ("authorization", "Bearer admin")],
        [("authorization", "Bearer " + "x" * (http_api.CREDENTIALS_BYTES_MAX + 1))],
        [("authorization", "Bearer unknown")],
    ],
)
async def test_credentials_in_another_form_are_none(headers) -> None:
    assert await asked(headers) == (401, "UNAUTHENTICATED")


async def test_the_scheme_s_letters_do_not_matter() -> None:
    assert await asked([("authorization", "bearer admin")]) == (200, None)


ADMIN = ("authorization", "Bearer admin")


async def test_bodies_are_bounded_before_they_are_read() -> None:
    post, json_of = {"method": "POST", "path": "/v1/datasets"}, ("content-type", "application/json")
    big = str(http_api.BODY_BYTES_MAX + 1)
    assert await asked([ADMIN, ("content-length", big)], **post) == (413, "TOO_LARGE")
    for odd in ("-1", "x", "1e3", ""):
        assert await asked([ADMIN, json_of, ("content-length", odd)], **post, content=b"{}") == (400, "MALFORMED")

    async def endless():
        yield b"{}"

    assert await asked([ADMIN, json_of], **post, content=endless()) == (400, "MALFORMED")
    assert await asked([ADMIN, json_of], **post, content=b"{}") == (200, None)


async def test_a_wrong_way_is_told_only_to_who_is_known() -> None:
    assert await asked([], path="/v1/nothing") == (401, "UNAUTHENTICATED")
    assert await asked([ADMIN], path="/v1/nothing") == (404, "NOT_FOUND")
    assert await asked([ADMIN], method="DELETE", path="/v1/datasets") == (501, "UNSUPPORTED")


def test_only_plain_routes_are_gated() -> None:
    outer, inner = APIRouter(), APIRouter()

    @inner.get("/v1/hidden")
    async def hidden() -> None:
        return None

    outer.include_router(inner)
    with pytest.raises(ValueError, match="plain routes"):
        routes_of([outer])


async def test_a_route_s_own_timeout_is_no_end_of_credentials() -> None:
    routes = APIRouter()

    @routes.get("/v1/access/me")
    async def slow() -> None:
        raise TimeoutError

    async def soon_over(credentials: str) -> Principal:
        return Principal("ada", ROLES, "token", instants.now() + timedelta(seconds=60))

    api = build_api(soon_over, [routes], status)
    transport = httpx.ASGITransport(app=api, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
        answer = await client.get("/v1/access/me", headers=[ADMIN])
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")


async def test_who_changed_something_and_who_was_refused_is_logged(capsys) -> None:
    await asked([ADMIN, ("content-type", "application/json")], "POST", "/v1/datasets", b"{}")
    await asked([("authorization", "Bearer auditor")], "POST", "/v1/datasets", b"{}")
    await asked([ADMIN])
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["event"], each["user"], each["route"]) for each in lines] == [
        ("http.asked", "admin", "/v1/datasets"),
        ("http.refused", "auditor", "/v1/datasets"),
    ]
