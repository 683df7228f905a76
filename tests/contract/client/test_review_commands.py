"""`comity review …` against the node's real routes and reviews: what is shown, what is voted, what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import holder_of
from comity_client import cli
from comity_client.commands import reviews
from comity_crypto.keys import OrgKeys
from comity_node.access.model import LOCAL
from comity_node.access.rows import ROUTES
from comity_node.context import Services
from comity_node.journal import Journal
from comity_node.rest import LocalServer, build_api
from comity_node.reviews.api import router
from comity_node.reviews.model import ReviewAsk
from comity_node.reviews.service import ReviewService, build
from comity_policies.documents import Reason

TOKEN = "t" * 43
NASTY = "fine\x1b[2K\rapproved by everybody"


class Served:
    """A node's reviews behind its own socket, in a thread of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.journal = Journal.open(home / "journal.db")
        node: Any = SimpleNamespace(
            journal=self.journal, settings=SimpleNamespace(org="hospital-a", consortium="demo"),
            keys=OrgKeys.generate(), clock=instants.now, services=Services(), policy=None,
        )  # fmt: skip
        self.reviews: ReviewService = build(node)
        self.journal.create_all()
        (home / "api.token").write_text(TOKEN)
        self._node, self._up = node, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._up.wait(10)

    async def _serve(self) -> None:
        async def status() -> dict[str, Any]:
            return {}

        api = build_api(holder_of(TOKEN, LOCAL, "no"), [router(self._node)], status, ROUTES)
        self._server, self._loop = LocalServer(api, self.home / "api.sock"), asyncio.get_running_loop()
        serving = asyncio.create_task(self._server.run())
        await self._server.ready()
        self._up.set()
        await serving

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(10)
        self.journal.close()

    def ask(self, **changes: Any) -> ReviewAsk:
        values: dict[str, Any] = {
            "stage": "dispatch",
            "subject": "ab" * 32,
            "title": "run triage in run-1",
            "document": {"asks": "may it run?", "datasets": [{"columns": ["age", NASTY]}], "rounds": 3, "none": []},
            "reasons": (Reason("own.look", "LOOK", "look at it"),),
            "role": "reviewer",
            "approvals": 1,
            "until": instants.to_text(instants.now() + timedelta(days=1)),
        }
        item = ReviewAsk(**{**values, **changes})
        self.journal.transact(lambda conn: self.reviews.ask(conn, item))
        return item


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@pytest.fixture
def run(served: Served) -> Callable[..., str]:
    app = typer.Typer()
    cli.register(app)

    def call(*words: str) -> str:
        done = CliRunner().invoke(app, ["review", *words, "--home", str(served.home)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return str(done.stdout)

    return call


def refusal(act: Callable[..., Any], *words: str) -> ErrorCode:
    with pytest.raises(ComityError) as caught:
        act(*words)
    return caught.value.code


def test_what_waits_is_listed_and_shown_whole_and_harmless(served: Served, run: Callable[..., str]) -> None:
    assert "nothing waits" in run("list")
    item = served.ask()
    line = json.loads(run("list", "--json"))[0]
    assert (line["id"], line["yours"], line["missing"]) == (item.id, True, 1)
    text = run("show", item.id)
    assert "\x1b" not in text
    assert "\r" not in text
    for part in (
        "may it run?",
        "age",
        "rounds: 3",
        "none: []",
        item.document_digest,
        "own.look: look at it",
        item.until,
    ):
        assert part in text
    assert json.loads(run("show", item.id, "--json"))["document"] == item.document


def test_a_vote_by_id_decides_what_was_shown(served: Served, run: Callable[..., str]) -> None:
    item = served.ask()
    assert "approved" in run("approve", item.id, "--reason", "read it")
    after = json.loads(run("show", item.id, "--json"))
    assert [(vote["user"], vote["reason"]) for vote in after["votes"]] == [("local", "read it")]
    assert "ended" in run("show", item.id)
    assert json.loads(run("list", "--json")) == []
    assert [each["state"] for each in json.loads(run("list", "--all", "--json"))] == ["APPROVED"]
    assert refusal(run, "deny", item.id, "--reason", "late") is ErrorCode.ILLEGAL_EVENT
    other = served.ask(subject="cd" * 32)
    assert json.loads(run("deny", other.id, "--reason", "no", "--json"))["state"] == "DENIED"
    assert refusal(run, "approve", "rev-0123") is ErrorCode.NOT_FOUND


def test_a_node_that_shows_another_document_gets_no_vote(
    served: Served, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    item = served.ask()
    from comity_node.reviews import api

    whole = api.line_of
    monkeypatch.setattr(api, "line_of", lambda review, yours: {**whole(review, yours=yours), "subject": "cd" * 32})
    assert refusal(run, "approve", item.id) is ErrorCode.CONFLICT
    assert json.loads(run("list", "--json"))[0]["missing"] == 1


def test_voices_are_lent_and_taken_back(run: Callable[..., str]) -> None:
    made = json.loads(run("delegate", "--to", "carla", "--until", "14d", "--json"))
    assert (made["giver"], made["receiver"], made["role"]) == ("local", "carla", "reviewer")
    assert "carla" in run("delegations")
    assert json.loads(run("delegations", "--end", made["id"], "--json"))[0]["ended_at"]
    assert "everybody decides alone" in run("delegations")
    assert refusal(run, "delegate", "--to", "carla", "--until", "soon") is ErrorCode.MALFORMED
    assert refusal(run, "delegate", "--to", "carla", "--until", "900d") is ErrorCode.MALFORMED


plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 10**6) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list) and value:
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def items(value: Any) -> int:
    """Every key of an object and every element of a list, at any depth."""
    inner = value.values() if isinstance(value, dict) else value
    return sum(1 + (items(each) if isinstance(each, dict | list) else 0) for each in inner)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=6), plain, max_size=4))
def test_every_value_of_a_document_is_printed_on_its_line(document: dict[str, Any]) -> None:
    lines = list(reviews.document_lines(document))
    assert all(line.isprintable() for line in lines)
    assert len(lines) == items(document)
    texts = [reviews.visible(each) if isinstance(each, str) else json.dumps(each) for each in leaves(document)]
    assert not document or all(any(line.endswith(f": {text}") for line in lines) for text in texts)
