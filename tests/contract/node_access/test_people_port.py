"""The port for people: TLS 1.3 and nothing older, tokens and ID tokens only, streams end with their credentials."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from comity.wire.errors import ComityError, ErrorCode
from comity_client import where
from comity_client.login import save
from comity_client.sdk import AsyncNode
from comity_crypto import x509
from comity_node.access.model import LOCAL
from comity_node.access.service import AccessService
from comity_node.rest import CONNECTIONS_MAX, PortServer, build_api, server_tls
from comity_node.settings import ListenSettings, write_private

API_TOKEN = "t" * 43


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate of 127.0.0.1, and of another host."""
    found: Path = tmp_path_factory.mktemp("people")
    for name, host in (("people", "127.0.0.1"), ("other", "192.0.2.9")):
        key, certificate = x509.self_signed([], [host])
        write_private(found / f"{name}.key.pem", key)
        write_private(found / f"{name}.cert.pem", certificate)
    return found


def listen(folder: Path, name: str = "people", address: str = "127.0.0.1:0") -> ListenSettings:
    return ListenSettings(address=address, certificate=Path(f"{name}.cert.pem"), key=Path(f"{name}.key.pem"))


@contextlib.asynccontextmanager
async def served(node, routers, folder: Path, name: str = "people") -> AsyncIterator[PortServer]:
    access = node.context.services.get(AccessService)
    server = PortServer(build_api(access.over_port, routers, node.status), listen(folder, name), folder)
    task = asyncio.create_task(server.run())
    try:
        await asyncio.wait_for(server.ready(), 5)
        yield server
    finally:
        server.stop()
        await asyncio.wait_for(task, 10)


@pytest.fixture
async def port(node, routers, folder) -> AsyncIterator[PortServer]:
    async with served(node, routers, folder) as server:
        yield server


async def token_of(node, tmp_path: Path, *roles: str, valid_s: int = 600) -> Path:
    issued = await node.context.services.get(AccessService).issue(LOCAL, "ada", frozenset(roles), valid_s)
    save(tmp_path / "ada.token", issued.text)
    return tmp_path / "ada.token"


def client(port: PortServer, folder: Path, token: Path, ca: str = "people") -> AsyncNode:
    return AsyncNode(folder, where.remote(f"https://{port.address}", token, folder / f"{ca}.cert.pem"))


async def code_of(awaitable) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        await awaitable
    return error.value.code


async def test_a_person_with_a_token_and_its_roles(node, port, folder, tmp_path) -> None:
    token = await token_of(node, tmp_path, "auditor")
    async with client(port, folder, token) as ada:
        me = await ada.me()
        assert (me["user"], me["roles"], me["via"], me["org"]) == ("ada", ["auditor"], "token", "hospital-a")
        assert (await ada.status())["org"] == "hospital-a"
        assert await ada.proposals() == []
        assert await code_of(ada.issue_token("eve", ["admin"])) is ErrorCode.FORBIDDEN
        assert await code_of(ada.reload_policy()) is ErrorCode.FORBIDDEN


async def test_api_token_is_refused(node, port, folder, tmp_path) -> None:
    save(tmp_path / "api.token", API_TOKEN)
    async with client(port, folder, tmp_path / "api.token") as ada:
        assert await code_of(ada.status()) is ErrorCode.UNAUTHENTICATED


async def test_an_admin_issues_tokens_from_elsewhere(node, port, folder, tmp_path) -> None:
    admin = await token_of(node, tmp_path, "admin")
    context = ssl.create_default_context(cafile=folder / "people.cert.pem")
    headers = {"authorization": f"Bearer {admin.read_text().strip()}"}
    async with httpx.AsyncClient(verify=context, trust_env=False, base_url=f"https://{port.address}") as plain:
        wish = {"user": "bob", "roles": ["auditor"], "valid_s": 600}
        answer = await plain.post("/v1/access/tokens", json=wish, headers=headers)
        made = answer.json()
        assert (answer.status_code, answer.headers["cache-control"], made["issued_by"]) == (201, "no-store", "ada")
        bob = {"authorization": f"Bearer {made['token']}"}
        assert (await plain.get("/v1/access/me", headers=bob)).json()["user"] == "bob"
        listed = (await plain.get("/v1/access/tokens", headers=bob)).json()
        assert made["token"] not in str(listed)
        assert {each["user"] for each in listed} >= {"ada", "bob"}
        for wrong in ({"roles": ["operator"]}, {"user": "local"}, {"valid_s": 1}, {"more": 1}, {"roles": []}):
            refused = await plain.post("/v1/access/tokens", json={**wish, **wrong}, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (400, "MALFORMED"), wrong
        assert (await plain.post(f"/v1/access/tokens/{made['id']}/revoke", headers=headers)).json()[
            "state"
        ] == "revoked"
        ended = await plain.get("/v1/access/me", headers=bob)
        assert (ended.status_code, ended.headers["www-authenticate"]) == (401, "Bearer")


async def handshake(port: PortServer, folder: Path, version: ssl.TLSVersion) -> str:
    context = ssl.create_default_context(cafile=folder / "people.cert.pem")
    context.minimum_version = context.maximum_version = version
    host, _, number = port.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(number), ssl=context)
    found = writer.get_extra_info("ssl_object").version()
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    return found


