"""Whatever the clock does and wherever the process dies: nothing goes early, all that is due goes, each run once."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import sign_statement
from comity_node.journal import Journal
from comity_node.retention import service as retention
from comity_node.retention import store
from comity_node.retention.service import RetentionService
from comity_node.training import store as training
from comity_node.training.tables import COMPLETED, ResultRow, RunRow
from comity_policies.deletions import Deletion

KEYS = OrgKeys.generate()
BEGIN = instants.parse("2026-11-23T00:00:00Z")
SPANS_S = (0, 60, 3_600, None)


class Node:
    """As much of a node as retention asks for: a journal, folders, a clock moved by hand, and a link that dies."""

    def __init__(self, home: Path) -> None:
        self.settings = SimpleNamespace(
            org="a", consortium="demo", results_folder=home / "results", payloads_folder=home / "payloads"
        )
        for folder in (self.settings.results_folder, self.settings.payloads_folder):
            folder.mkdir()
        self.journal = Journal.open(home / "journal.db")
        self.journal.create_all()
        self.keys = KEYS
        self.now = BEGIN
        self.sent: list[Deletion] = []
        self.dies = False
        self.link = self
        self.ledger = SimpleNamespace(included=lambda conn, digests: 0)
        self.spans = {f"{number:064x}": span_s for number, span_s in enumerate(SPANS_S)}
        for number, agreement in enumerate(self.spans):
            self.put(f"run-{number}", agreement)

    def clock(self):
        return self.now

    def send(self, conn, kind, body, *, run):
        if self.dies:
            raise OSError("the process dies in the middle")
        self.sent.append(Deletion.from_json(body.body))

    def find(self, conn, digest):
        terms = {} if self.spans[digest] is None else {"retention_s": self.spans[digest]}
        return SimpleNamespace(agreement=SimpleNamespace(terms=terms))

    def put(self, run: str, agreement: str) -> None:
        folder = self.settings.results_folder / run / "sums" / "000001"
        folder.mkdir(parents=True)
        for path in (folder / "card.json", folder.parent.parent / "content.bin"):
            path.write_text("secret")
        (self.settings.payloads_folder / f"{run}.sealed").write_text("sealed")
        body = {"run": run, "content_digest": "ab" * 32}
        said = sign_statement(KEYS, kind="result", consortium="demo", issuer="a", body=body).to_bytes()
        at = instants.to_text(BEGIN)

        def write(conn):
            training.put_run(conn, RunRow(run, agreement, "a", "[]", COMPLETED, at, at, None, '{"loss": 1}', True))
            training.put_result(conn, ResultRow(run, agreement, said, f"{run}.sealed", b"sealed", at), ("b",))
            training.put_event(conn, run, at, "round", json.dumps({"loss": 1}))
            training.put_event(conn, run, at, "closed", "{}")

        self.journal.transact(write)

    def has(self, run: str) -> bool:
        return (self.settings.results_folder / run).exists()


def step(node: Node, dies: bool) -> None:
    node.dies = dies
    try:
        asyncio.run(RetentionService(node, node).run())
    except (ComityError, OSError):
        pass
    finally:
        node.dies = False


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(-4_000, 4_000), st.booleans()), min_size=1, max_size=5))
def test_nothing_goes_early_and_all_that_is_due_goes_once(moves) -> None:
    with TemporaryDirectory() as folder:
        node = Node(Path(folder))
        latest = BEGIN
        for moved_s, dies in moves:
            node.now += timedelta(seconds=moved_s)
            before = {run: node.has(run) for run in ("run-0", "run-1", "run-2")}
            back, latest = node.now < latest, max(latest, node.now)
            step(node, dies)
            for number, run in enumerate(before):
                due = node.now >= BEGIN + timedelta(seconds=SPANS_S[number])
                if before[run] and not node.has(run):
                    assert due, "it went early"
                    assert not back, "it went while the clock was behind what it had shown"
                if due and not back and not dies:
                    assert not node.has(run)
        node.now = latest + timedelta(days=1)
        step(node, False)
        assert sorted(each.run for each in node.sent) == ["run-0", "run-1", "run-2"]
        assert all(each.counts == {"results": 2, "payloads": 1, "events": 1} for each in node.sent)
        assert node.has("run-3"), "no time was agreed on"
        node.journal.close()


async def test_what_is_left_names_digests_and_no_data(tmp_path) -> None:
    node = Node(tmp_path)
    service = RetentionService(node, node)
    assert [(each.run, each.due_at) for each in await service.waiting()] == [
        ("run-0", "2026-11-23T00:00:00Z"),
        ("run-1", "2026-11-23T00:01:00Z"),
        ("run-2", "2026-11-23T01:00:00Z"),
    ]
    assert [each["due"] for each in (await service.describe())["waiting"]] == [True, False, False]
    node.now += timedelta(seconds=60)
    assert [each.run for each in await service.run()] == ["run-0", "run-1"]
    assert await service.run() == []
    assert sorted(path.name for path in node.settings.payloads_folder.iterdir()) == ["run-2.sealed", "run-3.sealed"]
    assert node.sent[0].digests == ("ab" * 32,)

    def read(conn):
        return (
            training.find_run(conn, "run-0").result,
            [row[2] for row in training.list_events(conn, "run-0", 0, 10)],
            [row.run for row, _ in training.unconfirmed_results(conn)],
            store.is_dropped(conn, "run-0"),
            store.is_dropped(conn, "run-2"),
        )

    assert node.journal.transact(read) == (None, ["closed"], ["run-2", "run-3"], True, False)
    node.now -= timedelta(seconds=30)
    with pytest.raises(ComityError, match="clock was put back"):
        await service.run()
    assert (await service.describe())["clock_back"]
    node.journal.close()


def test_the_span_is_bounded() -> None:
    assert instants.to_text(BEGIN + timedelta(seconds=retention.SPAN_S_MAX)).startswith("203")
