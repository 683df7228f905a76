"""The messages of `threshold`: the ceremony that makes a batch of round keys, and the quorum that opens a sum.

Rules as in `messages.py`. Besides:
1. `session` of a ceremony's message is the digest of its `KeyPlan`; that of a round's is the digest of its offer.
2. Every step names the digest of the whole step before it, so that a coordinator that shows parties different things
   shows itself at the next step, and at the latest in the transcript, which all holders sign.
3. Bulk (public shares, boxes, decryption shares) travels beside, named here by SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import LIMBS, RESIDUE_BITS, Parameters, parameter_set
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
    read_orgs,
    read_text,
)
from comity_crypto.secagg.frame.messages import ROUND_MAX
from comity_crypto.secagg.lead_key.messages import BODIES, BOX_KEY_BYTES, Offer

KEYS_MAX = 16
NONCE_BYTES = 32
# How often a holder answers for one aggregate: k answers average the noise down by the root of k, 1.5 bits for 8.
ANSWERS_MAX = 8


def default_threshold(holders: int) -> int:
    """Return the quorum where the terms name none: everybody of three, two thirds of more."""
    return holders if holders <= CONTRIBUTORS_MIN else -(-2 * holders // 3)


def _nonce(value: Any) -> bytes:
    return read_bytes(value, NONCE_BYTES)


def _box_key(value: Any) -> bytes:
    return read_bytes(value, BOX_KEY_BYTES)


def _checks(value: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Read, by dealer, one number per key and prime."""
    if not isinstance(value, Mapping):
        raise ComityError(ErrorCode.MALFORMED, "a map of organisations")
    number = read_count(0, (1 << RESIDUE_BITS) - 1)
    found = []
    for org in read_orgs(sorted(map(str, value))):
        items = value[org]
        if not isinstance(items, list) or not 1 <= len(items) <= KEYS_MAX * LIMBS:
            raise ComityError(ErrorCode.MALFORMED, "one number for each key and prime")
        found.append((org, tuple(number(item) for item in items)))
    return tuple(found)


def _key_ids(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= KEYS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "1 to 16 keys")
    return tuple(read_hash(item) for item in value)


def _orgs_or_none(value: Any) -> tuple[str, ...]:
    return () if isinstance(value, list | tuple) and not value else read_orgs(value)


@dataclass(frozen=True)
class KeyPlan(Body):
    """The lead's call for a ceremony: who holds, how many of them open, how many keys. `number` tells calls apart."""

    KIND: ClassVar[str] = "secagg.key-plan"
    agreement: str = read_by(read_text)
    run: str = read_by(read_text)
    number: int = read_by(read_count(0, ROUND_MAX))
    lead: str = read_by(read_org)
    holders: tuple[str, ...] = read_by(read_orgs)
    threshold: int = read_by(read_count(2, CONTRIBUTORS_MAX))
    parameters: str = read_by(read_text)
    parameters_digest: str = read_by(read_hash)
    keys: int = read_by(read_count(1, KEYS_MAX))

    def __post_init__(self) -> None:
        parameter_set(self.parameters, self.parameters_digest)
        if len(self.holders) < CONTRIBUTORS_MIN:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "a collective key needs 3 holders", n=len(self.holders))
        if self.threshold > len(self.holders):
            raise ComityError(ErrorCode.MALFORMED, "a quorum is not larger than the holders")

    @property
    def parameter_set(self) -> Parameters:
        """The pinned set."""
        return parameter_set(self.parameters, self.parameters_digest)

    @property
    def parties(self) -> tuple[str, ...]:
        """Who speaks in the ceremony, by the name that offers have for it."""
        return self.holders

    @property
    def key_id(self) -> str:
        """What a ceremony's statements name in the place of a round key."""
        return self.digest

    @property
    def place(self) -> str:
        """A ceremony has its own place: no two of one number can be told apart otherwise."""
        return canonical_digest([self.agreement, self.run, self.lead, self.number])

    @property
    def deals(self) -> bool:
        """Whether parts are dealt: not where everybody is needed."""
        return self.threshold < len(self.holders)

    def point(self, org: str) -> int:
        """Return a holder's point, from 1."""
        return self.holders.index(org) + 1


@dataclass(frozen=True)
class NonceCommitment(Body):
    """Step 1: this holder's nonce is fixed; with its key for boxes, of this ceremony only."""

    KIND: ClassVar[str] = "secagg.nonce-commitment"
    session: str = read_by(read_hash)
    commitment: str = read_by(read_hash)
    box_key: bytes = read_by(_box_key)


@dataclass(frozen=True)
class NonceReveal(Body):
    """Step 2: the nonce, after every commitment was seen."""

    KIND: ClassVar[str] = "secagg.nonce-reveal"
    session: str = read_by(read_hash)
    before: str = read_by(read_hash)
    nonce: bytes = read_by(_nonce)


@dataclass(frozen=True)
class ShareCommitment(Body):
    """Step 3: SHA-256 of this holder's public shares b_i of all keys."""

    KIND: ClassVar[str] = "secagg.share-commitment"
    session: str = read_by(read_hash)
    before: str = read_by(read_hash)
    shares: str = read_by(read_hash)


