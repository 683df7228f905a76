"""What one machine has seen of a masked sum, and whether it fits together. All three machines judge by this.

1. One message of a kind per party: an identical one is ignored, a different one is refused (`CONFLICT`) and the first
   stands. Early messages are kept; order of arrival does not matter.
2. Only parties of the offer speak, and from the roster on only its members count.
3. Until the set of commitments is signed by all, anybody's absence or `Abort` ends the session. From then on, up to
   k = len(members) - needed members may be lost (`MaskedOffer.spare`, always fewer than a third).
4. One list of the dropped per session: a second one is refused, so that nobody reveals two kinds of shares of a party.

The sequence (`ALL` = all contributors, the lead's recipient, the coordinator's adder)

    lead                      coordinator                     each contributor (the lead's own, too)
     |-- MaskedOffer ----------->|------------------------------>| judges it against agreement, order, size
     |                           |<-- (a) MaskedReady ---------- | to ALL; round's secret by name, order, keys for boxes
     |                           |--- Roster ------------------->| to ALL; unsigned
     |                           |<-- (b) RosterSignature ------ | to ALL; at most one per round's secret
     |-- (c) RoundBoxes -------->|------------------------------>| to ALL; the round's secret, sealed to each member
     |                           |<-- (c) MaskedKeys ----------- | to ALL; sealed seeds of pairs, sealed shares
     |                           |                               | tag and masks over the values, once they are there
     |                           |<-- (c) Commitment ----------- | to ALL; hash of the upload
     |                           |<-- (d) CommitmentsSignature - | to ALL; the whole set
     |                           |<== upload =================== | after the journal holds the Release
     |<-- (e) MaskedNotice ------|--- MaskedNotice ------------->| to ALL; unsigned: who dropped out, the aggregate
     |                           |<-- (e) NoticeSignature ------ | to ALL; after the journal holds the Stand
     |                           |      signed by `needed` members, more than two thirds of the roster:
     |<-- (e) Reveal --------------------------------------------| to the lead, sealed; after the order's end is on disk
     |<== aggregate =============|                               |
     | masks taken away, check words and tag judged, decoded

What holds. With k to spare and n members, of which c are dishonest together with lead and coordinator:
    - c <= n - k - 1 that follow the protocol learn nothing of the others' updates beyond their sum;
    - c <= n - 2 k - 1 (at most n - 2) that do anything learn no more either: two lists need 2 (n - k) signatures, the
      honest sign one each, and so for every party one kind of share at most finds its quorum.
  So k = 0 holds against any n - 2, and nobody may be lost; each party to spare costs two that may be dishonest. The
  coordinator alone learns sizes, times and digests, neither updates nor their sum; with a contributor, who knows the
  round's secret, it still lacks the own masks' seeds, which are sealed to the lead.
  A contributor that lies about its own values within the range is not noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.messages import (
    Abort,
    Commitment,
    CommitmentsSignature,
    Roster,
    RosterSignature,
    commitments_digest,
)
from comity_crypto.secagg.lead_key.messages import Body
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

_T = TypeVar("_T", bound=Body)
_PARTY_KINDS = (
    MaskedReady,
    RosterSignature,
    MaskedKeys,
    Commitment,
    CommitmentsSignature,
    NoticeSignature,
    Reveal,
    Abort,
)
_LEAD_KINDS = (RoundBoxes, Abort)


@dataclass(frozen=True)
class MaskedTranscript:
    """Immutable record of one session."""

    offer: MaskedOffer
    received: Mapping[tuple[str, str], Body] = field(default_factory=dict, repr=False)
    roster: Roster | None = None
    notice: MaskedNotice | None = None
    split: str = ""  # a party that was given another offer for the same place

    def absorb(self, issuer: str, message: Body) -> MaskedTranscript:
        """Return the record with a party's message.

        Raises:
            ComityError: `FORBIDDEN` (not a party, or not a party's message), `ROSTER_MISMATCH` (another session),
                `CONFLICT` (the party said something else before).
        """
        allowed = (_PARTY_KINDS if issuer in self.offer.parties else ()) + (
            _LEAD_KINDS if issuer == self.offer.lead else ()
        )
        if not isinstance(message, allowed):
            raise ComityError(ErrorCode.FORBIDDEN, "not a party of this masked sum, or not its to say")
        if getattr(message, "session", "") != self.offer.digest:
            if isinstance(message, MaskedReady) and message.place == self.offer.place:
                return replace(self, split=issuer)
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")
        before = self.received.get((message.KIND, issuer))
        if before is None:
            return replace(self, received={**self.received, (message.KIND, issuer): message})
        if before != message:
            raise ComityError(ErrorCode.CONFLICT, "the party has said something else before", kind=message.KIND)
        return self

    def with_roster(self, roster: Roster) -> MaskedTranscript:
        """Return the record with the coordinator's roster. Raises `ROSTER_MISMATCH`, `PARTICIPANTS_TOO_FEW`."""
        if roster.session != self.offer.digest or not set(roster.orgs) <= set(self.offer.parties):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster belongs to another session or names strangers")
        if len(roster.orgs) < self.offer.minimum:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "the roster is too short", n=len(roster.orgs))
        if self.roster is not None and self.roster != roster:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a round's secret has one roster")
        return replace(self, roster=roster)

    def with_notice(self, notice: MaskedNotice) -> MaskedTranscript:
        """Return the record with the coordinator's list and aggregate. Raises `SUM_MISMATCH`: one per session."""
        if notice.session != self.offer.digest or notice.size_bytes != self.offer.upload_bytes:
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate belongs to another session or has another size")
        if self.notice is not None and self.notice != notice:
            raise ComityError(ErrorCode.SUM_MISMATCH, "a session has one list of the dropped and one aggregate")
        return replace(self, notice=notice)

    @property
    def members(self) -> tuple[str, ...]:
        """The roster's members, or nobody before there is one."""
        return self.roster.orgs if self.roster else ()

    @property
    def place(self) -> Place:
        """What keys and boxes of this session are bound to; of meaning once there is a roster."""
        return Place(self.offer.digest, self.roster.digest if self.roster else "")

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

    def get(self, kind: type[_T], org: str) -> _T | None:
        """Return what `org` said of this kind."""
        found = self.received.get((kind.KIND, org))
        return found if isinstance(found, kind) else None

    def said(self, kind: type[_T], org: str) -> _T:
        """Return what `org` said of this kind. Raises `INTERNAL`: only for what was judged to be there."""
        found = self.get(kind, org)
        if found is None:
            raise ComityError(ErrorCode.INTERNAL, "a message is missing that was there", org=org, kind=kind.KIND)
        return found

    def missing(self, kind: type[Body]) -> tuple[str, ...]:
        """Return who has not sent this kind: of the members, or of the parties while there is no roster."""
        return tuple(org for org in self.members or self.offer.parties if self.get(kind, org) is None)

    def lost(self) -> tuple[str, ...]:
        """Return the members that are in no list of survivors any more: dropped, or gave up."""
        dropped = self.notice.dropped if self.notice else ()
        return tuple(org for org in self.members if org in dropped or self.get(Abort, org) is not None)

    def check_over(self) -> None:
        """Raise why the session cannot go on: rules 3 and 4, and a lead that says two things.

        Raises:
            ComityError: `ROSTER_MISMATCH`, the code of the party that gave up, `UNAVAILABLE` (too few are left).
        """
        if self.split:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the lead gave the parties different offers", org=self.split)
        speakers = self.members or self.offer.parties
        given_up = [(org, said) for org in speakers if (said := self.get(Abort, org)) is not None]
        said = self.get(Abort, self.offer.lead)
        # As a party the lead may be lost like any other; but nobody else opens the sum.
        if said is not None:
            given_up.insert(0, (self.offer.lead, said))
        if not given_up:
            return
        org, said = given_up[0]
        if org == self.offer.lead or not self.set_signed():
            raise ComityError(ErrorCode(said.code), "a party gave up", org=said.blame or org)
        if len(self.members) - len(self.lost()) < self.needed:
            raise ComityError(ErrorCode.UNAVAILABLE, "too few parties are left", org=org, needed=self.needed)

    def ready(self) -> bool:
        """Whether the roster stands and every member's announcement is the one it names. Raises `ROSTER_MISMATCH`."""
        if self.roster is None or self.missing(MaskedReady):
            return False
        for org, digest in self.roster.members:
            said = self.said(MaskedReady, org)
            if said.digest != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "the roster names another announcement", org=org)
            if (said.key_id, said.order_digest) != (self.offer.key_id, self.offer.order_digest):
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party was given another key or order", org=org)
        return True

    def roster_signed(self) -> bool:
        """Whether every member signed this H(R). Raises `ROSTER_MISMATCH`."""
        return self.ready() and self._complete(RosterSignature)

    def keyed(self) -> bool:
        """Whether every member's keys are there, for exactly this roster. Raises `ROSTER_MISMATCH`."""
        if not (self.roster_signed() and self._complete(MaskedKeys)):
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
            if self.said(CommitmentsSignature, org).commitments != digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party saw other commitments", org=org)
        return True

    def noticed(self) -> bool:
        """Whether there is a list that the rule permits, of exactly this set. Raises `SUM_MISMATCH`, ..._TOO_FEW."""
        if self.notice is None or self.roster is None or not self.set_signed():
            return False
        if (self.notice.roster, self.notice.commitments) != (self.roster.digest, self.commitments_digest):
            raise ComityError(ErrorCode.SUM_MISMATCH, "the aggregate is of another roster or of other uploads")
        if not set(self.notice.dropped) <= set(self.members):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the list of the dropped names strangers")
        if len(self.survivors) < max(self.needed, self.offer.minimum):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "too many parties dropped out", n=len(self.survivors))
        return True

    def list_signed(self) -> bool:
        """Whether enough survivors signed this list: more than two thirds of the roster. Others' lists do not count."""
        if not self.noticed() or self.notice is None:
            return False
        digest = self.notice.digest
        found = (self.get(NoticeSignature, org) for org in self.survivors)
        return sum(said is not None and said.notice == digest for said in found) >= self.needed

    def _complete(self, kind: type[RosterSignature | MaskedKeys | Commitment | CommitmentsSignature]) -> bool:
        if self.roster is None or self.missing(kind):
            return False
        for org in self.members:
            if self.said(kind, org).roster != self.roster.digest:
                raise ComityError(ErrorCode.ROSTER_MISMATCH, "a party stands on another roster", org=org)
        return True


def _names(pairs: tuple[tuple[str, bytes | str], ...]) -> tuple[str, ...]:
    return tuple(org for org, _ in pairs)
