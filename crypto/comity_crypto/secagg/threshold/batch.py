"""A finished ceremony as a holder keeps it: which keys it made, for whom, and which offers they serve.

1. A batch exists only of a ceremony whose transcript every holder signed.
2. An offer is taken up only with a key of a batch that this holder has, and with exactly the batch's holders, quorum,
   parameters and transcript; a lead that tells holders different things of one key is seen here.
3. That a key serves once is the keeper's to record, before anything is said under it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import read_hash
from comity_crypto.secagg.frame.machine import Over
from comity_crypto.secagg.threshold.ceremony import CeremonyState
from comity_crypto.secagg.threshold.messages import KeyPlan, ThresholdOffer


@dataclass(frozen=True)
class KeyBatch:
    """See the head of this module. `keys` are the ids of the packed public keys, in the batch's order."""

    plan: KeyPlan
    keys: tuple[str, ...]
    transcript: str

    @classmethod
    def of(cls, state: CeremonyState) -> KeyBatch:
        """Return the batch of a ceremony that ended well. Raises `INTERNAL` of any other."""
        if state.phase is not Over.DONE or len(state.keys) != state.plan.keys:
            raise ComityError(ErrorCode.INTERNAL, "the ceremony did not end well")
        return cls(state.plan, state.keys, state.transcript)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> KeyBatch:
        """Read what this holder has recorded."""
        keys = tuple(read_hash(key) for key in value["keys"])
        return cls(KeyPlan.from_json(value["plan"]), keys, read_hash(value["transcript"]))

    def to_json(self) -> dict[str, Any]:
        """Return the record's form."""
        return {"plan": self.plan.to_json(), "keys": list(self.keys), "transcript": self.transcript}

    def check_offer(self, offer: ThresholdOffer) -> int:
        """Return the place of the offer's key in the batch.

        Raises:
            ComityError: `ROSTER_MISMATCH` naming the field in which the offer is not the ceremony's.
        """
        plan = self.plan
        pairs = {
            "agreement": (offer.agreement, plan.agreement),
            "run": (offer.run, plan.run),
            "lead": (offer.lead, plan.lead),
            "ceremony": (offer.ceremony, plan.digest),
            "transcript": (offer.transcript, self.transcript),
            "holders": (offer.holders, plan.holders),
            "threshold": (offer.threshold, plan.threshold),
            "parameters": (offer.parameters_digest, plan.parameters_digest),
        }
        for name, (said, known) in pairs.items():
            if said != known:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer is not of this ceremony", field=name)
        if offer.key_id not in self.keys:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the ceremony made no such key", field="key_id")
        return self.keys.index(offer.key_id)
