"""The messages of a secure sum: bodies of statements that the caller signs and verifies.

1. Every message names its session: the digest of the lead's `Offer`, which fixes the run, round, attempt, parties,
   round key, order and size. A message is of use in one session only.
2. `from_json` takes a stranger's body: exact fields, bounded counts, exact lengths. Anything else is `MALFORMED`.
3. `Roster` and `AggregateNotice` come from the coordinator and carry no signature: the parties sign what they saw of
   them (`RosterSignature`, `LinearDigest`), so an equivocation shows as a mismatch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import canonical
from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.blobs import blob_bytes
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES
from comity_crypto.secagg.bfv.params import CHUNKS_MAX, RESIDUE_BITS, Parameters, parameter_set
from comity_crypto.secagg.frame.body import (
    CONTRIBUTORS_MAX,
    CONTRIBUTORS_MIN,
    read_boxes,
    read_by,
    read_bytes,
    read_count,
    read_hash,
    read_org,
    read_orgs,
    read_text,
)
from comity_crypto.secagg.frame.body import Body as Body
from comity_crypto.secagg.frame.messages import (
    ATTEMPT_MAX,
    ROUND_MAX,
    Abort,
    Commitment,
    CommitmentsSignature,
    Roster,
    RosterSignature,
)

BOX_KEY_BYTES = 1216  # ML-KEM-768 1184 + X25519 32
BOX_BYTES = 1168  # HPKE: encapsulation 1120, seed 32, tag 16
_CHALLENGE = b"comity/secagg/challenge/v1\x00"


def _box_key(value: Any) -> bytes:
    return read_bytes(value, BOX_KEY_BYTES)


def _values(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != DIGEST_VALUES:
        raise ComityError(ErrorCode.MALFORMED, f"{DIGEST_VALUES} numbers")
    read = read_count(0, (1 << RESIDUE_BITS) - 1)
    return tuple(read(item) for item in value)


@dataclass(frozen=True)
class Offer(Body):
    """The lead's offer of a round key; it travels in the sealed order with the packed public key.

    `parties` may contribute, at least `minimum` must; `order_digest` is that of the plaintext order; `key_id` is the
    SHA-256 of the packed public key; `chunks` fixes the size of every upload.
    """

    KIND: ClassVar[str] = "secagg.offer"
    # Who checks the aggregate needs the linear digests: the lead alone here, every holder under `threshold`.
    DIGESTS_TO_ALL: ClassVar[bool] = False
    agreement: str = read_by(read_text)
    run: str = read_by(read_text)
    step: str = read_by(read_text)
    round: int = read_by(read_count(0, ROUND_MAX))
    attempt: int = read_by(read_count(0, ATTEMPT_MAX))
    lead: str = read_by(read_org)
    parties: tuple[str, ...] = read_by(read_orgs)
    minimum: int = read_by(read_count(CONTRIBUTORS_MIN, CONTRIBUTORS_MAX))
    parameters: str = read_by(read_text)
    parameters_digest: str = read_by(read_hash)
    key_id: str = read_by(read_hash)
    order_digest: str = read_by(read_hash)
    chunks: int = read_by(read_count(1, CHUNKS_MAX))

    def __post_init__(self) -> None:
        parameter_set(self.parameters, self.parameters_digest)
        if self.minimum > len(self.parties):
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "an encrypted sum needs more parties", n=self.minimum)

    @property
    def parameter_set(self) -> Parameters:
        """The pinned set."""
        return parameter_set(self.parameters, self.parameters_digest)

    @property
    def place(self) -> str:
        """Digest of agreement, run, step, round, attempt: two offers for one place are an equivocation of the lead."""
        return canonical_digest([self.agreement, self.run, self.step, self.round, self.attempt])

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload and of the aggregate."""
        return blob_bytes(self.parameter_set, self.chunks)


@dataclass(frozen=True)
class Ready(Body):
    """Step (a): what this party was asked, and its key for boxes."""

    KIND: ClassVar[str] = "secagg.ready"
    session: str = read_by(read_hash)
    place: str = read_by(read_hash)
    key_id: str = read_by(read_hash)
    order_digest: str = read_by(read_hash)
    box_key: bytes = read_by(_box_key)


@dataclass(frozen=True)
class MaskSeed(Body):
    """Step (c): boxes with one fresh seed for each member that sorts after the sender."""

    KIND: ClassVar[str] = "secagg.mask-seed"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    boxes: tuple[tuple[str, bytes], ...] = read_by(read_boxes(BOX_BYTES))


@dataclass(frozen=True)
class AggregateNotice(Body):
    """Step (e): the coordinator fixes the aggregate; the challenge follows from this."""

    KIND: ClassVar[str] = "secagg.aggregate"
    session: str = read_by(read_hash)
    roster: str = read_by(read_hash)
    commitments: str = read_by(read_hash)
    aggregate: str = read_by(read_hash)
    size_bytes: int = read_by(read_count(1, 1 << 40))

    @property
    def challenge(self) -> bytes:
        """32 bytes, from everything that this notice names."""
        return hashlib.sha256(_CHALLENGE + canonical(self.to_json())).digest()


@dataclass(frozen=True)
class LinearDigest(Body):
    """Step (e): the digest of this party's upload under the challenge of the notice that it saw."""

    KIND: ClassVar[str] = "secagg.linear-digest"
    session: str = read_by(read_hash)
    notice: str = read_by(read_hash)
    values: tuple[int, ...] = read_by(_values)


BODIES: dict[str, type[Body]] = {
    body.KIND: body
    for body in (
        Offer,
        Ready,
        Roster,
        RosterSignature,
        MaskSeed,
        Commitment,
        CommitmentsSignature,
        AggregateNotice,
        LinearDigest,
        Abort,
    )
}


def parse_message(kind: str, body: Any) -> Body:
    """Read a body by its statement's kind. Raises `UNSUPPORTED` for an unknown kind, `MALFORMED` for a bad body."""
    found = BODIES.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a secure sum")
    return found.from_json(body)
