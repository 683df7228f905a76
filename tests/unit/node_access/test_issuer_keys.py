"""The issuer's keys: rotation, an issuer that is away or lies, and how seldom it is asked."""

from __future__ import annotations

import asyncio
import json

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.urls import https_or_loopback
from comity_node.access import jwks
from comity_node.access.jwks import ASK_AGAIN_S, FRESH_S, STALE_S, KeySet
from comity_node.settings import OidcSettings

KEYS, DISCOVERY = "/keys", "/.well-known/openid-configuration"


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(oidc, clock) -> KeySet:
    return KeySet(oidc, clock)


def kids(found) -> set[str]:
    return {key["kid"] for key in found}


async def test_keys_are_found_by_discovery_and_kept(issuer, keys, clock) -> None:
    kid = issuer.keys["ES256"][0]
    assert kid in kids(await keys.get(kid))
    await asyncio.gather(*(keys.get(kid) for _ in range(20)))
    clock.now += FRESH_S - 1
    await keys.get(kid)
    assert (issuer.asked[KEYS], issuer.asked[DISCOVERY]) == (1, 1)
    clock.now += 2
    await keys.get(kid)
    assert issuer.asked[KEYS] == 2


async def test_a_rotated_key_is_fetched_once_and_unknown_ids_wait(issuer, keys, clock) -> None:
    await keys.get(issuer.keys["ES256"][0])
    clock.now += ASK_AGAIN_S
    fresh = issuer.rotate("ES256")
    assert fresh in kids(await keys.get(fresh))
    assert issuer.asked[KEYS] == 2
    for number in range(50):  # a flood of tokens with made-up key ids
        await keys.get(f"unknown-{number}")
    assert issuer.asked[KEYS] == 2
    clock.now += ASK_AGAIN_S
    await asyncio.gather(*(keys.get(f"unknown-{number}") for number in range(50)))
    assert issuer.asked[KEYS] == 3


async def test_the_old_key_counts_no_more_once_it_is_gone(issuer, keys, clock) -> None:
    old = issuer.keys["ES256"][0]
    await keys.get(old)
    clock.now += ASK_AGAIN_S
    await keys.get(issuer.rotate("ES256"))
    assert old not in kids(await keys.get(old))


async def test_an_issuer_that_is_away_counts_for_an_hour(issuer, keys, clock) -> None:
    kid = issuer.keys["ES256"][0]
    await keys.get(kid)
    issuer.answers[KEYS] = (500, b"{}")
    clock.now += STALE_S - 1
    assert kid in kids(await keys.get(kid))
    clock.now += 2
    with pytest.raises(ComityError) as error:
        await keys.get(kid)
    assert error.value.code is ErrorCode.UNAVAILABLE
    del issuer.answers[KEYS]
    clock.now += ASK_AGAIN_S
    assert kid in kids(await keys.get(kid))


@pytest.mark.parametrize(
    ("path", "status", "document"),
    [
        (KEYS, 404, {}),
        (KEYS, 302, {}),
        (KEYS, 200, []),
        (KEYS, 200, {}),
        (KEYS, 200, {"keys": "many"}),
        (KEYS, 200, {"keys": ["k"]}),
        (KEYS, 200, {"keys": [{}] * (jwks.KEYS_MAX + 1)}),
        (KEYS, 200, {"keys": [], "pad": "x" * jwks.DOCUMENT_BYTES_MAX}),
        (DISCOVERY, 200, {"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"}),
        (DISCOVERY, 200, {"issuer": "ISSUER"}),
        (DISCOVERY, 200, {"issuer": "ISSUER", "jwks_uri": "http://192.0.2.1/keys"}),
        (DISCOVERY, 200, {"issuer": "ISSUER", "jwks_uri": "file:///etc/passwd"}),
    ],
)
async def test_an_issuer_that_lies_gives_no_keys(issuer, keys, path, status, document) -> None:
    issuer.answers[path] = (status, json.dumps(document).replace("ISSUER", issuer.url).encode())
    with pytest.raises(ComityError, match="UNAVAILABLE"):
        await keys.get("any")


async def test_text_that_is_no_json_gives_no_keys(issuer, keys) -> None:
    issuer.answers[KEYS] = (200, b"[" * 100_000)
    with pytest.raises(ComityError, match="UNAVAILABLE"):
        await keys.get("any")


async def test_named_keys_need_no_discovery(issuer, clock) -> None:
    settings = OidcSettings(issuer=issuer.url, audience="a", jwks_url=f"{issuer.url}/keys")
    await KeySet(settings, clock).get(issuer.keys["ES256"][0])
    assert issuer.asked[DISCOVERY] == 0


async def test_nobody_there_is_unavailable_and_bounded(clock, monkeypatch) -> None:
    found = KeySet(OidcSettings(issuer="http://127.0.0.1:9", audience="a"), clock)
    with pytest.raises(ComityError, match="UNAVAILABLE"):
        await asyncio.wait_for(found.get("any"), 5)


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example",
        "ftp://127.0.0.1",
        "https://",
        "id.example",
        "https://u:p@id.example",
        "http://10.0.0.1",
        "https://[::1",
    ],
)
def test_a_provider_is_reached_by_https(url) -> None:
    with pytest.raises(ComityError, match="https"):
        https_or_loopback(url, "it")
    with pytest.raises(ComityError, match="https"):
        KeySet(OidcSettings(issuer=url, audience="a"))


def test_loopback_may_be_plain() -> None:
    for url in ("http://127.0.0.1:8080/x", "http://[::1]:1", "http://localhost:1", "https://id.example/realms/a"):
        https_or_loopback(url, "it")


def test_a_missing_authority_file_is_named(tmp_path) -> None:
    settings = OidcSettings(issuer="https://id.example", audience="a", ca_file=tmp_path / "none.pem")
    with pytest.raises(ComityError, match="KEY_UNREADABLE"):
        KeySet(settings)
