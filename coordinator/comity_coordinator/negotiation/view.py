"""How a negotiation is shown: to the nodes concerned as `negotiation.update`, to the operator over REST."""

from __future__ import annotations

from typing import Any

from comity.wire import canonical
from comity_coordinator.negotiation.states import Ended, Negotiation, ended_json

# After the agreement was final, a party may still withdraw: the legs stay FINALIZED, as they were.
WITHDRAWN = "WITHDRAWN"


def update(negotiation: Negotiation, ended: Ended | None = None) -> dict[str, Any]:
    """Return the whole state as proposer and parties see it; `ended` if a final agreement was withdrawn from."""
    why = ended or negotiation.ended
    conflict = negotiation.conflict
    return {
        "proposal_id": negotiation.proposal_id,
        "revision": negotiation.revision,
        "state": WITHDRAWN if ended else str(negotiation.phase),
        "legs": [
            {
                "org": leg.org,
                "required": leg.required,
                "state": str(leg.state),
                "since": leg.since,
                "until": negotiation.until,
                "move": leg.move,
                "reasons": [reason.to_json() for reason in leg.reasons],
            }
            for _, leg in sorted(negotiation.legs.items())
        ],
        "agreement": negotiation.agreement or None,
        "conflict": None if conflict is None else {"field": conflict[0], "organisations": conflict[1].split(",")},
        "ended": None if why is None else ended_json(why),
    }


def ended_text(ended: Ended) -> str:
    """Return how an agreement was withdrawn from, as the store keeps it."""
    return canonical.canonical(ended_json(ended)).decode()
