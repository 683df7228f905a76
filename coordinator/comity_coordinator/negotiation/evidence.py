"""A party's evidence in a negotiation under `attestation: required`: before signatures, once for each draft."""

from __future__ import annotations

from dataclasses import replace

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.negotiation.moves import with_moves
from comity_coordinator.negotiation.states import Evidenced, LegState, Negotiation, Phase


def evidenced(negotiation: Negotiation, event: Evidenced, now: str) -> Negotiation:
    """Return the negotiation after a party showed its evidence; the same object if it did so before.

    Raises:
        ComityError: `NOT_A_MEMBER`, `ILLEGAL_EVENT`, `AGREEMENT_INVALID`, `DEADLINE_PASSED`; `CONFLICT` if it showed
            another one for this agreement.
    """
    leg = negotiation.legs.get(event.org)
    if leg is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{event.org} is not asked by this proposal")
    if leg.evidence == event.digest:
        return negotiation
    if negotiation.phase is not Phase.SIGNING or leg.state is not LegState.ACCEPTED:
        raise ComityError(ErrorCode.ILLEGAL_EVENT, f"the leg of {event.org} is {leg.state}")
    if negotiation.agreement != event.agreement:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, "another agreement is being signed", attempt=negotiation.attempt)
    if leg.evidence:
        raise ComityError(ErrorCode.CONFLICT, f"{event.org} showed other evidence for this agreement")
    if now > negotiation.until:
        raise ComityError(ErrorCode.DEADLINE_PASSED)
    shown = {**negotiation.legs, event.org: replace(leg, evidence=event.digest)}
    return with_moves(replace(negotiation, legs=shown))
