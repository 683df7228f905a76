"""Messages that rounds of all profiles have: bodies of statements that the caller signs and verifies.

1. Every message names its session: the digest of the lead's offer, which fixes the run, round, attempt, parties, round
   key, order and size. A message is of use in one session only.
2. `from_json` takes a stranger's body: exact fields, bounded counts, exact lengths. Anything else is `MALFORMED`.
3. The coordinator's messages (roster, notice) carry no signature: the parties sign what they saw of them, so an
   equivocation shows as a mismatch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import Body, read_by, read_count, read_hash, read_hashes, read_org_or_empty

ROUND_MAX = 1_000_000
ATTEMPT_MAX = 15


def _code(value: Any) -> str:
    try:
        return ErrorCode(value).value
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "an unknown code") from error


@dataclass(frozen=True)
class Roster(Body):
    """The coordinator's list of those who take part, with the digest of each one's `Ready`. H(R) is its digest."""

    KIND: ClassVar[str] = "secagg.roster"
    session: str = read_by(read_hash)
    members: tuple[tuple[str, str], ...] = read_by(read_hashes)

    @property
    def orgs(self) -> tuple[str, ...]:
        """The members, sorted."""
        return tuple(org for org, _ in self.members)


@dataclass(frozen=True)
class RosterSignature(Body):
    """Step (b): this party stands on H(R)."""

    KIND: ClassVar[str] = "secagg.roster-signature"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)


@dataclass(frozen=True)
class Commitment(Body):
    """Step (c): SHA-256 and size of the upload, before anyone uploads."""

    KIND: ClassVar[str] = "secagg.commitment"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    upload: str = read_by(read_hash)
    size_bytes: int = read_by(read_count(1, 1 << 40))


@dataclass(frozen=True)
class CommitmentsSignature(Body):
    """Step (d): this party has seen all commitments and stands on the set."""

    KIND: ClassVar[str] = "secagg.commitments-signature"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    commitments: str = read_by(read_hash)


@dataclass(frozen=True)
class Abort(Body):
    """This party gives the session up; `blame` names another party or is empty."""

    KIND: ClassVar[str] = "secagg.abort"
    session: str = read_by(read_hash)
    code: str = read_by(_code)
    blame: str = read_by(read_org_or_empty)


def commitments_digest(session: str, roster: str, commitments: Mapping[str, Commitment]) -> str:
    """Return the digest of the whole set of commitments, in the order of the organisations."""
    entries = [[org, item.upload, item.size_bytes] for org, item in sorted(commitments.items())]
    return canonical_digest({"session": session, "roster": roster, "commitments": entries})
