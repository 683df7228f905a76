"""Members and join tokens as values, and the rules that judge them: no clock, no I/O.

Rules
1. A token works once, for one organisation, until it expires, for whoever holds its join certificate. The same request
   sent again (its answer was lost) gets the same answer.
2. An organisation has one current certificate. After a rotation the old one holds until the new one is first presented,
   so that a lost answer locks nobody out; then it is refused.
3. A revoked organisation is refused everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import MemberKeys

TOKEN_VALID_S_MIN = 60
TOKEN_VALID_S_MAX = 7 * 86_400
OPEN_TOKENS_MAX = 100


@dataclass(frozen=True, slots=True)
class MemberRow:
    """An enrolled organisation. Serials are hexadecimal; `next_serial` is a rotated certificate not yet presented."""

    org: str
    title: str
    owner: str
    keys: MemberKeys
    serial: str
    next_serial: str | None
    enrolled_at: str
    revoked_at: str | None


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token. `request_digest` and `certificate_pem` are there once it was used."""

    token_id: str
    org: str
    sponsor: str
    certificate_fingerprint: str
    expires_at: str
    request_digest: str | None = None
    certificate_pem: bytes | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether a certificate is admitted."""

    serial: str
    next_serial: str | None
    revoked: bool


class Presented(StrEnum):
    """Which of an organisation's certificates was presented."""

    CURRENT = "current"
    NEXT = "next"


def judge_certificate(standing: Standing | None, serial: str) -> Presented:
    """Judge a certificate whose chain, dates and name hold.

    Raises:
        ComityError: `NOT_A_MEMBER`, `REVOKED`, or `CERTIFICATE_INVALID` for one that was replaced.
    """
    if standing is None:
        raise ComityError(ErrorCode.NOT_A_MEMBER, "the organisation has not enrolled")
    if standing.revoked:
        raise ComityError(ErrorCode.REVOKED)
    if serial == standing.serial:
        return Presented.CURRENT
    if standing.next_serial is not None and serial == standing.next_serial:
        return Presented.NEXT
    raise ComityError(ErrorCode.CERTIFICATE_INVALID, "this certificate was replaced by a newer one")


def judge_token(token: Token | None, org: str, fingerprint: str, request_digest: str, now: datetime) -> bytes | None:
    """Judge a token that is being used; return the certificate that the same request got before, if it did.

    Raises:
        ComityError: `TOKEN_INVALID` (unknown, another certificate or organisation), `TOKEN_EXPIRED`, `TOKEN_USED`.
    """
    if token is None or token.certificate_fingerprint != fingerprint:
        raise ComityError(ErrorCode.TOKEN_INVALID, "no such token was issued")
    if token.org != org:
        raise ComityError(ErrorCode.TOKEN_INVALID, "the token was issued for another organisation")
    if now >= instants.parse(token.expires_at):
        raise ComityError(ErrorCode.TOKEN_EXPIRED)
    if token.request_digest is None:
        return None
    if token.request_digest != request_digest:
        raise ComityError(ErrorCode.TOKEN_USED)
    return token.certificate_pem
