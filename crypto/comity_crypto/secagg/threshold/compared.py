"""What openers of one sum say of it, and whether it is the same. Pure; the lead and other openers use it alike.

1. Shares are named one for each holder and call; a second one is refused.
2. What is said of a sum is a digest over the session, the call, the summed slots and a salt from every share of the
   call. Salts travel inside the sealed shares: who opens knows them all. Whoever else sees the digest cannot tell by it
   whether a guessed sum is right, unless all holders of the quorum help.
3. Two openers that name different digests for one call saw different sums, or one of them says so: `SUMS_DIFFER`.
   Digests of different calls are not compared; their sums are, by whoever opened both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.threshold.messages import ANSWERS_MAX, Checked, ShareReady, ThresholdOffer

SALT_BYTES = 32
_SUM = b"comity/secagg/sum/v1\x00"


def sum_digest(session: str, call: str, salts: Mapping[str, bytes], slots: str) -> str:
    """Return what is said of an opened sum.

    Args:
        salts: by holder, what its share of this call brought. slots: SHA-256 of the summed slots.

    Raises:
        ComityError: `INTERNAL` for a salt of another length.
    """
    if any(len(salt) != SALT_BYTES for salt in salts.values()):
        raise ComityError(ErrorCode.INTERNAL, "a share's salt has 32 bytes")
    secret = hashlib.sha256(_SUM + b"".join(salts[org] for org in sorted(salts))).digest()
    place = canonical({"session": session, "call": call, "holders": sorted(salts), "slots": slots})
    return hashlib.sha256(_SUM + secret + place).hexdigest()


def check_share(offer: ThresholdOffer, issuer: str, message: Checked | ShareReady) -> None:
    """Refuse a holder's word of somebody else, or of another session. Raises `FORBIDDEN`, `ROSTER_MISMATCH`."""
    if issuer not in offer.parties:
        raise ComityError(ErrorCode.FORBIDDEN, "not a holder in this session")
    if message.session != offer.digest:
        raise ComityError(ErrorCode.ROSTER_MISMATCH, "the message belongs to another session")


def with_share(shares: Mapping[str, str], issuer: str, message: ShareReady) -> dict[str, str]:
    """Return the shares of a call with one more. Raises `CONFLICT` if the holder named another one before."""
    if shares.get(issuer, message.share) != message.share:
        raise ComityError(ErrorCode.CONFLICT, "a holder gave another share before", org=issuer)
    return {**shares, issuer: message.share}


@dataclass(frozen=True)
class Compared:
    """What the openers of a session said, this one among them; `words` by (opener, call)."""

    openers: tuple[str, ...]
    words: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def with_word(self, org: str, call: str, said: str) -> Compared:
        """Return this with an opener's word.

        Raises:
            ComityError: `FORBIDDEN` (no opener), `CONFLICT` (it said something else of this call before), `TOO_LARGE`.
        """
        if org not in self.openers:
            raise ComityError(ErrorCode.FORBIDDEN, "not an opener of this sum", org=org)
        if self.words.get((org, call), said) != said:
            raise ComityError(ErrorCode.CONFLICT, "an opener said something else of this sum before", org=org)
        if sum(each == org for each, other in self.words if other != call) >= ANSWERS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "an opener speaks of more calls than there can be", org=org)
        return replace(self, words={**self.words, (org, call): said})

    @property
    def differing(self) -> tuple[str, ...]:
        """Who is at odds with somebody about the sum of one call, sorted; nobody if all words fit."""
        by_call: dict[str, dict[str, str]] = {}
        for (org, call), said in self.words.items():
            by_call.setdefault(call, {})[org] = said
        return tuple(sorted({org for words in by_call.values() if len(set(words.values())) > 1 for org in words}))


def differ(orgs: tuple[str, ...]) -> ComityError:
    """Return the incident's name."""
    detail = f"{', '.join(orgs)} saw different sums of one round, or one of them says so"
    return ComityError(ErrorCode.SUMS_DIFFER, detail, organisations=",".join(orgs))
