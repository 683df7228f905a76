"""What one machine has seen of a masked sum, and whether it fits together. All three machines judge by this.

Rules of `frame.transcript`. Besides:
1. Until the set of commitments is signed by all, anybody's absence or `Abort` ends the session. From then on, up to
   k = len(members) - needed members may be lost (`MaskedOffer.spare`, always fewer than a third).
2. One list of the dropped per session: a second one is refused, so that nobody reveals two kinds of shares of a party.
"""

from __future__ import annotations

from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.events import Failed
from comity_crypto.secagg.frame.messages import (
    Abort,
    Commitment,
    CommitmentsSignature,
    RosterSignature,
)
from comity_crypto.secagg.frame.record import gave_up
from comity_crypto.secagg.frame.transcript import Transcript
from comity_crypto.secagg.masked.keys import Place
from comity_crypto.secagg.masked.messages import (
    MaskedKeys,
    MaskedNotice,
    MaskedOffer,
    MaskedReady,
    NoticeSignature,
    Reveal,
    RoundBoxes,
    needed,
)


@dataclass(frozen=True)
class MaskedTranscript(Transcript[MaskedOffer, MaskedNotice]):
    """The frame's record with a list of the dropped."""

    ANNOUNCEMENT = MaskedReady
    NOTICE = MaskedNotice
    PARTY_KINDS = (
        MaskedReady,
        RosterSignature,
        MaskedKeys,
        Commitment,
        CommitmentsSignature,
        NoticeSignature,
        Reveal,
        Abort,
    )
    LEAD_KINDS = (RoundBoxes, Abort)

    def notice_of(self, aggregate: str, size_bytes: int, dropped: tuple[str, ...]) -> MaskedNotice:
        """Return what the coordinator says of its sum."""
        roster, commitments = self.roster_digest, self.commitments_digest
        return MaskedNotice(self.offer.digest, roster, commitments, aggregate, size_bytes, dropped)

    @property
    def place(self) -> Place:
        """What keys and boxes of this session are bound to; of meaning once there is a roster."""
        return Place(self.offer.digest, self.roster_digest)

    @property
    def needed(self) -> int:
        """How many members must stay, sign and reveal."""
        return needed(len(self.members), self.offer.spare)

    @property
    def shares_needed(self) -> int:
        """How many shares give a secret; a member holds none of its own, so with nobody to spare all others' do."""
        return min(self.needed, len(self.members) - 1)

    @property
    def survivors(self) -> tuple[str, ...]:
        """The members whose uploads are in the aggregate; nobody before the notice."""
        if self.notice is None:
            return ()
        return tuple(org for org in self.members if org not in self.notice.dropped)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The members whose uploads are not in the aggregate; nobody before the notice."""
        return self.notice.dropped if self.notice else ()

    def lost(self) -> tuple[str, ...]:
        """Return the members that are in no list of survivors any more: dropped, or gave up."""
        return tuple(org for org in self.members if org in self.dropped or self.get(Abort, org) is not None)

    def over(self) -> Failed | None:
        """Raise why the session cannot go on: rule 1, and a lead that says two things; one party's word is not enough.

        Raises:
            ComityError: `ROSTER_MISMATCH`, the code of the party that gave up, `UNAVAILABLE` (too few are left).
        """
        if self.split:
            super().over()
        # As a party the lead may be lost like any other; but nobody else opens the sum.
        given_up = sorted(self.aborts(), key=lambda each: each[0] != self.offer.lead)
        if not given_up:
            return None
        org, said = given_up[0]
        if org == self.offer.lead or not self.set_signed():
            raise gave_up(org, said)
        if len(self.members) - len(self.lost()) < self.needed:
            raise ComityError(ErrorCode.UNAVAILABLE, "too few parties are left", org=org, needed=self.needed)
        return None

    def keyed(self) -> bool:
        """Whether every member's keys are there, for exactly this roster. Raises `ROSTER_MISMATCH`."""
        if not (super().keyed() and self._complete(MaskedKeys)):
            return False
        for org in self.members:
            said = self.said(MaskedKeys, org)
            others = tuple(each for each in self.members if each != org)
            later = tuple(each for each in others if each > org)
            given = (said.deals, said.root_digests, said.seed_digests)
            if _names(said.seeds) != later or any(_names(each) != others for each in given):
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party dealt for another roster", org=org)
        return True

    def round_boxes(self) -> RoundBoxes | None:
        """Return the lead's boxes with the round's secret, once they are there. Raises `ROSTER_MISMATCH`."""
        said = self.get(RoundBoxes, self.offer.lead)
        if said is not None and self.roster is not None:
            if (said.roster, _names(said.boxes)) != (self.roster.digest, self.members):
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "the lead sealed the secret for another roster")
            return said
        return None

    def published(self) -> bool:
        """Whether there is a list that the rule permits, of exactly this set. Raises `SUM_MISMATCH`, ..._TOO_FEW."""
        if not super().published():
            return False
        if not set(self.dropped) <= set(self.members):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the list of the dropped names strangers")
        if len(self.survivors) < max(self.needed, self.offer.minimum):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "too many parties dropped out", n=len(self.survivors))
        return True

    def list_signed(self) -> bool:
        """Whether enough survivors signed this list: more than two thirds of the roster. Others' lists do not count."""
        if not self.published() or self.notice is None:
            return False
        return len(self.survivors) - len(self.unsigned()) >= self.needed

    def unsigned(self) -> tuple[str, ...]:
        """Return the survivors that did not sign this list: nothing, or another one."""
        digest = self.notice.digest if self.notice else ""
        found = {org: self.get(NoticeSignature, org) for org in self.survivors}
        return tuple(org for org, said in found.items() if said is None or said.notice != digest)


def _names(pairs: tuple[tuple[str, bytes | str], ...]) -> tuple[str, ...]:
    return tuple(org for org, _ in pairs)
