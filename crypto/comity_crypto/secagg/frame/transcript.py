"""What one machine has seen of a round, and whether it fits together. All machines of all profiles judge by this.

1. Rules 1 and 2 of `record`; from the roster on only its members count.
2. A stage is complete when every member has said it and all say the same; a contradiction is `ROSTER_MISMATCH`.
3. A round has one roster and one notice: a second one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Self, TypeVar, cast

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Failed
from comity_crypto.secagg.frame.messages import (
    Announcement,
    Commitment,
    CommitmentsSignature,
    InSession,
    Notice,
    OnRoster,
    Roster,
    RosterSignature,
    RoundOffer,
    commitments_digest,
)
from comity_crypto.secagg.frame.record import Record

F = TypeVar("F", bound=RoundOffer)
N = TypeVar("N", bound=Notice)


@dataclass(frozen=True)
class Transcript(Record[F], Generic[F, N]):
    """Immutable record of one round."""

    ANNOUNCEMENT: ClassVar[type[Announcement]]
    NOTICE: ClassVar[type[Notice]]
    roster: Roster | None = None
    notice: N | None = None
    split: str = ""  # a party that was given another offer for the same place

    def with_roster(self, roster: Roster) -> Self:
        """Return the record with the coordinator's roster. Raises `ROSTER_MISMATCH`, `PARTICIPANTS_TOO_FEW`."""
        if roster.session != self.offer.digest or not set(roster.orgs) <= set(self.offer.parties):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster belongs to another session or names strangers")
        if len(roster.orgs) < self.offer.minimum:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "the roster is too short", n=len(roster.orgs))
        if self.roster is not None and self.roster != roster:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a round has one roster")
        return replace(self, roster=roster)

    def with_notice(self, notice: Notice) -> Self:
        """Return the record with the coordinator's aggregate. Raises `SUM_MISMATCH`: one per session."""
        if not isinstance(notice, self.NOTICE) or notice.session != self.offer.digest:
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate belongs to another session")
        if notice.size_bytes != self.offer.upload_bytes:
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate has another size")
        if self.notice is not None and self.notice != notice:
            raise ComityError(ErrorCode.SUM_MISMATCH, "a session has one aggregate")
        return replace(self, notice=cast(N, notice))  # it is a `NOTICE`

    @property
    def members(self) -> tuple[str, ...]:
        """The roster's members, or nobody before there is one."""
        return self.roster.orgs if self.roster else ()

    @property
    def speakers(self) -> tuple[str, ...]:
        """Whose word counts: the members', or the parties' while there is no roster."""
        return self.members or self.offer.parties

    @property
    def roster_digest(self) -> str:
        """H(R); of meaning once there is a roster."""
        return self.roster.digest if self.roster else ""

    @property
    def commitments(self) -> dict[str, Commitment]:
        """The members' commitments so far."""
        return self.all_of(Commitment) if self.roster else {}

    @property
    def commitments_digest(self) -> str:
        """Digest of the set; of meaning once `committed`."""
        return commitments_digest(self.offer.digest, self.roster_digest, self.commitments)

    def notice_of(self, aggregate: str, size_bytes: int, dropped: tuple[str, ...]) -> Notice:
        """Return what the coordinator says of its sum; where all must be in it, `dropped` is nobody."""
        return self.NOTICE(self.offer.digest, self.roster_digest, self.commitments_digest, aggregate, size_bytes)

    def over(self) -> Failed | None:
        """Return why the round is over. Raises `ROSTER_MISMATCH` if parties were given different offers or orders."""
        if self.split:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the lead gave the parties different offers", org=self.split)
        return super().over()

    # -- stages, each with all before it

    def ready(self) -> bool:
        """Whether the roster stands and every member's announcement is the one it names. Raises `ROSTER_MISMATCH`."""
        if self.roster is None or self.missing(self.ANNOUNCEMENT):
            return False
        for org, digest in self.roster.members:
            said = self.said(self.ANNOUNCEMENT, org)
            if said.digest != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster names another announcement", org=org)
            if (said.key_id, said.order_digest) != (self.offer.key_id, self.offer.order_digest):
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party was given another key or order", org=org)
        return True

    def roster_signed(self) -> bool:
        """Whether every member signed this H(R). Raises `ROSTER_MISMATCH`."""
        return self.ready() and self._complete(RosterSignature)

    def keyed(self) -> bool:
        """Whether all is there that members need to commit by; where a profile asks for more, it says so."""
        return self.roster_signed()

    def committed(self) -> bool:
        """Whether every member committed. Raises `ROSTER_MISMATCH`, `CIPHERTEXT_INVALID` (size; a copied upload)."""
        if not (self.keyed() and self._complete(Commitment)):
            return False
        found = self.commitments
        for org, item in found.items():
            if item.size_bytes != self.offer.upload_bytes:
                raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "an upload has another size", org=org)
        if len({item.upload for item in found.values()}) != len(found):
            raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "two parties commit to the same upload")
        return True

    def set_signed(self) -> bool:
        """Whether every member signed this set of commitments. Raises `ROSTER_MISMATCH`."""
        if not (self.committed() and self._complete(CommitmentsSignature)):
            return False
        digest = self.commitments_digest
        for org in self.members:
            if self.said(CommitmentsSignature, org).commitments != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party saw other commitments", org=org)
        return True

    def published(self) -> bool:
        """Whether the aggregate of exactly this set is fixed. Raises `SUM_MISMATCH`."""
        if self.notice is None or not self.set_signed():
            return False
        if (self.notice.roster, self.notice.commitments) != (self.roster_digest, self.commitments_digest):
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is of another roster or of other uploads")
        return True

    def _complete(self, kind: type[OnRoster]) -> bool:
        if self.roster is None or self.missing(kind):
            return False
        for org in self.members:
            if self.said(kind, org).roster != self.roster.digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party stands on another roster", org=org)
        return True

    def _of_another_session(self, issuer: str, message: InSession) -> Self:
        """Keep the name of a party that announced itself to another offer for the same place."""
        if isinstance(message, Announcement) and message.place == self.offer.place:
            return replace(self, split=issuer)
        return super()._of_another_session(issuer, message)
