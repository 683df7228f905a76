"""The messages of a masked sum that other profiles do not have; the rest are `messages`' own.

Rules as in `messages`. `Roster`, `RosterSignature`, `Commitment`, `CommitmentsSignature` and `Abort` are the same for
all profiles; `MaskedNotice` comes from the coordinator and carries no signature: more than two thirds of the members
sign it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.body import (
    CONTRIBUTORS_MAX,
    CONTRIBUTORS_MIN,
    Body,
    read_boxes,
    read_by,
    read_bytes,
    read_count,
    read_hash,
    read_hashes,
    read_org,
    read_orgs,
    read_text,
)
from comity_crypto.secagg.frame.messages import (
    ATTEMPT_MAX,
    ROUND_MAX,
    Abort,
    Commitment,
    CommitmentsSignature,
    Roster,
    RosterSignature,
)
from comity_crypto.secagg.masked.blobs import blob_bytes
from comity_crypto.secagg.masked.keys import DEAL_BOX_BYTES, PUBLIC_BYTES, REVEAL_BOX_BYTES, SEED_BOX_BYTES
from comity_crypto.secagg.masked.words import CONTENT_START, WORDS_MAX

SPARE_MAX = (CONTRIBUTORS_MAX - 1) // 3


def needed(members: int, spare: int) -> int:
    """Return how many members must sign a list, and how many shares give a secret: more than two thirds of all."""
    return members - min(spare, (members - 1) // 3)


def _public(value: Any) -> bytes:
    return read_bytes(value, PUBLIC_BYTES)


def _reveal(value: Any) -> bytes:
    return read_bytes(value, REVEAL_BOX_BYTES)


def _maybe_orgs(value: Any) -> tuple[str, ...]:
    return () if isinstance(value, list | tuple) and not value else read_orgs(value)


def _seed_boxes(value: Any) -> tuple[tuple[str, bytes], ...]:
    """Read boxes; the member that sorts last has none, which is written as an empty list."""
    if isinstance(value, Mapping):
        return read_boxes(SEED_BOX_BYTES)(value)
    if isinstance(value, list) and not value:
        return ()
    raise ComityError(ErrorCode.MALFORMED, "a map of organisations")


@dataclass(frozen=True)
class MaskedOffer(Body):
    """The lead's offer of a masked sum.

    `spare` members may be lost after the commitments; `key_id` names the round's secret, `box_key` is the lead's key
    for what members reveal; `words` fixes the size of every upload.
    """

    KIND: ClassVar[str] = "secagg.masked.offer"
    agreement: str = read_by(read_text)
    run: str = read_by(read_text)
    step: str = read_by(read_text)
    round: int = read_by(read_count(0, ROUND_MAX))
    attempt: int = read_by(read_count(0, ATTEMPT_MAX))
    lead: str = read_by(read_org)
    parties: tuple[str, ...] = read_by(read_orgs)
    minimum: int = read_by(read_count(CONTRIBUTORS_MIN, CONTRIBUTORS_MAX))
    spare: int = read_by(read_count(0, SPARE_MAX))
    key_id: str = read_by(read_hash)
    box_key: bytes = read_by(_public)
    order_digest: str = read_by(read_hash)
    words: int = read_by(read_count(CONTENT_START + 1, WORDS_MAX))

    def __post_init__(self) -> None:
        if self.minimum > len(self.parties):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "a masked sum needs more parties", n=self.minimum)

    @property
    def place(self) -> str:
        """Digest of agreement, run, step, round, attempt: two offers for one place are an equivocation of the lead."""
        return canonical_digest([self.agreement, self.run, self.step, self.round, self.attempt])

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""
        return blob_bytes(self.words)


@dataclass(frozen=True)
class MaskedReady(Body):
    """Step (a): what this party was asked, its keys for boxes, and the hash of its own mask's seed."""

    KIND: ClassVar[str] = "secagg.masked.ready"
    session: str = read_by(read_hash)
    place: str = read_by(read_hash)
    key_id: str = read_by(read_hash)
    order_digest: str = read_by(read_hash)
    pair_key: bytes = read_by(_public)
    share_key: bytes = read_by(_public)
    seed_digest: str = read_by(read_hash)


@dataclass(frozen=True)
class RoundBoxes(Body):
    """Step (c), by the lead: the round's secret, sealed to every member."""

    KIND: ClassVar[str] = "secagg.masked.round"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    boxes: tuple[tuple[str, bytes], ...] = read_by(read_boxes(SEED_BOX_BYTES))


@dataclass(frozen=True)
class MaskedKeys(Body):
    """Step (c): seeds for the members that sort after the sender, and deals for all others with the shares' hashes."""

    KIND: ClassVar[str] = "secagg.masked.keys"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    seeds: tuple[tuple[str, bytes], ...] = read_by(_seed_boxes)
    deals: tuple[tuple[str, bytes], ...] = read_by(read_boxes(DEAL_BOX_BYTES))
    root_digests: tuple[tuple[str, str], ...] = read_by(read_hashes)
    seed_digests: tuple[tuple[str, str], ...] = read_by(read_hashes)


@dataclass(frozen=True)
class MaskedNotice(Body):
    """Step (e), by the coordinator: the aggregate of all members but the dropped ones."""

    KIND: ClassVar[str] = "secagg.masked.notice"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    commitments: str = read_by(read_hash)
    dropped: tuple[str, ...] = read_by(_maybe_orgs)
    aggregate: str = read_by(read_hash)
    size_bytes: int = read_by(read_count(1, 1 << 40))


@dataclass(frozen=True)
class NoticeSignature(Body):
    """Step (e): this party stands on one list of the dropped, and on one aggregate."""

    KIND: ClassVar[str] = "secagg.masked.notice-signature"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    notice: str = read_by(read_hash)


@dataclass(frozen=True)
class Reveal(Body):
    """Step (e): sealed to the lead, what takes the masks away: for each party one kind of share only."""

    KIND: ClassVar[str] = "secagg.masked.reveal"
    session: str = read_by(read_hash)
    notice: str = read_by(read_hash)
    box: bytes = read_by(_reveal)


MASKED_BODIES: dict[str, type[Body]] = {
    body.KIND: body
    for body in (
        MaskedOffer,
        MaskedReady,
        Roster,
        RosterSignature,
        RoundBoxes,
        MaskedKeys,
        Commitment,
        CommitmentsSignature,
        MaskedNotice,
        NoticeSignature,
        Reveal,
        Abort,
    )
}


def parse_masked(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    found = MASKED_BODIES.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a masked sum")
    return found.from_json(body)
