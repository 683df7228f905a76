"""The SDK against a server on a Unix socket: answers, errors, broken streams, in both kinds of client."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_client import AsyncNode, Coordinator, Node, calls, sdk
from comity_client.calls import Call


def test_both_clients_give_the_same_answer(served: Any) -> None:
    with Node(served.home) as node:
        assert node.status()["org"] == "hospital-a"

    async def ask() -> Any:
        async with AsyncNode(served.home) as node:
            return await node.status()

    assert asyncio.run(ask()) == {"org": "hospital-a"}


def test_a_problem_becomes_the_error_it_was(served: Any) -> None:
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        node.proposal("denied")
    assert caught.value.code is ErrorCode.POLICY_DENIED
    assert caught.value.detail == "not here"
    assert caught.value.facts == {"rule": "proposal.purpose"}


@pytest.mark.parametrize(
    ("name", "code"), [("garbage", ErrorCode.MALFORMED), ("dumb", ErrorCode.INTERNAL), ("a/b", ErrorCode.UNSUPPORTED)]
)
def test_other_answers_are_errors_too(served: Any, name: str, code: ErrorCode) -> None:
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        node.proposal(name)
    assert caught.value.code is code


def test_names_cannot_leave_their_segment(served: Any) -> None:
    """An escaped slash reaches the server as one segment or not at all; never as another route."""
    with Node(served.home) as node, pytest.raises(ComityError):
        node.proposal("../status")
    assert "status" not in served.asked
    assert calls.segment("../a b?c#d") == "..%2Fa%20b%3Fc%23d"


def test_silence_is_a_timeout(served: Any) -> None:
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        node.send(Call("GET", "/v1/proposals/slow", timeout_s=0.2))
    assert caught.value.code is ErrorCode.TIMEOUT


def test_a_wrong_token_is_told(served: Any) -> None:
    (served.home / "api.token").write_text("another\n")
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        node.status()
    assert caught.value.code is ErrorCode.UNAUTHENTICATED
    assert "another" not in str(caught.value)


def test_a_socket_that_a_killed_process_left_behind(tmp_path: Path) -> None:
    (tmp_path / "api.token").write_text("t\n")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
    with Node(tmp_path) as node:
        for _ in range(3):
            with pytest.raises(ComityError) as caught:
                node.status()
            assert caught.value.code is ErrorCode.UNAVAILABLE
    del caught
    gc.collect()  # nothing unclosed comes to light


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ComityError) as caught:
        Node(tmp_path)
    assert caught.value.code is ErrorCode.NOT_FOUND
    (tmp_path / "api.token").write_text("t\n")
    with Node(tmp_path) as node, pytest.raises(ComityError) as caught:
        node.status()
    assert caught.value.code is ErrorCode.UNAVAILABLE
    assert "comity node up" in caught.value.detail
    with pytest.raises(ComityError) as caught:
        Coordinator(tmp_path)
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_coordinator_is_found_by_what_it_wrote_down(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text('{"port": 1, "rest_port": 4711}')
    assert sdk.coordinator_endpoint(tmp_path).url == "http://127.0.0.1:4711"
    (tmp_path / "ready.json").write_text('{"port": 1}')
    with pytest.raises(ComityError) as caught:
        sdk.coordinator_endpoint(tmp_path)
    assert caught.value.code is ErrorCode.MALFORMED


def test_bodies_are_sent(served: Any) -> None:
    with Node(served.home) as node:
        assert node.withdraw("prop-1", "enough") == {"withdrawn": "prop-1"}
    assert served.bodies == [{"name": "prop-1", "reason": "enough"}]


@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_events_come_once_each_and_in_order(served: Any, breaks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "RECONNECT_S", 0.01)
    served.breaks = breaks
    with Node(served.home) as node:
        assert [event["no"] for event in node.events("run-1")] == [1, 2, 3, 4, 5]
        assert [event["no"] for event in node.events("run-1", after=3)] == [4, 5]
    served.breaks = breaks

    async def watch() -> list[int]:
        async with AsyncNode(served.home) as node:
            return [event["no"] async for event in node.events("run-1")]

    assert asyncio.run(watch()) == [1, 2, 3, 4, 5]


def test_watching_has_an_end(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "RECONNECT_S", 0.01)
    served.breaks = 10_000
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        list(node.events("run-1", after=5, timeout_s=0.2))
    assert caught.value.code is ErrorCode.TIMEOUT


def test_signs_of_life_do_not_prolong_a_watch(served: Any) -> None:
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        list(node.events("run-1", after=999, timeout_s=0.2))
    assert caught.value.code is ErrorCode.TIMEOUT

    async def watch() -> list[Any]:
        async with AsyncNode(served.home) as node:
            return [event async for event in node.events("run-1", after=999, timeout_s=0.2)]

    with pytest.raises(ComityError) as caught:
        asyncio.run(watch())
    assert caught.value.code is ErrorCode.TIMEOUT


def test_an_unknown_run_is_not_watched_for_ever(served: Any) -> None:
    with Node(served.home) as node, pytest.raises(ComityError) as caught:
        list(node.events("unknown"))
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_download_is_there_whole_or_not_at_all(served: Any, tmp_path: Path) -> None:
    target = tmp_path / "ledger.jsonl"
    with Node(served.home) as node:
        served.breaks = 1
        with pytest.raises(ComityError) as caught:
            node.export_ledger(target)
        assert caught.value.code is ErrorCode.UNAVAILABLE
        assert not [path for path in tmp_path.iterdir() if "ledger" in path.name]
        assert node.export_ledger(target) == target.stat().st_size == 23
    assert target.stat().st_mode & 0o777 == 0o600