@dataclass(frozen=True)
class ShareReveal(Body):
    """Step 4: the public shares lie ready under their hash, after every commitment was seen."""

    KIND: ClassVar[str] = "secagg.share-reveal"
    session: str = read_by(read_hash)
    before: str = read_by(read_hash)


@dataclass(frozen=True)
class Deal(Body):
    """Step 5 (T < n): SHA-256 of the box for every other holder; `keys` are the ids of the collective keys."""

    KIND: ClassVar[str] = "secagg.deal"
    session: str = read_by(read_hash)
    before: str = read_by(read_hash)
    keys: tuple[str, ...] = read_by(_key_ids)
    boxes: tuple[tuple[str, str], ...] = read_by(read_hashes)


@dataclass(frozen=True)
class DealCheck(Body):
    """Step 6 (T < n): by dealer, this holder's value of the check, for each key and prime."""

    KIND: ClassVar[str] = "secagg.deal-check"
    session: str = read_by(read_hash)
    before: str = read_by(read_hash)
    values: tuple[tuple[str, tuple[int, ...]], ...] = read_by(_checks)

    def to_json(self) -> dict[str, Any]:
        """Return the statement's body."""
        return {**super().to_json(), "values": {org: list(items) for org, items in self.values}}


@dataclass(frozen=True)
class TranscriptSignature(Body):
    """Step 7: this holder has seen exactly this ceremony, and it made exactly these keys."""

    KIND: ClassVar[str] = "secagg.transcript-signature"
    session: str = read_by(read_hash)
    transcript: str = read_by(read_hash)
    keys: tuple[str, ...] = read_by(_key_ids)


@dataclass(frozen=True)
class ThresholdOffer(Offer):
    """A lead's offer of a collective key: `key_id` is one of the ceremony whose transcript all `holders` signed."""

    KIND: ClassVar[str] = "secagg.threshold-offer"
    DIGESTS_TO_ALL: ClassVar[bool] = True
    ceremony: str = read_by(read_hash)
    transcript: str = read_by(read_hash)
    holders: tuple[str, ...] = read_by(read_orgs)
    threshold: int = read_by(read_count(2, CONTRIBUTORS_MAX))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.parties) <= set(self.holders) or self.threshold > len(self.holders):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer's parties are not holders of its key")
        if len(self.parties) < self.threshold:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "the parties are no quorum", n=len(self.parties))

    def point(self, org: str) -> int:
        """Return a holder's point, from 1."""
        return self.holders.index(org) + 1


@dataclass(frozen=True)
class Checked(Body):
    """A holder found the aggregate to be the sum of all commitments, and would share."""

    KIND: ClassVar[str] = "secagg.checked"
    session: str = read_by(read_hash)
    notice: str = read_by(read_hash)


@dataclass(frozen=True)
class QuorumCall(Body):
    """The lead asks these holders, together, for their shares of the aggregate of `notice`."""

    KIND: ClassVar[str] = "secagg.quorum-call"
    session: str = read_by(read_hash)
    notice: str = read_by(read_hash)
    number: int = read_by(read_count(0, ANSWERS_MAX - 1))
    members: tuple[str, ...] = read_by(read_orgs)


@dataclass(frozen=True)
class ShareReady(Body):
    """A holder's share for one call lies ready, sealed to who opens: SHA-256 of the share itself."""

    KIND: ClassVar[str] = "secagg.share-ready"
    session: str = read_by(read_hash)
    call: str = read_by(read_hash)
    share: str = read_by(read_hash)


@dataclass(frozen=True)
class Opened(Body):
    """The lead has the sum: keys are of no more use. `suspects` holds those whose shares did not fit."""

    KIND: ClassVar[str] = "secagg.opened"
    session: str = read_by(read_hash)
    notice: str = read_by(read_hash)
    suspects: tuple[str, ...] = read_by(_orgs_or_none)


CEREMONY_BODIES: tuple[type[Body], ...] = (
    NonceCommitment,
    NonceReveal,
    ShareCommitment,
    ShareReveal,
    Deal,
    DealCheck,
    TranscriptSignature,
)
ROUND_BODIES: tuple[type[Body], ...] = (ThresholdOffer, Checked, QuorumCall, ShareReady, Opened)
_PLANS: tuple[type[Body], ...] = (KeyPlan,)
THRESHOLD_BODIES: dict[str, type[Body]] = {body.KIND: body for body in (*_PLANS, *CEREMONY_BODIES, *ROUND_BODIES)}


def parse_threshold_message(kind: str, body: Any) -> Body:
    """Read a body of `threshold` or of the sums beneath. Raises `UNSUPPORTED` (unknown kind), `MALFORMED`."""
    found = THRESHOLD_BODIES.get(kind) or BODIES.get(kind)
    if found is None:
        raise ComityError(ErrorCode.UNSUPPORTED, "not a message of a secure sum")
    return found.from_json(body)


def step_digest(session: str, messages: Mapping[str, Body]) -> str:
    """Return the digest of what all holders said in one step of a ceremony."""
    return canonical_digest({"session": session, "said": {org: item.digest for org, item in messages.items()}})
