"""Logging in by the device flow against a real provider, and against one that misbehaves; where logins are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import issuer as provider

from comity.wire.errors import ComityError, ErrorCode
from comity_client import login, where
from comity_client.commands.access import duration_s
from comity_client.login import DeviceFlow, checked_token, read_token, save
from comity_client.main import where_to


@pytest.fixture
def issuer() -> Iterator[provider.Issuer]:
    with provider.serving() as found:
        yield found


@pytest.fixture
def flow(issuer) -> Iterator[DeviceFlow]:
    with DeviceFlow(issuer.url, provider.AUDIENCE, "openid") as found:
        yield found


def code_of(function, *arguments) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        function(*arguments)
    return error.value.code


def test_the_token_comes_once_the_person_agrees(issuer, flow) -> None:
    code = flow.begin()
    assert code.url == f"{issuer.url}/activate"
    assert code.secret not in repr(code)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            issuer.approve(code.code, "slow_down")
        if len(slept) == 3:
            issuer.approve(code.code)

    assert flow.wait(code, sleep).count(".") == 2
    assert slept == [1, 1, 6]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("access_denied", "UNAUTHENTICATED"),
        ("expired_token", "UNAUTHENTICATED"),
        ("invalid_client", "UNAUTHENTICATED"),
        ("authorization_pending", "TIMEOUT"),
    ],
)
def test_endings_without_a_token(issuer, flow, words, code) -> None:
    begun = flow.begin()
    issuer.approve(begun.code, words)
    assert code_of(flow.wait, begun, lambda _seconds: None) == code


@pytest.mark.parametrize(
    ("path", "status", "document", "code"),
    [
        ("/.well-known/openid-configuration", 404, {}, "UNAVAILABLE"),
        ("/.well-known/openid-configuration", 200, {"issuer": "https://other.example"}, "MALFORMED"),
        ("/.well-known/openid-configuration", 200, {"issuer": "ISSUER"}, "UNSUPPORTED"),
        ("/.well-known/openid-configuration", 200, [], "MALFORMED"),
        (
            "/.well-known/openid-configuration",
            200,
            {
                "issuer": "ISSUER",
                "device_authorization_endpoint": "http://192.0.2.1/",
                "token_endpoint": "ISSUER/token",
            },
            "MALFORMED",
        ),
        ("/device", 400, {"error": "invalid_client"}, "UNAVAILABLE"),
        ("/device", 200, {"device_code": "x"}, "MALFORMED"),
        ("/device", 200, {"pad": "x" * login.ANSWER_BYTES_MAX}, "TOO_LARGE"),
    ],
)
def test_a_provider_that_misbehaves(issuer, flow, path, status, document, code) -> None:
    issuer.answers[path] = (status, json.dumps(document).replace("ISSUER", issuer.url).encode())
    assert code_of(flow.begin) == code


@pytest.mark.parametrize("document", [{}, {"id_token": 7}, {"id_token": "a\nb"}, {"id_token": "x" * 20_000}])
def test_an_answer_without_a_token(issuer, flow, document) -> None:
    begun = flow.begin()
    issuer.answers["/token"] = (200, json.dumps(document).encode())
    assert code_of(flow.wait, begun, lambda _seconds: None) == "MALFORMED"


def test_odd_times_are_bounded(issuer, flow) -> None:
    made = {"device_code": "d", "user_code": "U", "verification_uri": "v", "expires_in": 10**9, "interval": -5}
    issuer.answers["/device"] = (200, json.dumps(made).encode())
    code = flow.begin()
    assert (code.expires_s, code.interval_s) == (login.WAIT_S_MAX, login.INTERVAL_S)


def test_a_provider_is_reached_by_https() -> None:
    assert code_of(DeviceFlow, "http://id.example", "a", "openid") == "MALFORMED"


def test_tokens_are_kept_private_and_whole(tmp_path) -> None:
    file = tmp_path / "logins" / "a.token"
    save(file, "first")
    save(file, "second")
    assert read_token(file) == "second"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [each.name for each in file.parent.iterdir()] == ["a.token"]
    assert code_of(read_token, tmp_path / "none") == "NOT_FOUND"
    for wrong in ("", "a b", "a\tb", "é", "x" * 20_000):
        with pytest.raises(ComityError, match="MALFORMED") as error:
            checked_token(wrong)
        assert not wrong.strip() or wrong not in str(error.value)


def test_each_target_has_its_own_login(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places = [
        where.remote("https://node.example:8443", None),
        where.remote("https://node.example:9443", None),
        where.target(tmp_path / "a"),
        where.target(tmp_path / "b"),
    ]
    files = {where.login_file(place) for place in places}
    assert len(files) == 4
    assert all(file.is_relative_to(tmp_path / ".comity" / "logins") for file in files)
    assert where.login_file(where.remote("https://node.example:8443/", None)) in files


def test_where_a_command_goes(tmp_path, monkeypatch) -> None:
    for name in ("COMITY_NODE", "COMITY_TOKEN_FILE", "COMITY_NODE_CA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / "node"
    assert where.endpoint(home).token_file == home / "api.token"
    monkeypatch.setenv("COMITY_TOKEN_FILE", str(tmp_path / "ada.token"))
    assert (where.endpoint(home).uds, where.endpoint(home).token_file) == (home / "api.sock", tmp_path / "ada.token")
    monkeypatch.delenv("COMITY_TOKEN_FILE")
    monkeypatch.setenv("COMITY_NODE", "")
    where_to("https://node.example:8443", None, tmp_path / "ca.pem")
    found = where.endpoint(home)
    assert (found.url, found.uds, found.ca) == ("https://node.example:8443", None, tmp_path / "ca.pem")
    assert found.token_file == where.login_file(found)
    for name in ("COMITY_NODE", "COMITY_NODE_CA"):
        monkeypatch.delenv(name)


def test_durations() -> None:
    assert (duration_s("12h"), duration_s("30d")) == (43_200, 2_592_000)
    for wrong in ("", "12", "0h", "1w", "-1d", "1.5h", "9999999d"):
        assert code_of(duration_s, wrong) == "MALFORMED"
