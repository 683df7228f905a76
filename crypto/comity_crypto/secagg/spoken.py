"""All messages that secure sums speak on the wire, whatever their profile: for those who relay and route them."""

from __future__ import annotations

from typing import Any, TypeAlias

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body
from comity_crypto.secagg.lead_key.messages import BODIES, Offer
from comity_crypto.secagg.masked.messages import MASKED_BODIES, MaskedOffer
from comity_crypto.secagg.threshold.messages import THRESHOLD_BODIES

AnyOffer: TypeAlias = Offer | MaskedOffer


def parse_spoken(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    found = BODIES.get(kind) or MASKED_BODIES.get(kind) or THRESHOLD_BODIES.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a secure sum")
    return found.from_json(body)
