"""Whose move it is, on every leg of a negotiation."""

from __future__ import annotations

from dataclasses import replace

from comity_coordinator.negotiation.states import COORDINATOR_MOVE, Leg, LegState, Negotiation, Phase


def with_moves(negotiation: Negotiation) -> Negotiation:
    """Say on every living leg whose move it is."""
    legs = negotiation.legs.values()
    mine = {LegState.REQUESTED} if negotiation.phase is Phase.ANSWERING else {LegState.ACCEPTED}
    awaited = {leg.org for leg in legs if leg.state in mine}
    if any(leg.state is LegState.OFFERED for leg in legs):
        awaited.add(negotiation.proposer)
    others = ",".join(sorted(awaited))

    def move(leg: Leg) -> str:
        if leg.state in mine:
            return leg.org
        if leg.state is LegState.OFFERED:
            return negotiation.proposer
        if leg.state in (LegState.ACCEPTED, LegState.AGREED):
            return others
        if leg.state is LegState.VERIFIED:
            return COORDINATOR_MOVE
        return leg.move if leg.state is LegState.TERMINATED else ""

    return replace(negotiation, legs={leg.org: replace(leg, move=move(leg)) for leg in legs})
