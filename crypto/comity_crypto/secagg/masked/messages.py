"""The messages of a masked sum that other profiles do not have.

`MaskedNotice` comes from the coordinator and carries no signature: more than two thirds of the members sign it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from comity_crypto.secagg.frame.body import (
    CONTRIBUTORS_MAX,
    Body,
    by_kind,
    parse,
    read_boxes,
    read_by,
    read_bytes,
    read_count,
    read_hash,
    read_hashes,
    read_or_none,
    read_orgs,
)
from comity_crypto.secagg.frame.boxes import SEED_BOX_BYTES
from comity_crypto.secagg.frame.messages import (
    COMMON_BODIES,
    Announcement,
    InSession,
    Notice,
    OnRoster,
    RoundOffer,
    read_box_key,
)
from comity_crypto.secagg.masked.blobs import blob_bytes
from comity_crypto.secagg.masked.keys import DEAL_BOX_BYTES, REVEAL_BOX_BYTES
from comity_crypto.secagg.masked.words import CONTENT_START, WORDS_MAX

SPARE_MAX = (CONTRIBUTORS_MAX - 1) // 3


def needed(members: int, spare: int) -> int:
    """Return how many members must sign a list, and how many shares give a secret: more than two thirds of all."""
    return members - min(spare, (members - 1) // 3)


def _reveal(value: Any) -> bytes:
    return read_bytes(value, REVEAL_BOX_BYTES)


@dataclass(frozen=True)
class MaskedOffer(RoundOffer):
    """The lead's offer of a masked sum.

    `spare` members may be lost after the commitments; `key_id` names the round's secret, `box_key` is the lead's key
    for what members reveal; `words` fixes the size of every upload.
    """

    KIND: ClassVar[str] = "secagg.masked.offer"
    spare: int = read_by(read_count(0, SPARE_MAX))
    box_key: bytes = read_by(read_box_key)
    words: int = read_by(read_count(CONTENT_START + 1, WORDS_MAX))

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""
        return blob_bytes(self.words)


@dataclass(frozen=True)
class MaskedReady(Announcement):
    """Step (a): what this party was asked, its keys for boxes, and the hash of its own mask's seed."""

    KIND: ClassVar[str] = "secagg.masked.ready"
    pair_key: bytes = read_by(read_box_key)
    share_key: bytes = read_by(read_box_key)
    seed_digest: str = read_by(read_hash)


@dataclass(frozen=True)
class RoundBoxes(OnRoster):
    """Step (c), by the lead: the round's secret, sealed to every member."""

    KIND: ClassVar[str] = "secagg.masked.round"
    boxes: tuple[tuple[str, bytes], ...] = read_by(read_boxes(SEED_BOX_BYTES))


@dataclass(frozen=True)
class MaskedKeys(OnRoster):
    """Step (c): seeds for the members that sort after the sender, and deals for all others with the shares' hashes."""

    KIND: ClassVar[str] = "secagg.masked.keys"
    # The member that sorts last has no seeds to give, which is written as an empty list.
    seeds: tuple[tuple[str, bytes], ...] = read_by(read_or_none(read_boxes(SEED_BOX_BYTES)))
    deals: tuple[tuple[str, bytes], ...] = read_by(read_boxes(DEAL_BOX_BYTES))
    root_digests: tuple[tuple[str, str], ...] = read_by(read_hashes)
    seed_digests: tuple[tuple[str, str], ...] = read_by(read_hashes)


@dataclass(frozen=True)
class MaskedNotice(Notice):
    """Step (e), by the coordinator: the aggregate of all members but the dropped ones."""

    KIND: ClassVar[str] = "secagg.masked.notice"
    dropped: tuple[str, ...] = read_by(read_or_none(read_orgs))


@dataclass(frozen=True)
class NoticeSignature(OnRoster):
    """Step (e): this party stands on one list of the dropped, and on one aggregate."""

    KIND: ClassVar[str] = "secagg.masked.notice-signature"
    notice: str = read_by(read_hash)


@dataclass(frozen=True)
class Reveal(InSession):
    """Step (e): sealed to the lead, what takes the masks away: for each party one kind of share only."""

    KIND: ClassVar[str] = "secagg.masked.reveal"
    notice: str = read_by(read_hash)
    box: bytes = read_by(_reveal)


MASKED_BODIES = by_kind(
    MaskedOffer, MaskedReady, RoundBoxes, MaskedKeys, MaskedNotice, NoticeSignature, Reveal, *COMMON_BODIES
)


def parse_masked(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    return parse(MASKED_BODIES, kind, body)
