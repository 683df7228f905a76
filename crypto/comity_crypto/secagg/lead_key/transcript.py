"""What one machine has seen of a sum of encrypted uploads, under `lead-key` and `threshold`."""

from __future__ import annotations

from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import Digest, check_digest, sum_digests
from comity_crypto.secagg.frame.messages import (
    Abort,
    Commitment,
    CommitmentsSignature,
    InSession,
    RosterSignature,
)
from comity_crypto.secagg.frame.transcript import Transcript
from comity_crypto.secagg.lead_key.messages import AggregateNotice, LinearDigest, MaskSeed, Offer, Ready


@dataclass(frozen=True)
class EncryptedTranscript(Transcript[Offer, AggregateNotice]):
    """The frame's record with linear digests."""

    ANNOUNCEMENT = Ready
    NOTICE = AggregateNotice
    PARTY_KINDS = (Ready, RosterSignature, MaskSeed, Commitment, CommitmentsSignature, LinearDigest, Abort)

    def summed(self, values: Digest | None) -> bool:
        """Whether all members' linear digests are there and add up to `values`, that of the aggregate, once known.

        Raises:
            ComityError: `SUM_MISMATCH` if a member saw another aggregate, or the sum is another one.
        """
        if self.notice is None or self.missing(LinearDigest):
            return False
        found = self.all_of(LinearDigest)
        for org, said in found.items():
            if said.notice != self.notice.digest:
                raise ComityError(ErrorCode.SUM_MISMATCH, "a party saw another aggregate", org=org)
        if values is None:
            return False
        if sum_digests(self.offer.parameter_set, [said.values for said in found.values()]) != values:
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is not the sum of the committed uploads")
        return True

    def _judge(self, message: InSession) -> None:
        if isinstance(message, LinearDigest):
            check_digest(self.offer.parameter_set, message.values)
