"""All messages that secure sums speak on the wire, whatever their profile: for those who relay and route them."""

from __future__ import annotations

from typing import Any, TypeAlias

from comity_crypto.secagg.frame.body import Body, parse
from comity_crypto.secagg.lead_key.messages import Offer
from comity_crypto.secagg.masked.messages import MASKED_BODIES, MaskedOffer
from comity_crypto.secagg.threshold.messages import THRESHOLD_BODIES

AnyOffer: TypeAlias = Offer | MaskedOffer
_SPOKEN = MASKED_BODIES | THRESHOLD_BODIES


def parse_spoken(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    return parse(_SPOKEN, kind, body)
