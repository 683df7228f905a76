"""How a negotiation is shown: to the nodes concerned as `negotiation.update`, to the operator over REST."""

from __future__ import annotations

from typing import Any

from comity.wire import canonical
from comity_coordinator.negotiation import model
from comity_coordinator.negotiation.states import OPEN, Ended, Leg, LegState, Negotiation, Phase, ended_json
from comity_policies.terms import difference

# After the agreement was final, a party may still withdraw: the legs stay FINALIZED, as they were.
WITHDRAWN = "WITHDRAWN"

# How the Dataspace Protocol 2025-1 calls the message that leads to each state of a contract negotiation (its section 4;
# no interoperability is claimed). `docs/governance.md` prints this table.
MESSAGES: dict[LegState, str] = {
    LegState.REQUESTED: "ContractRequestMessage",
    LegState.OFFERED: "ContractOfferMessage",
    LegState.ACCEPTED: "ContractNegotiationEventMessage (ACCEPTED)",
    LegState.AGREED: "ContractAgreementMessage",
    LegState.VERIFIED: "ContractAgreementVerificationMessage",
    LegState.FINALIZED: "ContractNegotiationEventMessage (FINALIZED)",
    LegState.TERMINATED: "ContractNegotiationTerminationMessage",
}


def update(negotiation: Negotiation, ended: Ended | None = None) -> dict[str, Any]:
    """Return the whole state as proposer and parties see it; `ended` if a final agreement was withdrawn from."""
    why = ended or negotiation.ended
    conflict = negotiation.conflict
    return {
        "proposal_id": negotiation.proposal_id,
        "revision": negotiation.revision,
        "state": state(negotiation, ended),
        "legs": [_leg(negotiation, leg) for _, leg in sorted(negotiation.legs.items())],
        "then": then(negotiation),
        "agreement": negotiation.agreement or None,
        "conflict": None if conflict is None else {"field": conflict[0], "organisations": conflict[1].split(",")},
        "ended": None if why is None else ended_json(why),
    }


def concerned(negotiation: Negotiation) -> list[str]:
    """Return who is told of a negotiation."""
    return sorted({negotiation.proposer, *negotiation.legs})


def state(negotiation: Negotiation, ended: Ended | None = None) -> str:
    """Return where a negotiation stands; `ended` if a final agreement was withdrawn from."""
    return WITHDRAWN if ended else str(negotiation.phase)


def then(negotiation: Negotiation) -> str:
    """Return what happens at `until` if nothing comes before: the model's own judgement, in words."""
    if negotiation.phase not in OPEN:
        return ""
    if negotiation.phase is Phase.VERIFIED:
        return "the coordinator puts the certificate on the ledger"
    after = model.step(negotiation, model.DeadlinePassed(), negotiation.until)
    if after.ended is not None:
        return f"it ends: {after.ended.detail}"
    left = sorted(org for org in negotiation.legs if _leaves(negotiation.legs[org], after.legs[org]))
    return f"it goes on without {', '.join(left)}" if left else "the parties are asked to sign"


def _leaves(before: Leg, after: Leg) -> bool:
    return after.state is LegState.TERMINATED and before.state is not LegState.TERMINATED


def _leg(negotiation: Negotiation, leg: Leg) -> dict[str, Any]:
    return {
        "org": leg.org,
        "required": leg.required,
        "state": str(leg.state),
        "message": MESSAGES[leg.state],
        "since": leg.since,
        "until": negotiation.until,
        "move": leg.move,
        "reasons": [reason.to_json() for reason in leg.reasons],
        "difference": difference(negotiation.terms, leg.terms),
    }


def ended_text(ended: Ended) -> str:
    """Return how an agreement was withdrawn from, as the store keeps it."""
    return canonical.canonical(ended_json(ended)).decode()
