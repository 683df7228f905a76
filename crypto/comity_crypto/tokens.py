"""Join tokens, and the bytes that are signed while joining (architecture.md section 4, "Joining").

A token is a line of text that a sponsor hands to a newcomer: where the coordinator is, how to recognise it, a one-use
client key and certificate that may enrol and nothing else, and the sponsor's signed invitation.

Rules
1. The token checks itself: a checksum finds every damaged character; every part that the invitation signs is compared
   with the token's own part, and the authority's certificate with its fingerprint.
2. The sponsor's signature is checked by whoever knows the sponsor's key: the coordinator at enrolment. Whoever alters
   a token on purpose can mend the checksum but not the signature.
3. A token is a secret until it is used; it has no readable `repr`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import x509
from comity_crypto.statements import Statement

PREFIX = "comity-join-1."
TOKEN_CHARS_MAX = 32_768
CHECKSUM_CHARS = 16
INVITATION = "invitation"

_TEXTS = (
    "consortium",
    "org",
    "token_id",
    "address",
    "authority_pem",
    "authority_fingerprint",
    "join_key_pem",
    "join_certificate_pem",
    "expires_at",
)
_FIELDS = frozenset({*_TEXTS, "genesis", "invitation"})


@dataclass(frozen=True, repr=False)
class JoinToken:
    """What a newcomer is handed.

    Args:
        address: host:port of the coordinator.
        authority_fingerprint: SHA-256 of the consortium's authority certificate (DER), hexadecimal.
        join_key_pem: one-use P-256 key. Secret.
        expires_at: RFC 3339.
        genesis: the consortium's name, once there is a genesis charter.
        invitation: statement of kind `invitation`, signed by the sponsor (`coordinator` for the first member).

    Raises:
        ComityError: `TOKEN_INVALID` if the parts do not agree with each other.
    """

    consortium: str
    org: str
    token_id: str
    address: str
    authority_pem: str
    authority_fingerprint: str
    join_key_pem: str
    join_certificate_pem: str
    expires_at: str
    genesis: str | None
    invitation: Statement

    def __post_init__(self) -> None:
        try:
            self._check()
        except ComityError as error:
            if error.code is ErrorCode.TOKEN_INVALID:
                raise
            raise ComityError(ErrorCode.TOKEN_INVALID, "a part of the token has not its form") from error

    def __repr__(self) -> str:
        return f"JoinToken({self.consortium}, {self.org}, {self.token_id})"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read a token's text. Raises `TOKEN_INVALID`; expiry is `check_expiry`'s question."""
        text = text.strip()
        if not text.startswith(PREFIX) or len(text) > TOKEN_CHARS_MAX:
            raise ComityError(ErrorCode.TOKEN_INVALID, f"a join token begins with {PREFIX}")
        encoded, _, checksum = text.removeprefix(PREFIX).partition(".")
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            if _encode(data) != encoded or _checksum(data) != checksum:
                raise ComityError(ErrorCode.TOKEN_INVALID, "the token is damaged")
            value = canonical.parse(data, max_bytes=TOKEN_CHARS_MAX)
            return cls._from_document(value)
        except (binascii.Error, ValueError) as error:
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token is damaged") from error
        except ComityError as error:
            if error.code is ErrorCode.TOKEN_INVALID:
                raise
            # No cause is attached: a token's content is a secret.
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token is damaged") from None

    def to_text(self) -> str:
        """Return the line that is handed over."""
        document: dict[str, Any] = {name: getattr(self, name) for name in _TEXTS}
        document["genesis"] = self.genesis
        document["invitation"] = self.invitation.to_json()
        data = canonical.canonical(document)
        return f"{PREFIX}{_encode(data)}.{_checksum(data)}"

    def check_expiry(self, now: datetime) -> None:
        """Raises `TOKEN_EXPIRED` from the instant of expiry on."""
        if now >= instants.parse(self.expires_at):
            raise ComityError(ErrorCode.TOKEN_EXPIRED)

    @classmethod
    def _from_document(cls, value: Any) -> JoinToken:
        if not isinstance(value, dict) or value.keys() != _FIELDS:
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token is damaged")
        genesis = value["genesis"]
        if any(not isinstance(value[name], str) for name in _TEXTS) or not isinstance(genesis, str | None):
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token is damaged")
        texts = {name: value[name] for name in _TEXTS}
        return cls(**texts, genesis=genesis, invitation=Statement.from_json(value["invitation"]))

    def _check(self) -> None:
        ids.org_id(self.org)
        ids.org_id(self.consortium)
        instants.parse(self.expires_at)
        if not 0 < len(self.address) <= 260 or not self.address.isprintable():
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token's address has not its form")
        body = invitation_body(
            token_id=self.token_id,
            org=self.org,
            address=self.address,
            authority_fingerprint=x509.fingerprint(self.authority_pem.encode()),
            join_certificate_fingerprint=x509.fingerprint(self.join_certificate_pem.encode()),
            expires_at=self.expires_at,
            genesis=self.genesis,
        )
        agrees = (
            self.invitation.kind == INVITATION
            and self.invitation.consortium == self.consortium
            and self.invitation.body == body
            and self.authority_fingerprint == body["authority_fingerprint"]
        )
        if not agrees:
            raise ComityError(ErrorCode.TOKEN_INVALID, "the token's parts do not agree with its invitation")
        x509.check_set(
            self.join_key_pem.encode(),
            self.join_certificate_pem.encode(),
            self.authority_pem.encode(),
            spiffe=ids.spiffe_join(self.consortium, self.token_id),
        )


def invitation_body(
    *,
    token_id: str,
    org: str,
    address: str,
    authority_fingerprint: str,
    join_certificate_fingerprint: str,
    expires_at: str,
    genesis: str | None,
) -> dict[str, Any]:
    """Return the body of the statement of kind `invitation` that the sponsor signs."""
    return {
        "token_id": token_id,
        "org": org,
        "address": address,
        "authority_fingerprint": authority_fingerprint,
        "join_certificate_fingerprint": join_certificate_fingerprint,
        "expires_at": expires_at,
        "genesis": genesis,
    }


def enrolment_message(token_id: str, csr_pem: bytes, member_keys: bytes) -> bytes:
    """Return what a newcomer's statement key signs (`EnrolRequest.binding_signature`).

    Args:
        token_id: the token that is used up.
        csr_pem: the certificate request, as sent.
        member_keys: canonical JSON of `MemberKeys`, as sent.
    """
    digests = hashlib.sha256(csr_pem).digest() + hashlib.sha256(member_keys).digest()
    return b"comity/enrol/v1\x00" + token_id.encode() + b"\x00" + digests


def rotation_message(org: str, csr_pem: bytes) -> bytes:
    """Return what a member's statement key signs to get a new certificate (`RotateCertificateRequest.signature`)."""
    return b"comity/rotate/v1\x00" + org.encode() + b"\x00" + hashlib.sha256(csr_pem).digest()


def welcome_message(certificate_digest: bytes, spiffe: str) -> bytes:
    """Return what the log key signs in `Welcome.signature`.

    Args:
        certificate_digest: SHA-256 of the coordinator's TLS certificate (DER), 32 bytes.
        spiffe: the SPIFFE id of the node that is welcomed.
    """
    return b"comity/welcome/v1\x00" + certificate_digest + spiffe.encode()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(b"comity/join-token/v1\x00" + data).hexdigest()[:CHECKSUM_CHARS]


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
