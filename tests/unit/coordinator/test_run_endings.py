"""A run that the coordinator ended still gets its manifest from its lead: once, and for the same ending only."""

from __future__ import annotations

from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.training import model
from comity_coordinator.training.model import Run, RunState

NOW, SOON, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z", "2026-01-01T00:01:00Z"


def running() -> Run:
    run = model.create("run-1", "ab" * 32, 1, "a", ("a", "b"), ("fit",), {}, 3600, NOW)
    for org in ("a", "b"):
        run = model.step(run, model.Ready(org), NOW)
    return model.step(run, model.Progressed("a", 1, 3), NOW)


def finished(**changes: Any) -> model.Finished:
    values = {"org": "a", "state": RunState.CANCELLED, "code": "WITHDRAWN", "detail": "", "rounds": 1,
              "digest": "cd" * 32, "expected": {"a": 1, "b": 1}, "exact": True}  # fmt: skip
    return model.Finished(**{**values, **changes})


WITHDREW = model.Cancelled(ErrorCode.WITHDRAWN, "b withdrew: no", "b")


def test_the_leads_manifest_is_taken_after_a_withdrawal() -> None:
    ended = model.step(running(), WITHDREW, NOW)
    assert (ended.state, ended.finished, ended.closed) == (RunState.CANCELLED, "", False)
    after = model.step(ended, finished(), SOON)
    assert (after.state, after.finished, after.rounds) == (RunState.CANCELLED, "cd" * 32, 1)
    assert (after.code, after.detail, after.move, after.since) == ("WITHDRAWN", "b withdrew: no", "b", NOW)
    assert model.step(after, finished(), SOON) is after
    with pytest.raises(ComityError, match="otherwise"):
        model.step(after, finished(digest="ef" * 32), SOON)
    for org in ("a", "b"):
        after = model.step(after, model.Received(org, 1), SOON)
    assert after.closed


@pytest.mark.parametrize("state", [RunState.COMPLETED, RunState.FAILED])
def test_another_ending_than_the_coordinators_is_not_taken(state: RunState) -> None:
    ended = model.step(running(), WITHDREW, NOW)
    assert model.step(ended, finished(state=state), SOON) is ended


def test_after_a_deadline_the_lead_says_failed() -> None:
    ended = model.step(running(), model.DeadlinePassed(), "2026-01-01T01:00:00Z")
    assert (ended.state, ended.code) == (RunState.FAILED, "TIMEOUT")
    after = model.step(ended, finished(state=RunState.FAILED), "2026-01-01T01:00:01Z")
    assert after.finished


def test_nobody_waits_long_for_a_lead_that_is_gone() -> None:
    ended = model.step(running(), WITHDREW, NOW)
    closed = model.step(ended, model.DeadlinePassed(), LATE)
    assert (closed.closed, closed.finished) == (True, "")
    assert model.step(closed, finished(), LATE) is closed


def test_a_run_that_never_began_is_closed_soon() -> None:
    run = model.create("run-1", "ab" * 32, 1, "a", ("a", "b"), ("fit",), {}, 3600, NOW)
    ended = model.step(run, WITHDREW, NOW)
    assert model.step(ended, model.DeadlinePassed(), SOON).closed
