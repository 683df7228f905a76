"""Open charter proposals in `comity status`: whose vote is awaited, until when, what happens then."""

from __future__ import annotations

from typing import Any

from comity_client.follow import charter_waits

OPEN: dict[str, Any] = {
    "name": "abcd-efgh",
    "digest": "0a" * 32,
    "kinds": ["admit-member"],
    "proposer": "hospital-a",
    "proposed_at": "2029-01-01T00:00:00Z",
    "deadline": "2029-01-08T00:00:00Z",
    "state": "OPEN",
    "awaited": ["hospital-b", "hospital-c"],
    "then": "at the deadline it ends",
}


def test_an_open_proposal_names_whose_vote_is_awaited() -> None:
    state: Any = {"charter_proposals": [OPEN, {**OPEN, "state": "CARRIED", "awaited": []}]}
    waits = charter_waits(state)
    assert [(each.state, each.awaited) for each in waits] == [
        ("OPEN", ("hospital-b", "hospital-c")),
        ("CARRIED", ("coordinator",)),
    ]
    assert (waits[0].since, waits[0].until) == ("2029-01-01T00:00:00Z", "2029-01-08T00:00:00Z")
    assert "comity charter show abcd-efgh" in waits[0].then


def test_nothing_is_proposed() -> None:
    state: Any = {}
    assert charter_waits(state) == []
