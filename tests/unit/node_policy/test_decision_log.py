"""The decision log: off the critical path, bounded, and nothing is allowed that it cannot take."""

from __future__ import annotations

import asyncio
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_node.policy import log as logs
from comity_node.policy.log import DecisionLog
from comity_node.policy.recorded import RecordedPolicy, subject_of
from comity_node.policy.store import Bounds, DecisionStore, Row
from comity_node.settings import DecisionLogLimits
from comity_policies.access import Granted
from comity_policies.decisions import Decision, Reason, Stage, example
from comity_policies.terms import Terms

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Says:
    """A bundle that always says the same."""

    name = "says"
    bundle_digest = "0b" * 32

    def __init__(self, decision: Decision) -> None:
        self.decision = decision

    def decide(self, stage: Stage, document: dict[str, Any]) -> Decision:
        return self.decision

    def roles(self, document: dict[str, Any]) -> Granted:
        return Granted(frozenset({"admin"}))

    def close(self) -> None:
        """Nothing to release."""


DENIED = Decision("deny", (Reason("r", "C", "m"),))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[DecisionLog]:
    opened = DecisionLog(tmp_path / "decisions.db", DecisionLogLimits(), clock=lambda: NOW)
    yield opened
    opened.close()


@pytest.fixture
def policy(log: DecisionLog) -> Callable[..., RecordedPolicy]:
    def make(own: Decision, other: Decision | None = None) -> RecordedPolicy:
        return RecordedPolicy(Says(own), None if other is None else Says(other), log, clock=lambda: NOW)

    return make


def row(number: int = 1, at: str = "2030-01-01T00:00:00Z", **document: Any) -> Row:
    result = {**DENIED.to_json(), "layers": {}}
    return Row(at=at, stage="egress", subject=f"s-{number}", decision="deny", result=result, document=document)


async def test_every_decision_is_recorded_with_its_question(
    policy: Callable[..., RecordedPolicy], log: DecisionLog
) -> None:
    document = example(Stage.PROPOSAL)
    decided = policy(DENIED).decide(Stage.PROPOSAL, document)
    assert decided == DENIED
    (kept,) = await log.read(lambda store: store.about(document["proposal"]["proposal_id"]))
    assert (kept.id, kept.at, kept.stage, kept.decision) == ("dec-1", "2030-01-01T00:00:00Z", "proposal", "deny")
    assert kept.document == document
    assert kept.result == {**DENIED.to_json(), "layers": {"own": DENIED.to_json()}}


async def test_the_stricter_of_two_bundles_holds_and_both_are_recorded(
    policy: Callable[..., RecordedPolicy], log: DecisionLog
) -> None:
    allowed = Decision("allow", terms=Terms.parse({"rounds": 3}))
    assert policy(allowed, DENIED).decide(Stage.EGRESS, {}).decision == "deny"
    assert policy(DENIED, allowed).decide(Stage.EGRESS, {}).decision == "deny"
    both = policy(allowed, Decision("allow", terms=Terms.parse({"rounds": 2, "uses": 1}))).decide(Stage.EGRESS, {})
    assert both.terms == Terms.parse({"rounds": 2, "uses": 1})
    kept = await log.read(lambda store: store.newest(limit=3))
    assert [each.decision for each in kept] == ["allow", "deny", "deny"]
    assert kept[1].result["layers"]["consortium"]["decision"] == "allow"


def test_roles_are_our_own_policy_alone(policy: Callable[..., RecordedPolicy]) -> None:
    assert policy(DENIED, DENIED).roles({}).roles == {"admin"}


async def test_pages_and_filters(log: DecisionLog) -> None:
    for number in range(1, 8):
        log.put(partial(row, number))
    assert [each.seq for each in await log.read(lambda store: store.newest(limit=3))] == [7, 6, 5]
    assert [each.seq for each in await log.read(lambda store: store.newest(before=5, limit=3))] == [4, 3, 2]
    assert await log.read(lambda store: store.newest(stage="dispatch")) == []
    assert await log.read(lambda store: store.newest(decision="allow")) == []
    with pytest.raises(ComityError, match="NOT_FOUND"):
        await log.read(lambda store: store.find(99))


