"""What one machine has seen of a session, and whether it fits together. All three machines judge by this.

1. One message of a kind per party: an identical one is ignored, a different one is refused (`CONFLICT`) and the first
   stands. Early messages are kept; order of arrival does not matter.
2. Only parties of the offer speak, and from the roster on only its members count.
3. `complete` asks a stage of every member and that all say the same; a contradiction is `ROSTER_MISMATCH`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.digests import check_digest
from comity_crypto.secagg.frame.messages import (
    Abort,
    Commitment,
    CommitmentsSignature,
    Roster,
    RosterSignature,
    commitments_digest,
)
from comity_crypto.secagg.lead_key.messages import AggregateNotice, Body, LinearDigest, MaskSeed, Offer, Ready

_T = TypeVar("_T", bound=Body)
_PARTY_KINDS = (Ready, RosterSignature, MaskSeed, Commitment, CommitmentsSignature, LinearDigest, Abort)


@dataclass(frozen=True)
class Transcript:
    """Immutable record of one session."""

    offer: Offer
    received: Mapping[tuple[str, str], Body] = field(default_factory=dict, repr=False)
    roster: Roster | None = None
    notice: AggregateNotice | None = None
    split: str = ""  # a party that was given another offer for the same place

    def absorb(self, issuer: str, message: Body) -> Transcript:
        """Return the record with a party's message.

        Raises:
            ComityError: `FORBIDDEN` (not a party, or not a party's message), `ROSTER_MISMATCH` (another session),
                `CONFLICT` (the party said something else before), `MALFORMED`.
        """
        if issuer not in self.offer.parties and not (issuer == self.offer.lead and isinstance(message, Abort)):
            raise ComityError(ErrorCode.FORBIDDEN, "not a party of this secure sum")
        if not isinstance(message, _PARTY_KINDS):
            raise ComityError(ErrorCode.FORBIDDEN, "not a message that a party sends")
        if message.session != self.offer.digest:
            if isinstance(message, Ready) and message.place == self.offer.place:
                return replace(self, split=issuer)
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")
        if isinstance(message, LinearDigest):
            check_digest(self.offer.parameter_set, message.values)
        before = self.received.get((message.KIND, issuer))
        if before is None:
            return replace(self, received={**self.received, (message.KIND, issuer): message})
        if before != message:
            raise ComityError(ErrorCode.CONFLICT, "the party has said something else before", kind=message.KIND)
        return self

    def with_roster(self, roster: Roster) -> Transcript:
        """Return the record with the coordinator's roster. Raises `ROSTER_MISMATCH`, `PARTICIPANTS_TOO_FEW`."""
        if roster.session != self.offer.digest or not set(roster.orgs) <= set(self.offer.parties):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster belongs to another session or names strangers")
        if len(roster.orgs) < self.offer.minimum:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "the roster is too short", n=len(roster.orgs))
        if self.roster is not None and self.roster != roster:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a round key has one roster")
        return replace(self, roster=roster)

    def with_notice(self, notice: AggregateNotice) -> Transcript:
        """Return the record with the coordinator's aggregate. Raises `SUM_MISMATCH`: one aggregate per session."""
        if notice.session != self.offer.digest or notice.size_bytes != self.offer.upload_bytes:
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate belongs to another session or has another size")
        if self.notice is not None and self.notice != notice:
            raise ComityError(ErrorCode.SUM_MISMATCH, "a session has one aggregate")
        return replace(self, notice=notice)

    @property
    def members(self) -> tuple[str, ...]:
        """The roster's members, or nobody before there is one."""
        return self.roster.orgs if self.roster else ()

    def get(self, kind: type[_T], org: str) -> _T | None:
        """Return what `org` said of this kind."""
        found = self.received.get((kind.KIND, org))
        return found if isinstance(found, kind) else None

    def missing(self, kind: type[Body]) -> tuple[str, ...]:
        """Return who has not sent this kind: of the members, or of the parties while there is no roster."""
        return tuple(org for org in self.members or self.offer.parties if self.get(kind, org) is None)

    def aborted(self) -> tuple[str, Abort] | None:
        """Return who gave the session up, if anyone did."""
        for org in sorted({*(self.members or self.offer.parties), self.offer.lead}):
            found = self.get(Abort, org)
            if found is not None:
                return org, found
        return None

    def check_split(self) -> None:
        """Raise `ROSTER_MISMATCH` if parties were given different offers or orders."""
        if self.split:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the lead gave the parties different offers", org=self.split)

    def ready(self) -> bool:
        """Whether the roster stands and every member's `Ready` is the one that it names. Raises `ROSTER_MISMATCH`."""
        if self.roster is None or self.missing(Ready):
            return False
        for org, digest in self.roster.members:
            said = self.get(Ready, org)
            if said is None or said.digest != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster names another announcement", org=org)
            if (said.key_id, said.order_digest) != (self.offer.key_id, self.offer.order_digest):
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party was given another key or order", org=org)
        return True

    def roster_signed(self) -> bool:
        """Whether every member signed this H(R). Raises `ROSTER_MISMATCH`."""
        return self.ready() and self._complete(RosterSignature)

    def committed(self) -> bool:
        """Whether every member committed. Raises `ROSTER_MISMATCH`, `CIPHERTEXT_INVALID` (size; a copied upload)."""
        if not (self.roster_signed() and self._complete(Commitment)):
            return False
        found = self.commitments
        for org, item in found.items():
            if item.size_bytes != self.offer.upload_bytes:
                raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "an upload has another size", org=org)
        if len({item.upload for item in found.values()}) != len(found):
            raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "two parties commit to the same upload")
        return True

    @property
    def commitments(self) -> dict[str, Commitment]:
        """The members' commitments so far."""
        found = ((org, self.get(Commitment, org)) for org in self.members)
        return {org: item for org, item in found if item is not None}

    @property
    def commitments_digest(self) -> str:
        """Digest of the set; of meaning once `committed`."""
        return commitments_digest(self.offer.digest, self.roster.digest if self.roster else "", self.commitments)

    def set_signed(self) -> bool:
        """Whether every member signed this set of commitments. Raises `ROSTER_MISMATCH`."""
        if not (self.committed() and self._complete(CommitmentsSignature)):
            return False
        digest = self.commitments_digest
        for org in self.members:
            said = self.get(CommitmentsSignature, org)
            if said is None or said.commitments != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party saw other commitments", org=org)
        return True

    def published(self) -> bool:
        """Whether the aggregate of exactly this set is fixed. Raises `SUM_MISMATCH`."""
        if self.notice is None or self.roster is None or not self.set_signed():
            return False
        if (self.notice.roster, self.notice.commitments) != (self.roster.digest, self.commitments_digest):
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is of another roster or of other uploads")
        return True

    def digests(self) -> list[tuple[int, ...]] | None:
        """Return all members' linear digests, or nothing yet. Raises `SUM_MISMATCH` if one saw another aggregate."""
        if self.notice is None or self.missing(LinearDigest):
            return None
        found = [self.get(LinearDigest, org) for org in self.members]
        for org, item in zip(self.members, found, strict=True):
            if item is None or item.notice != self.notice.digest:
                raise ComityError(ErrorCode.SUM_MISMATCH, "a party saw another aggregate", org=org)
        return [item.values for item in found if item is not None]

    def _complete(self, kind: type[RosterSignature | Commitment | CommitmentsSignature]) -> bool:
        if self.roster is None or self.missing(kind):
            return False
        for org in self.members:
            said = self.get(kind, org)
            if said is None or said.roster != self.roster.digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party stands on another roster", org=org)
        return True
