"""Profile `masked`: the lead opens sums of masked updates; neither it nor the coordinator opens a single one.

Rules: those of `lead_key`, without encryption. What it holds against, and how many may drop out: `masked_transcript`.
The coordinator adds vectors and does not learn their sum. A party that is lost after all have committed is done
without.
"""

from __future__ import annotations

from typing import Any

from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_node.training.profiles import sum_store
from comity_node.training.profiles.integer_form import EncodeIntegers
from comity_node.training.profiles.lead_key import LeadKeyProfile
from comity_node.training.profiles.masked_lead import MaskedCollector
from comity_node.training.profiles.masked_part import MaskedPart
from comity_node.training.profiles.plain import RESULT
from comity_node.training.profiles.sum_form import Encode, Plan
from comity_node.training.profiles.sum_lead import SumCollector
from comity_node.training.profiles.sum_part import Part


class MaskedProfile(LeadKeyProfile):
    """See the head of this module."""

    name = "masked"
    _part: type[Part] = MaskedPart
    _collector: type[SumCollector] = MaskedCollector
    _encode: Encode = staticmethod(masked_encoder.encode)
    _encode_integers: EncodeIntegers = staticmethod(masked_encoder.encode_integers)

    async def confirmed(self, order_digest: str, outcome: str = RESULT) -> None:
        """The lead has an answer to an order. A party that was away for the sum's end hears of it here first."""
        async with self._turn:
            part = self._parts.get(order_digest)
            if part is None and outcome == RESULT:
                await self._node.journal.run(lambda conn: sum_store.set_summed(conn, order_digest))
        if isinstance(part, MaskedPart) and part.missed(outcome):
            return  # its order ends now; the lead confirms that once more
        await super().confirmed(order_digest, outcome)

    async def _make(self, *given: Any, **named: Any) -> Part:
        part = await super()._make(*given, **named)
        if isinstance(part, MaskedPart) and part.row is not None and part.row.summed:
            part.missed(RESULT)
        return part

    async def _warm(self) -> None:
        """Nothing to start: masks need no worker processes."""

    def _size(self, fixed: Plan) -> int:
        return fixed.words