def test_rows_age_and_size_are_bounded(tmp_path: Path) -> None:
    store = DecisionStore(tmp_path / "d.db", Bounds(rows_max=10, size_bytes_max=1 << 30))
    store.add([row(number) for number in range(25)])
    assert [each.seq for each in store.newest()] == list(range(25, 15, -1))
    store.forget("2030-01-01T00:00:01Z")
    assert store.newest() == []
    small = DecisionStore(tmp_path / "small.db", Bounds(rows_max=10_000, size_bytes_max=200_000))
    for _ in range(20):
        small.add([row(number, text=str(hash((number, time.time_ns()))) * 20) for number in range(50)])
    assert 0 < len(small.newest(limit=500)) < 1_000
    assert (tmp_path / "small.db").stat().st_size < 600_000
    assert stat.S_IMODE((tmp_path / "d.db").stat().st_mode) == 0o600


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    store = DecisionStore(tmp_path / "d.db", Bounds(rows_max=10, size_bytes_max=1 << 30))
    store.add([row()])
    store.forget("2031-01-01T00:00:00Z")
    store.add([row()])
    assert store.newest()[0].seq == 2


def test_what_cannot_be_written_as_json_does_not_stop_the_log(tmp_path: Path) -> None:
    store = DecisionStore(tmp_path / "d.db", Bounds(rows_max=10, size_bytes_max=1 << 30))
    store.add([row(odd=object()), row(odd="fine")])
    assert [each.document for each in store.newest()] == [{"odd": "fine"}, {"unreadable": True}]


def test_deciding_does_not_wait_for_the_disk(log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    add = DecisionStore.add

    def slow(self: DecisionStore, rows: Any) -> None:
        release.wait(5)
        add(self, rows)

    monkeypatch.setattr(DecisionStore, "add", slow)
    started = time.perf_counter()
    for number in range(200):
        log.put(partial(row, number))
    assert time.perf_counter() - started < 0.2
    release.set()
    assert log.flush()


def test_what_cannot_be_recorded_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUE_MAX", 2)
    monkeypatch.setattr(logs, "RETRY_S", 0.01)
    monkeypatch.setattr(logs, "WAIT_S", 0.01)
    monkeypatch.setattr(logs, "DELAY_S", 0.0)
    full = threading.Event()
    full.set()
    add = DecisionStore.add

    def disk(self: DecisionStore, rows: Any) -> None:
        if full.is_set():
            raise ComityError(ErrorCode.JOURNAL_UNWRITABLE, "full")
        add(self, rows)

    monkeypatch.setattr(DecisionStore, "add", disk)
    opened = DecisionLog(tmp_path / "decisions.db", DecisionLogLimits(), clock=lambda: NOW)
    asked = RecordedPolicy(Says(Decision("allow")), None, opened)
    answers = [asked.decide(Stage.EGRESS, {}) for _ in range(8)]
    assert answers[0].allowed
    assert (answers[-1].decision, answers[-1].reasons[0].code) == ("deny", "POLICY_UNAVAILABLE")
    full.clear()
    assert opened.flush()
    assert asked.decide(Stage.EGRESS, {}).allowed, "it goes on when the disk does"
    asked.close()
    assert not asked.decide(Stage.EGRESS, {}).allowed


async def test_it_is_kept_over_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        opened = DecisionLog(tmp_path / "decisions.db", DecisionLogLimits(), clock=lambda: NOW)
        opened.put(row)
        await asyncio.to_thread(opened.close)
    opened = DecisionLog(tmp_path / "decisions.db", DecisionLogLimits(), clock=lambda: NOW)
    assert [each.seq for each in await opened.read(lambda store: store.newest())] == [2, 1]
    opened.close()


def test_subjects() -> None:
    assert subject_of(example(Stage.PROPOSAL)) == "prop-0192f0c0a1b2c3d4e5f60718"
    assert subject_of(example(Stage.DISPATCH)) == "ab" * 32
    assert subject_of(example(Stage.MEMBERSHIP)) == "hospital-d"
    assert subject_of({"proposal": 1, "agreement": {"digest": 2}}) == ""


async def test_one_odd_document_does_not_end_the_log(log: DecisionLog) -> None:
    def odd() -> Row:
        raise TypeError("no document")

    log.put(odd)
    log.put(row)
    assert [each.seq for each in await log.read(lambda store: store.newest())] == [1]
