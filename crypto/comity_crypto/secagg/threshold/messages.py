"""The messages of `threshold`: the ceremony that makes a batch of round keys, and the quorum that opens a sum.

Rules as in `frame.messages`. Besides:
1. `session` of a ceremony's message is the digest of its `KeyPlan`; that of a round's is the digest of its offer.
2. Every step names the digest of the whole step before it, so that a coordinator that shows parties different things
   shows itself at the next step, and at the latest in the transcript, which all holders sign.
3. Bulk (public shares, boxes, decryption shares) travels beside, named here by SHA-256.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from comity.wire.canonical import digest as canonical_digest
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.params import LIMBS, RESIDUE_BITS, Parameters, parameter_set
from comity_crypto.secagg.frame.body import (
    CONTRIBUTORS_MAX,
    CONTRIBUTORS_MIN,
    Body,
    by_kind,
    parse,
    read_by,
    read_by_org,
    read_bytes,
    read_count,
    read_hash,
    read_hashes,
    read_list,
    read_or_none,
    read_org,
    read_orgs,
    read_text,
)
from comity_crypto.secagg.frame.messages import ROUND_MAX, InSession, read_box_key
from comity_crypto.secagg.lead_key.messages import BODIES, Offer

KEYS_MAX = 16
NONCE_BYTES = 32
# How often a holder answers for one aggregate: k answers average the noise down by the root of k, 1.5 bits for 8.
ANSWERS_MAX = 8


def default_threshold(holders: int) -> int:
    """Return the quorum where the terms name none: everybody of three, two thirds of more."""
    return holders if holders <= CONTRIBUTORS_MIN else -(-2 * holders // 3)


def _nonce(value: Any) -> bytes:
    return read_bytes(value, NONCE_BYTES)


def _checks(value: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Read, by dealer, one number per key and prime."""
    number = read_count(0, (1 << RESIDUE_BITS) - 1)
    return read_by_org(value, lambda items: read_list(items, number, 1, KEYS_MAX * LIMBS))


def _key_ids(value: Any) -> tuple[str, ...]:
    return read_list(value, read_hash, 1, KEYS_MAX)


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
class NonceCommitment(InSession):
    """Step 1: this holder's nonce is fixed; with its key for boxes, of this ceremony only."""

    KIND: ClassVar[str] = "secagg.nonce-commitment"
    commitment: str = read_by(read_hash)
    box_key: bytes = read_by(read_box_key)


@dataclass(frozen=True)
class AfterStep(InSession):
    """A message of a ceremony that names the digest of the whole step before its own."""

    before: str = read_by(read_hash)


@dataclass(frozen=True)
class NonceReveal(AfterStep):
    """Step 2: the nonce, after every commitment was seen."""

    KIND: ClassVar[str] = "secagg.nonce-reveal"
    nonce: bytes = read_by(_nonce)


@dataclass(frozen=True)
class ShareCommitment(AfterStep):
    """Step 3: SHA-256 of this holder's public shares b_i of all keys."""

    KIND: ClassVar[str] = "secagg.share-commitment"
    shares: str = read_by(read_hash)


@dataclass(frozen=True)
class ShareReveal(AfterStep):
    """Step 4: the public shares lie ready under their hash, after every commitment was seen."""

    KIND: ClassVar[str] = "secagg.share-reveal"


@dataclass(frozen=True)
class Deal(AfterStep):
    """Step 5 (T < n): SHA-256 of the box for every other holder; `keys` are the ids of the collective keys."""

    KIND: ClassVar[str] = "secagg.deal"
    keys: tuple[str, ...] = read_by(_key_ids)
    boxes: tuple[tuple[str, str], ...] = read_by(read_hashes)


@dataclass(frozen=True)
class DealCheck(AfterStep):
    """Step 6 (T < n): by dealer, this holder's value of the check, for each key and prime."""

    KIND: ClassVar[str] = "secagg.deal-check"
    values: tuple[tuple[str, tuple[int, ...]], ...] = read_by(_checks)

    def to_json(self) -> dict[str, Any]:
        """Return the statement's body."""
        return {**super().to_json(), "values": {org: list(items) for org, items in self.values}}


@dataclass(frozen=True)
class TranscriptSignature(InSession):
    """Step 7: this holder has seen exactly this ceremony, and it made exactly these keys."""

    KIND: ClassVar[str] = "secagg.transcript-signature"
    transcript: str = read_by(read_hash)
    keys: tuple[str, ...] = read_by(_key_ids)


