"""When a replica sends its nodes away: alone without the database, never when it is gone for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity_coordinator.replicas.model import Outlook
from comity_coordinator.replicas.service import BEAT_EVERY_S, LEASE_S, LOOK_EVERY_S

STEP_S = 0.25
GAP_S = BEAT_EVERY_S + 2 * LOOK_EVERY_S  # between two words of a replica that is well
UP = {"b": True}


def ages(outlook: Outlook, links: dict[str, bool], since_s: float, for_s: float = 4 * LEASE_S) -> float | None:
    """Look again and again; return after how many seconds nodes were sent away."""
    for step in range(int(for_s / STEP_S)):
        if outlook.look(since_s + step * STEP_S, links):
            return step * STEP_S
    return None


@given(st.floats(0, GAP_S))
def test_a_database_that_is_gone_for_all_moves_nobody(later_s: float) -> None:
    outlook = Outlook(LEASE_S)
    outlook.reached(0.0)
    outlook.other_reached("b", later_s)
    assert ages(outlook, UP, later_s) is None
    assert not outlook.away


@given(st.floats(0.1, GAP_S))
def test_a_replica_that_lost_it_alone_sends_its_nodes_away_once(every_s: float) -> None:
    outlook = Outlook(LEASE_S)
    outlook.reached(0.0)
    now, begun = 0.0, []
    while now < 3 * LEASE_S:
        now += every_s
        outlook.other_reached("b", now)
        begun += [now] if outlook.look(now, UP) else []
    (at,) = begun
    assert LEASE_S < at <= LEASE_S + 2 * every_s
    outlook.reached(now)
    assert not outlook.away


@pytest.mark.parametrize(("links", "moves"), [({}, False), ({"b": False}, True), ({"b": False, "c": True}, False)])
def test_who_is_cut_off_from_all_sends_them_away_and_who_is_alone_does_not(links: dict[str, bool], moves: bool) -> None:
    outlook = Outlook(LEASE_S)
    outlook.reached(0.0)
    assert (ages(outlook, links, 0.0) is not None) == moves


def test_what_was_said_by_a_replica_that_is_gone_counts_no_more() -> None:
    outlook = Outlook(LEASE_S)
    outlook.reached(0.0)
    outlook.look(0.0, {"c": True})
    outlook.other_reached("b", LEASE_S)
    assert not outlook.look(LEASE_S + STEP_S, {"c": True})
