"""Messages that rounds of all profiles have: bodies of statements that the caller signs and verifies.

1. Every message names its session: the digest of the lead's offer, which fixes the run, round, attempt, parties, round
   key, order and size. A message is of use in one session only.
2. `from_json` takes a stranger's body: exact fields, bounded counts, exact lengths. Anything else is `MALFORMED`.
3. `Roster` and `Notice` come from the coordinator and carry no signature: the parties sign what they saw of them, so
   that an equivocation shows as a mismatch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import (
    CONTRIBUTORS_MAX,
    CONTRIBUTORS_MIN,
    Body,
    read_by,
    read_bytes,
    read_count,
    read_hash,
    read_hashes,
    read_org,
    read_org_or_empty,
    read_orgs,
    read_text,
)
from comity_crypto.secagg.frame.boxes import BOX_KEY_BYTES

ROUND_MAX = 1_000_000
ATTEMPT_MAX = 15
BLOB_BYTES_MAX = 1 << 40


def read_box_key(value: Any) -> bytes:
    """Read a public key for boxes."""
    return read_bytes(value, BOX_KEY_BYTES)


def _code(value: Any) -> str:
    try:
        return ErrorCode(value).value
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "an unknown code") from error


@dataclass(frozen=True)
class RoundOffer(Body, ABC):
    """The lead's offer of a round, as far as all profiles have the same.

    `parties` may contribute, at least `minimum` must; `key_id` names the round's key or secret; `order_digest` is that
    of the plaintext order. What a profile adds fixes the size of every upload.
    """

    agreement: str = read_by(read_text)
    run: str = read_by(read_text)
    step: str = read_by(read_text)
    round: int = read_by(read_count(0, ROUND_MAX))
    attempt: int = read_by(read_count(0, ATTEMPT_MAX))
    lead: str = read_by(read_org)
    parties: tuple[str, ...] = read_by(read_orgs)
    minimum: int = read_by(read_count(CONTRIBUTORS_MIN, CONTRIBUTORS_MAX))
    key_id: str = read_by(read_hash)
    order_digest: str = read_by(read_hash)

    def __post_init__(self) -> None:
        if self.minimum > len(self.parties):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "a secure sum needs more parties", n=self.minimum)

    @property
    def place(self) -> str:
        """Digest of agreement, run, step, round, attempt: two offers for one place are an equivocation of the lead."""
        return canonical_digest([self.agreement, self.run, self.step, self.round, self.attempt])

    @property
    @abstractmethod
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""


@dataclass(frozen=True)
class InSession(Body):
    """A message of one session."""

    session: str = read_by(read_hash)


@dataclass(frozen=True)
class OnRoster(InSession):
    """A message that stands on one roster."""

    roster: str = read_by(read_hash)


@dataclass(frozen=True)
class Announcement(InSession):
    """Step (a): what this party was asked; profiles add its keys."""

    place: str = read_by(read_hash)
    key_id: str = read_by(read_hash)
    order_digest: str = read_by(read_hash)


@dataclass(frozen=True)
class Roster(InSession):
    """The coordinator's list of those who take part, with the digest of each one's announcement. H(R) is its digest."""

    KIND: ClassVar[str] = "secagg.roster"
    members: tuple[tuple[str, str], ...] = read_by(read_hashes)

    @property
    def orgs(self) -> tuple[str, ...]:
        """The members, sorted."""
        return tuple(org for org, _ in self.members)


@dataclass(frozen=True)
class RosterSignature(OnRoster):
    """Step (b): this party stands on H(R)."""

    KIND: ClassVar[str] = "secagg.roster-signature"


@dataclass(frozen=True)
class Commitment(OnRoster):
    """Step (c): SHA-256 and size of the upload, before anyone uploads."""

    KIND: ClassVar[str] = "secagg.commitment"
    upload: str = read_by(read_hash)
    size_bytes: int = read_by(read_count(1, BLOB_BYTES_MAX))


@dataclass(frozen=True)
class CommitmentsSignature(OnRoster):
    """Step (d): this party has seen all commitments and stands on the set."""

    KIND: ClassVar[str] = "secagg.commitments-signature"
    commitments: str = read_by(read_hash)


@dataclass(frozen=True)
class Notice(OnRoster):
    """Step (e): the coordinator fixes the aggregate of a set of commitments."""

    commitments: str = read_by(read_hash)
    aggregate: str = read_by(read_hash)
    size_bytes: int = read_by(read_count(1, BLOB_BYTES_MAX))


@dataclass(frozen=True)
class Abort(InSession):
    """This party gives the session up; `blame` names another party or is empty."""

    KIND: ClassVar[str] = "secagg.abort"
    code: str = read_by(_code)
    blame: str = read_by(read_org_or_empty)


COMMON_BODIES: tuple[type[Body], ...] = (Roster, RosterSignature, Commitment, CommitmentsSignature, Abort)


def commitments_digest(session: str, roster: str, commitments: Mapping[str, Commitment]) -> str:
    """Return the digest of the whole set of commitments, in the order of the organisations."""
    entries = [[org, item.upload, item.size_bytes] for org, item in sorted(commitments.items())]
    return canonical_digest({"session": session, "roster": roster, "commitments": entries})
