"""Who waits for whom, in words and in JSON."""

from __future__ import annotations

from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_client import follow


def leg(org: str, state: str, move: str = "", **more: Any) -> dict[str, Any]:
    base = {"org": org, "required": True, "state": state, "since": "2026-01-01T00:00:00Z"}
    return {**base, "until": "2026-01-02T00:00:00Z", "move": move, "reasons": [], **more}


def view(state: str | None, *legs: dict[str, Any], **news: Any) -> Any:
    told = None if state is None else {"state": state, "legs": list(legs), "agreement": None, "ended": None, **news}
    return {"proposal_id": "prop-1", "received_at": "2026-01-01T00:00:00Z", "deadline": "2026-01-03T00:00:00Z"} | {
        "news": told
    }


def test_open_work_says_who_since_when_until_when_and_what_then() -> None:
    asked = view("ANSWERING", leg("a", "ACCEPTED"), leg("b", "REQUESTED", "b"), leg("c", "OFFERED", "a,c"))
    run: Any = {"run": "run-1", "state": "PREPARING", "lead": "a", "prepared_at": "2026-01-01T00:00:00Z"}
    waits = follow.waits_of([asked], [{**run, "awaited": ["b"], "closed": False}])
    assert [each.awaited for each in waits] == [("a", "b", "c"), ("b",)]
    assert waits[0].since == "2026-01-01T00:00:00Z"
    assert waits[0].until == "2026-01-02T00:00:00Z"
    assert "required" in waits[0].then
    assert "ready" in waits[1].then
    assert waits[0].to_json()["awaited"] == ["a", "b", "c"]


def test_finished_work_waits_for_nobody() -> None:
    done: Any = {"run": "run-1", "state": "COMPLETED", "lead": "a", "closed": False}
    ended = [view("FINALIZED", leg("a", "FINALIZED")), view("TERMINATED", leg("a", "TERMINATED", "a"))]
    assert follow.waits_of(ended, [done]) == []


def test_a_proposal_without_news_waits_for_the_coordinator() -> None:
    assert follow.waits_of([view(None)], [])[0].awaited == ("coordinator",)


def test_an_ending_names_the_rule_and_the_move() -> None:
    reason = {"rule": "proposal.purpose", "code": "PURPOSE", "message": "purpose marketing is not supported"}
    ended = {"code": "POLICY_DENIED", "detail": "b denied it", "move": "b", "at": ""}
    news = view("TERMINATED", leg("b", "TERMINATED", "b", reasons=[reason]), ended=ended)["news"]
    said = follow.ending(news)
    assert "b says proposal.purpose: purpose marketing is not supported" in said
    assert "next move: b" in said
    assert follow.movers(news) == ("b",)
    assert follow.movers({**news, "ended": {**ended, "move": "a"}}) == ("a",), "the legs' former moves do not count"
    assert follow.refusals(news) == [{"org": "b", **reason}]


class Answers:
    """A node that answers with one view after the other, then with the last for ever."""

    def __init__(self, *views: Any) -> None:
        self._views = list(views)

    def proposal(self, _name: str) -> Any:
        return self._views.pop(0) if len(self._views) > 1 else self._views[0]

    def runs(self) -> Any:
        return self.proposal("")


def test_each_change_is_told_once() -> None:
    first, second = view("ANSWERING", leg("b", "REQUESTED", "b")), view("FINALIZED", leg("b", "FINALIZED"))
    told: list[str] = []
    node: Any = Answers(view(None), first, first, second)
    found = follow.negotiated(node, "prop-1", lambda news: told.append(news["state"]), 5, look_again_s=0)
    assert told == ["ANSWERING", "FINALIZED"]
    assert found is second


def test_waiting_has_an_end() -> None:
    node: Any = Answers(view("ANSWERING", leg("b", "REQUESTED", "b")))
    with pytest.raises(ComityError) as caught:
        follow.negotiated(node, "prop-1", lambda _: None, 0.01, look_again_s=0.005)
    assert caught.value.code is ErrorCode.TIMEOUT


def test_the_run_of_an_agreement_is_found() -> None:
    node: Any = Answers([], [{"run": "run-0", "agreement": "x"}], [{"run": "run-1", "agreement": "y"}])
    assert follow.run_of(node, "y", 5, look_again_s=0)["run"] == "run-1"


def test_events_of_any_kind_read_as_a_line() -> None:
    line = follow.event_line({"no": 3, "at": "x", "run": "r", "kind": "metrics", "round": 2, "metrics": {"loss": 0.5}})
    assert line == "metrics  round 2  metrics: loss 0.5000"
    assert follow.event_line({"kind": "state", "state": "RUNNING", "error": None}) == "state  state RUNNING"
    error = {"code": "REVIEW_NEEDED", "detail": "1 of the role reviewer awaited until noon", "facts": {"missing": 1}}
    line = follow.event_line({"kind": "waiting", "round": 1, "org": "hospital-b", "error": error})
    assert line == "waiting  round 1  org hospital-b  error REVIEW_NEEDED: 1 of the role reviewer awaited until noon"


def test_a_run_that_waits_for_people_says_for_whom_and_until_when() -> None:
    facts = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "missing": 1}
    error = {"code": "REVIEW_NEEDED", "detail": "1 of the role reviewer awaited", "facts": facts}
    run = {"run": "run-1", "state": "RUNNING", "lead": "a", "awaited": ["b"], "passing": {"b": error}, "closed": False}
    (wait,) = follow.waits_of([], [run])
    assert wait.awaited == ("b (REVIEW_NEEDED: 1 of the role reviewer awaited)",)
    assert (wait.since, wait.until) == (facts["since"], facts["until"])
    assert wait.then == "the lead goes on without it if the terms allow"