async def test_nothing_older_than_tls_1_3(port, folder) -> None:
    assert await handshake(port, folder, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(port, folder, ssl.TLSVersion.TLSv1_2)


async def test_another_host_s_certificate_is_not_taken(node, routers, folder, tmp_path) -> None:
    token = await token_of(node, tmp_path, "auditor")
    async with served(node, routers, folder) as port, client(port, folder, token, ca="other") as ada:
        assert await code_of(ada.me()) is ErrorCode.UNAVAILABLE
    async with served(node, routers, folder, "other") as port, client(port, folder, token, ca="other") as ada:
        assert await code_of(ada.me()) is ErrorCode.UNAVAILABLE


async def test_plain_http_gets_nothing(port) -> None:
    async with httpx.AsyncClient(trust_env=False) as plain:
        with pytest.raises(httpx.HTTPError):
            await plain.get(f"http://{port.address}/v1/live")


async def test_a_stream_ends_with_its_credentials(node, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("comity_node.access.service.TOKEN_S_MIN", 1)
    routes = APIRouter()

    @routes.get("/v1/runs/{run}/events")
    async def endless(run: str) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b": alive\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(lines(), media_type="text/event-stream")

    token = (await token_of(node, tmp_path, "auditor", valid_s=2)).read_text().strip()
    async with served(node, [routes], folder) as port:
        context = ssl.create_default_context(cafile=folder / "people.cert.pem")
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(verify=context, trust_env=False, headers=headers) as plain:
            with pytest.raises(httpx.RemoteProtocolError):
                await read_to_the_end(plain, f"https://{port.address}/v1/runs/x/events")
            assert (await plain.get(f"https://{port.address}/v1/access/me")).status_code == 401


async def read_to_the_end(plain: httpx.AsyncClient, url: str) -> None:
    started = time.monotonic()
    async with plain.stream("GET", url) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_bytes():
            assert time.monotonic() - started < 10


async def test_the_head_of_a_request_is_bounded(port, folder) -> None:
    context = ssl.create_default_context(cafile=folder / "people.cert.pem")
    async with httpx.AsyncClient(verify=context, trust_env=False) as plain:
        with contextlib.suppress(httpx.HTTPError):
            answer = await plain.get(f"https://{port.address}/v1/live", headers={"x": "y" * 200_000})
            assert answer.status_code == 400
        assert (await plain.get(f"https://{port.address}/v1/live")).status_code == 200
    assert CONNECTIONS_MAX <= 256


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /v1/live HTTP/1.1\r\nhost: x\r\n", b"POST /v1/apps HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"],
)
async def test_who_says_nothing_is_sent_away(node, routers, folder, tmp_path, monkeypatch, said) -> None:
    monkeypatch.setattr("comity_node.rest.SILENCE_S", 0.3)
    monkeypatch.setattr("comity_node.rest.SWEEP_EVERY_S", 0.1)
    token = (await token_of(node, tmp_path, "proposer")).read_text().strip()
    said = said.replace(b"host: x", f"host: x\r\nauthorization: Bearer {token}".encode())
    async with served(node, routers, folder) as port:
        context = ssl.create_default_context(cafile=folder / "people.cert.pem")
        host, _, number = port.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(number), ssl=context)
        writer.write(said)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


async def test_a_stream_is_not_taken_for_silence(node, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("comity_node.rest.SILENCE_S", 0.2)
    monkeypatch.setattr("comity_node.rest.SWEEP_EVERY_S", 0.05)
    routes = APIRouter()

    @routes.get("/v1/runs/{run}/events")
    async def slow(run: str) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b": alive\n\n"
            await asyncio.sleep(1)
            yield b"data: {}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    token = await token_of(node, tmp_path, "auditor")
    async with served(node, [routes], folder) as port, client(port, folder, token) as ada:
        assert [event async for event in ada.stream_events("/v1/runs/x/events", {})] == [{}]


def test_an_open_key_is_refused(folder, tmp_path) -> None:
    for name in ("people.key.pem", "people.cert.pem"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "people.key.pem").chmod(0o640)
    with pytest.raises(ComityError, match="chmod 600"):
        server_tls(tmp_path / "people.cert.pem", tmp_path / "people.key.pem")


def test_files_that_do_not_fit_are_refused_without_their_text(folder, tmp_path) -> None:
    write_private(tmp_path / "junk.pem", b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    for certificate, key in (
        (folder / "people.cert.pem", folder / "other.key.pem"),
        (folder / "people.cert.pem", tmp_path / "junk.pem"),
        (folder / "people.cert.pem", tmp_path / "missing.pem"),
        (tmp_path / "missing.pem", folder / "people.key.pem"),
    ):
        with pytest.raises(ComityError, match="KEY_UNREADABLE") as error:
            server_tls(certificate, key)
        assert "c2VjcmV0" not in repr(error.value)


@pytest.mark.parametrize(
    "address", ["", "8443", ":8443", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "203.0.113.1:1"]
)
def test_addresses_that_are_none(folder, node, address) -> None:
    with pytest.raises(ComityError, match=r"listen: "):
        PortServer(build_api(None, [], node.status), listen(folder, address=address), folder)


def test_a_taken_port_is_named(folder, node) -> None:
    first = PortServer(build_api(None, [], node.status), listen(folder), folder)
    try:
        with pytest.raises(ComityError, match="UNAVAILABLE"):
            PortServer(build_api(None, [], node.status), listen(folder, address=first.address), folder)
    finally:
        first._socket.close()


@pytest.mark.parametrize(
    "url", ["http://node.example", "node.example:1", "https://", "https://u:p@x", "https://x/y", "https://x?y=1"]
)
def test_a_node_is_named_by_https(url) -> None:
    with pytest.raises(ComityError, match="https://host:port"):
        where.remote(url, None)
