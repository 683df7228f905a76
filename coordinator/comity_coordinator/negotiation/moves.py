"""Whose move it is, on every leg of a negotiation."""

from __future__ import annotations

from dataclasses import replace

from comity_coordinator.negotiation.states import COORDINATOR_MOVE, Leg, LegState, Negotiation, Phase
from comity_policies.evidence import required


def lacking(negotiation: Negotiation) -> set[str]:
    """Return the parties whose evidence is missing before anybody can sign; nobody where the terms ask for none."""
    if negotiation.phase is not Phase.SIGNING or not required(negotiation.meet):
        return set()
    return {org for org, leg in negotiation.legs.items() if leg.state is LegState.ACCEPTED and not leg.evidence}


def with_moves(negotiation: Negotiation) -> Negotiation:
    """Say on every living leg whose move it is."""
    legs = negotiation.legs.values()
    mine = {LegState.REQUESTED} if negotiation.phase is Phase.ANSWERING else {LegState.ACCEPTED}
    awaited = lacking(negotiation) or {leg.org for leg in legs if leg.state in mine}
    if any(leg.state is LegState.OFFERED for leg in legs):
        awaited.add(negotiation.proposer)
    others = ",".join(sorted(awaited))

    def move(leg: Leg) -> str:
        if leg.state in mine and leg.org in awaited:
            return leg.org
        if leg.state is LegState.OFFERED:
            return negotiation.proposer
        if leg.state in (LegState.ACCEPTED, LegState.AGREED):
            return others
        if leg.state is LegState.VERIFIED:
            return COORDINATOR_MOVE
        return leg.move if leg.state is LegState.TERMINATED else ""

    return replace(negotiation, legs={leg.org: replace(leg, move=move(leg)) for leg in legs})
