"""The messages of a sum of encrypted uploads that other profiles do not have; `threshold` speaks them, too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import canonical
from comity_crypto.secagg.bfv.blobs import blob_bytes
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES
from comity_crypto.secagg.bfv.params import CHUNKS_MAX, RESIDUE_BITS, Parameters, parameter_set
from comity_crypto.secagg.frame.body import (
    Body,
    by_kind,
    parse,
    read_boxes,
    read_by,
    read_count,
    read_hash,
    read_list,
    read_text,
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

_CHALLENGE = b"comity/secagg/challenge/v1\x00"
_SEED = b"comity/secagg/seed/v1\x00"


def _values(value: Any) -> tuple[int, ...]:
    return read_list(value, read_count(0, (1 << RESIDUE_BITS) - 1), DIGEST_VALUES, DIGEST_VALUES)


@dataclass(frozen=True)
class Offer(RoundOffer):
    """The lead's offer of a round key; it travels in the sealed order with the packed public key.

    `key_id` is the SHA-256 of the packed public key; `chunks` fixes the size of every upload.
    """

    KIND: ClassVar[str] = "secagg.offer"
    # Who checks the aggregate needs the linear digests: the lead alone here, every holder under `threshold`.
    DIGESTS_TO_ALL: ClassVar[bool] = False
    parameters: str = read_by(read_text)
    parameters_digest: str = read_by(read_hash)
    chunks: int = read_by(read_count(1, CHUNKS_MAX))

    def __post_init__(self) -> None:
        parameter_set(self.parameters, self.parameters_digest)
        super().__post_init__()

    @property
    def parameter_set(self) -> Parameters:
        """The pinned set."""
        return parameter_set(self.parameters, self.parameters_digest)

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""
        return blob_bytes(self.parameter_set, self.chunks)

    def seed_info(self, roster: str, sender: str, receiver: str) -> bytes:
        """Return what binds a box with a mask's seed: agreement, round key, order, roster, both parties."""
        place = {
            "agreement": self.agreement,
            "session": self.digest,
            "key_id": self.key_id,
            "order_digest": self.order_digest,
            "roster": roster,
            "sender": sender,
            "receiver": receiver,
        }
        return _SEED + canonical(place)


@dataclass(frozen=True)
class Ready(Announcement):
    """Step (a): what this party was asked, and its key for boxes."""

    KIND: ClassVar[str] = "secagg.ready"
    box_key: bytes = read_by(read_box_key)


@dataclass(frozen=True)
class MaskSeed(OnRoster):
    """Step (c): boxes with one fresh seed for each member that sorts after the sender."""

    KIND: ClassVar[str] = "secagg.mask-seed"
    boxes: tuple[tuple[str, bytes], ...] = read_by(read_boxes(SEED_BOX_BYTES))


@dataclass(frozen=True)
class AggregateNotice(Notice):
    """Step (e): the coordinator fixes the aggregate; the challenge follows from this."""

    KIND: ClassVar[str] = "secagg.aggregate"

    @property
    def challenge(self) -> bytes:
        """32 bytes, from everything that this notice names."""
        return hashlib.sha256(_CHALLENGE + canonical(self.to_json())).digest()


@dataclass(frozen=True)
class LinearDigest(InSession):
    """Step (e): the digest of this party's upload under the challenge of the notice that it saw."""

    KIND: ClassVar[str] = "secagg.linear-digest"
    notice: str = read_by(read_hash)
    values: tuple[int, ...] = read_by(_values)


BODIES = by_kind(Offer, Ready, MaskSeed, AggregateNotice, LinearDigest, *COMMON_BODIES)


def parse_message(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    return parse(BODIES, kind, body)