@dataclass(frozen=True)
class ThresholdOffer(Offer):
    """A lead's offer of a collective key: `key_id` is one of the ceremony whose transcript all `holders` signed.

    `openers` open the sum, each for itself: shares are sealed to the lead's `box_key`, which is of this attempt, and to
    the keys that the others announce as parties. Both are part of the session's name: nobody adds an opener to it.
    """

    KIND: ClassVar[str] = "secagg.threshold-offer"
    DIGESTS_TO_ALL: ClassVar[bool] = True
    ceremony: str = read_by(read_hash)
    transcript: str = read_by(read_hash)
    holders: tuple[str, ...] = read_by(read_orgs)
    threshold: int = read_by(read_count(2, CONTRIBUTORS_MAX))
    openers: tuple[str, ...] = read_by(read_orgs)
    box_key: bytes = read_by(read_box_key)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lead not in self.openers or not {*self.openers} <= {self.lead, *self.parties}:
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "a sum is opened by its lead, and by parties of it")
        if not set(self.parties) <= set(self.holders) or self.threshold > len(self.holders):
            raise ComityError(ErrorCode.ROSTER_MISMATCH, "the offer's parties are not holders of its key")
        if len(self.parties) < self.threshold:
            raise ComityError(ErrorCode.PARTICIPANTS_TOO_FEW, "the parties are no quorum", n=len(self.parties))

    def point(self, org: str) -> int:
        """Return a holder's point, from 1."""
        return self.holders.index(org) + 1

    def check_openers(self, agreed: Collection[str]) -> None:
        """Refuse an offer whose openers are not those of the agreement, as far as they are parties of this attempt.

        Raises:
            ComityError: `ROSTER_MISMATCH`, naming the field and who is one too many, or is left out.
        """
        wanted = {self.lead} | (set(agreed) & set(self.parties))
        odd = sorted(wanted ^ set(self.openers))
        if odd:
            detail = "a sum is opened by those whom the agreement names, and by nobody else"
            raise ComityError(ErrorCode.ROSTER_MISMATCH, detail, field="openers", org=odd[0])


@dataclass(frozen=True)
class Checked(InSession):
    """A holder found the aggregate to be the sum of all commitments, and would share."""

    KIND: ClassVar[str] = "secagg.checked"
    notice: str = read_by(read_hash)


@dataclass(frozen=True)
class QuorumCall(InSession):
    """The lead asks these holders, together, for their shares of the aggregate of `notice`."""

    KIND: ClassVar[str] = "secagg.quorum-call"
    notice: str = read_by(read_hash)
    number: int = read_by(read_count(0, ANSWERS_MAX - 1))
    members: tuple[str, ...] = read_by(read_orgs)


@dataclass(frozen=True)
class ShareReady(InSession):
    """A holder's share for one call lies ready, sealed to who opens: SHA-256 of the share itself."""

    KIND: ClassVar[str] = "secagg.share-ready"
    call: str = read_by(read_hash)
    share: str = read_by(read_hash)


@dataclass(frozen=True)
class Opened(InSession):
    """The lead has the sum: keys are of no more use. `suspects` holds those whose shares did not fit.

    `call` is the one whose shares opened it, `sum` what `compared.sum_digest` says of it.
    """

    KIND: ClassVar[str] = "secagg.opened"
    notice: str = read_by(read_hash)
    suspects: tuple[str, ...] = read_by(read_or_none(read_orgs))
    call: str = read_by(read_hash)
    sum: str = read_by(read_hash)


@dataclass(frozen=True)
class SumSeen(InSession):
    """An opener has the sum: by which call, and what `compared.sum_digest` says of it. To the other openers."""

    KIND: ClassVar[str] = "secagg.sum-seen"
    call: str = read_by(read_hash)
    sum: str = read_by(read_hash)


CEREMONY_BODIES: tuple[type[InSession], ...] = (
    NonceCommitment,
    NonceReveal,
    ShareCommitment,
    ShareReveal,
    Deal,
    DealCheck,
    TranscriptSignature,
)
_ROUND_BODIES: tuple[type[Body], ...] = (ThresholdOffer, Checked, QuorumCall, ShareReady, Opened, SumSeen)
THRESHOLD_BODIES = BODIES | by_kind(KeyPlan, *CEREMONY_BODIES, *_ROUND_BODIES)


def parse_threshold_message(kind: str, body: Any) -> Body:
    """Read a body of `threshold` or of the sums beneath. Raises `UNSUPPORTED` (unknown kind), `MALFORMED`."""
    return parse(THRESHOLD_BODIES, kind, body)


def step_digest(session: str, messages: Mapping[str, Body]) -> str:
    """Return the digest of what all holders said in one step of a ceremony."""
    return canonical_digest({"session": session, "said": {org: item.digest for org, item in messages.items()}})
