"""The local API: private socket, token, errors of the catalogue. And the command that speaks to it."""

from __future__ import annotations

import asyncio
import stat
import tempfile
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter

from comity.wire.authorisation import PUBLIC
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import holder_of
from comity_node.access.model import LOCAL, ROLES
from comity_node.app import locked
from comity_node.local import LocalApi
from comity_node.rest import LocalServer, build_api
from comity_node.settings import NodeSettings, write_private

TOKEN = "t" * 43
ROWS = {("GET", path): ROLES for path in ("/v1/status", "/v1/refused", "/v1/broken", "/v1/typed")}
ROWS[("GET", "/v1/live")] = PUBLIC


@pytest.fixture
async def home():
    routes = APIRouter(prefix="/v1")

    @routes.get("/refused")
    async def refused() -> None:
        raise ComityError(ErrorCode.TERMS_CONFLICT, "rounds", organisations="a,b")

    @routes.get("/broken")
    async def broken() -> None:
        raise ValueError("the secret is 42")

    @routes.get("/typed")
    async def typed(number: int) -> int:
        return number

    async def status() -> dict[str, str]:
        return {"org": "hospital-a"}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "api.token").write_text(TOKEN + "\n")
        api = build_api(holder_of(TOKEN, LOCAL, "the token is needed"), [routes], status, ROWS)
        server = LocalServer(api, path / "api.sock")
        task = asyncio.create_task(server.run())
        await asyncio.wait_for(server.ready(), 5)
        yield path
        server.stop()
        await asyncio.wait_for(task, 5)
        assert not (path / "api.sock").exists()


def ask(home: Path, path: str, **headers: str) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(home / "api.sock"))
    with httpx.Client(transport=transport, base_url="http://node") as client:
        return client.get(path, headers=headers)


async def test_the_socket_is_private(home) -> None:
    assert stat.S_IMODE((home / "api.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer x"}, {"authorization": f"Bearer {TOKEN}x"}])
async def test_every_route_needs_the_token(home, header) -> None:
    for path in ("/v1/status", "/v1/refused"):
        answer = await asyncio.to_thread(ask, home, path, **header)
        assert answer.status_code == 401
        assert answer.json()["code"] == "UNAUTHENTICATED"
    assert (await asyncio.to_thread(ask, home, "/v1/live")).json() == {"live": True}


async def test_errors_are_problem_json_of_the_catalogue(home) -> None:
    token = {"authorization": f"Bearer {TOKEN}"}
    unknown = await asyncio.to_thread(ask, home, "/v1/unknown", **token)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")
    answer = await asyncio.to_thread(ask, home, "/v1/refused", **token)
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["facts"] == {"organisations": "a,b"}
    assert answer.json()["move"] == "the proposer"
    broken = await asyncio.to_thread(ask, home, "/v1/broken", **token)
    assert (broken.status_code, broken.json()["code"]) == (500, "INTERNAL")
    assert "42" not in broken.text
    typed = await asyncio.to_thread(ask, home, "/v1/typed?number=x", **token)
    assert typed.json()["code"] == "MALFORMED"


async def test_the_command_s_client_raises_what_the_node_raised(home, tmp_path) -> None:
    api = LocalApi(home)
    assert await asyncio.to_thread(api.get, "/v1/status") == {"org": "hospital-a"}
    with pytest.raises(ComityError) as refused:
        await asyncio.to_thread(api.get, "/v1/refused")
    assert refused.value.code is ErrorCode.TERMS_CONFLICT
    assert refused.value.facts == {"organisations": "a,b"}
    with pytest.raises(ComityError):
        await asyncio.to_thread(api.download, "/v1/refused", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_does_not_run_is_named(tmp_path) -> None:
    with pytest.raises(ComityError, match="NOT_FOUND"):
        LocalApi(tmp_path)
    (tmp_path / "api.token").write_text(TOKEN)
    with pytest.raises(ComityError, match="UNAVAILABLE"):
        LocalApi(tmp_path).get("/v1/status")


def test_a_long_path_is_refused_with_a_sentence(tmp_path) -> None:
    with pytest.raises(ComityError, match="too long a path"):
        LocalServer(build_api(holder_of(TOKEN, LOCAL, ""), [], lambda: None), tmp_path / ("x" * 120))


def test_one_process_a_home(tmp_path) -> None:
    with locked(tmp_path), pytest.raises(ComityError, match="CONFLICT"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_settings_name_the_field_that_is_wrong(tmp_path, make_settings) -> None:
    settings = make_settings(None)
    settings.save()
    assert NodeSettings.load(tmp_path) == settings
    assert stat.S_IMODE((tmp_path / "node.json").stat().st_mode) == 0o600
    text = (tmp_path / "node.json").read_text()
    for bad, field in ((text.replace('"hospital-a"', '"A!"'), "org"), (text.replace('"title"', '"tilte"'), "title")):
        write_private(tmp_path / "node.json", bad.encode())
        with pytest.raises(ComityError, match=field):
            NodeSettings.load(tmp_path)
    write_private(tmp_path / "node.json", b"[]")
    with pytest.raises(ComityError, match="MALFORMED"):
        NodeSettings.load(tmp_path)
