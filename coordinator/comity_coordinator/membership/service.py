"""Invitations, enrolment, rotation, revocation: each one transaction.

The coordinator's authority opens the transport and decides nothing else: what an organisation says counts by its
statement key, which the charter names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR, new_id, org_id
from comity_coordinator.membership import store
from comity_coordinator.membership.model import (
    OPEN_TOKENS_MAX,
    TOKEN_VALID_S_MAX,
    TOKEN_VALID_S_MIN,
    MemberRow,
    Token,
    judge_token,
)
from comity_crypto import x509
from comity_crypto.ed25519 import verify_ed25519
from comity_crypto.keys import MemberKeys, OrgKeys
from comity_crypto.statements import Statement, sign_statement, verify_statement
from comity_crypto.tokens import INVITATION, JoinToken, enrolment_message, invitation_body, rotation_message
from comity_policies.charter import Member

MEMBER_KEYS_BYTES_MAX = 16_384
INVITATION_BYTES_MAX = 16_384
# A join certificate outlives its token a little, so that the holder of an expired token reads TOKEN_EXPIRED and not
# merely a failed handshake.
_AFTERLIFE_S = 86_400


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """The consortium's transport authority, and where the coordinator is reached (host:port)."""

    consortium: str
    key_pem: bytes
    certificate_pem: bytes
    address: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), hexadecimal."""
        return x509.fingerprint(self.certificate_pem)


@dataclass(frozen=True, slots=True, repr=False)
class Invitation:
    """The pieces of a token that only the coordinator can make."""

    token_id: str
    org: str
    join_key_pem: bytes
    join_certificate_pem: bytes
    expires_at: str


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a newcomer sends, as it came."""

    org: str
    invitation: bytes
    csr_pem: bytes
    member_keys: bytes
    binding_signature: bytes
    title: str
    owner: str

    @property
    def digest(self) -> str:
        """Names this very request."""
        parts = (self.org.encode(), self.invitation, self.csr_pem, self.member_keys, self.binding_signature)
        hashed = [hashlib.sha256(part).hexdigest() for part in (*parts, self.title.encode(), self.owner.encode())]
        return canonical.digest(hashed)


class Membership:
    """Use cases. Methods that take `conn` run inside the caller's transaction and may run again."""

    def __init__(self, authority: Authority, keys: OrgKeys, genesis: Callable[[Connection], str | None]) -> None:
        """`keys` are the coordinator's own; `genesis` returns the consortium's name once there is a charter."""
        self._authority = authority
        self._keys = keys
        self._genesis = genesis
        self._enrolled: Callable[[Connection, Member, str], None] | None = None

    def on_enrolled(self, callback: Callable[[Connection, Member, str], None]) -> None:
        """Call `callback(conn, member, sponsor)` in the transaction that enrols an organisation."""
        self._enrolled = callback

    def invite(self, conn: Connection, sponsor: str, org: str, valid_s: int) -> Invitation:
        """Register an invitation by `sponsor` (already admitted, or the coordinator) and issue its join certificate.

        Raises:
            ComityError: `MALFORMED`, `ALREADY_A_MEMBER`, `BUSY` above 100 open tokens of one sponsor.
        """
        org_id(org)
        if not TOKEN_VALID_S_MIN <= valid_s <= TOKEN_VALID_S_MAX:
            raise ComityError(
                ErrorCode.MALFORMED, "a token holds for a minute to a week", valid_s=valid_s, max_s=TOKEN_VALID_S_MAX
            )
        if store.member(conn, org) is not None:
            raise ComityError(ErrorCode.ALREADY_A_MEMBER)
        now = instants.now()
        if store.open_tokens(conn, sponsor, instants.to_text(now)) >= OPEN_TOKENS_MAX:
            raise ComityError(ErrorCode.BUSY, "too many open tokens", limit=OPEN_TOKENS_MAX)
        token_id, authority = new_id("join"), self._authority
        key_pem, certificate_pem = x509.issue_join(
            authority.key_pem, authority.certificate_pem, authority.consortium, token_id, valid_s + _AFTERLIFE_S
        )
        expires_at = instants.to_text(now + timedelta(seconds=valid_s))
        store.add_token(conn, Token(token_id, org, sponsor, x509.fingerprint(certificate_pem), expires_at))
        return Invitation(token_id, org, key_pem, certificate_pem, expires_at)

    def own_token(self, conn: Connection, org: str, valid_s: int) -> JoinToken:
        """Return a token that the coordinator itself sponsors: the first member's, before anybody else can."""
        invitation, authority = self.invite(conn, COORDINATOR, org, valid_s), self._authority
        genesis = self._genesis(conn)
        body = invitation_body(
            token_id=invitation.token_id,
            org=org,
            address=authority.address,
            authority_fingerprint=authority.fingerprint,
            join_certificate_fingerprint=x509.fingerprint(invitation.join_certificate_pem),
            expires_at=invitation.expires_at,
            genesis=genesis,
        )
        statement = sign_statement(
            self._keys, kind=INVITATION, consortium=authority.consortium, issuer=COORDINATOR, body=body
        )
        return JoinToken(
            consortium=authority.consortium,
            org=org,
            token_id=invitation.token_id,
            address=authority.address,
            authority_pem=authority.certificate_pem.decode(),
            authority_fingerprint=authority.fingerprint,
            join_key_pem=invitation.join_key_pem.decode(),
            join_certificate_pem=invitation.join_certificate_pem.decode(),
            expires_at=invitation.expires_at,
            genesis=genesis,
            invitation=statement,
        )

    def enrol(self, conn: Connection, token_id: str, fingerprint: str, request: Enrolment) -> bytes:
        """Use up a token; return the newcomer's TLS certificate, PEM.

        Args:
            conn: the transaction.
            token_id: as in the join certificate that was presented.
            fingerprint: of that certificate.
            request: what was sent.

        Raises:
            ComityError: `TOKEN_INVALID`, `TOKEN_EXPIRED`, `TOKEN_USED`; `SIGNATURE_INVALID` (invitation or binding);
                `POSSESSION_UNPROVEN`; `ALREADY_A_MEMBER`; `CONFLICT` for another member's key; `CERTIFICATE_INVALID`
                for a bad request; `MALFORMED`.
        """
        token = store.token(conn, token_id)
        digest = request.digest
        known = judge_token(token, request.org, fingerprint, digest, instants.now())
        if known is not None:
            return known
        assert token is not None, "judge_token refuses an unknown token"
        self._check_invitation(conn, token, request.invitation)
        keys = self._check_keys(conn, token, request)
        if store.member(conn, request.org) is not None:
            raise ComityError(ErrorCode.ALREADY_A_MEMBER)
        # The charter's own rules for titles and owners hold from the start; whoever gives none goes by its id.
        member = Member(request.org, request.title or request.org, request.owner or request.org, keys)
        certificate_pem = self._issue(request.csr_pem, request.org)
        store.add_member(
            conn,
            MemberRow(
                member.org,
                member.title,
                member.owner,
                keys,
                x509.certificate_serial(certificate_pem),
                None,
                instants.now_text(),
                None,
            ),
        )
        store.use_token(conn, token_id, digest, certificate_pem)
        if self._enrolled is not None:
            self._enrolled(conn, member, token.sponsor)
        return certificate_pem

    def rotate(self, conn: Connection, org: str, csr_pem: bytes, signature: bytes) -> bytes:
        """Issue a new certificate; the present one holds until the new one is presented.

        Raises:
            ComityError: `SIGNATURE_INVALID`, `CERTIFICATE_INVALID`, `NOT_A_MEMBER`.
        """
        verify_ed25519(self.member_keys(conn, org).statement, signature, rotation_message(org, csr_pem))
        certificate_pem = self._issue(csr_pem, org)
        store.set_next_serial(conn, org, x509.certificate_serial(certificate_pem))
        return certificate_pem

    def revoke(self, conn: Connection, org: str) -> None:
        """Refuse the transport to `org` from its next message on. Raises `NOT_A_MEMBER`."""
        self.member_keys(conn, org)
        store.revoke(conn, org, instants.now_text())

    def member_keys(self, conn: Connection, org: str) -> MemberKeys:
        """Return the enrolled public keys of `org`, revoked or not. Raises `NOT_A_MEMBER`."""
        row = store.member(conn, org)
        if row is None:
            raise ComityError(ErrorCode.NOT_A_MEMBER, "the organisation has not enrolled")
        return row.keys

    def members(self, conn: Connection) -> tuple[MemberRow, ...]:
        """Return every enrolled organisation, revoked ones too, by id."""
        return store.all_members(conn)

    def _issue(self, csr_pem: bytes, org: str) -> bytes:
        authority = self._authority
        return x509.issue_node(authority.key_pem, authority.certificate_pem, csr_pem, authority.consortium, org)

    def _check_invitation(self, conn: Connection, token: Token, data: bytes) -> None:
        statement = Statement.from_bytes(data, max_bytes=INVITATION_BYTES_MAX)
        if statement.issuer != token.sponsor:
            raise ComityError(ErrorCode.TOKEN_INVALID, "the invitation is not the sponsor's")
        if token.sponsor == COORDINATOR:
            public = self._keys.public.statement
        else:
            sponsor = store.member(conn, token.sponsor)
            if sponsor is None or sponsor.revoked_at is not None:
                raise ComityError(ErrorCode.TOKEN_INVALID, "the sponsor is no member any more")
            public = sponsor.keys.statement
        verify_statement(statement, public, kind=INVITATION, consortium=self._authority.consortium)
        genesis = statement.body.get("genesis")
        wanted = invitation_body(
            token_id=token.token_id,
            org=token.org,
            address=self._authority.address,
            authority_fingerprint=self._authority.fingerprint,
            join_certificate_fingerprint=token.certificate_fingerprint,
            expires_at=token.expires_at,
            genesis=genesis if isinstance(genesis, str) else None,
        )
        if statement.body != wanted:
            raise ComityError(ErrorCode.TOKEN_INVALID, "the invitation says something else than the token")

    def _check_keys(self, conn: Connection, token: Token, request: Enrolment) -> MemberKeys:
        keys = MemberKeys.from_json(canonical.parse(request.member_keys, max_bytes=MEMBER_KEYS_BYTES_MAX))
        message = enrolment_message(token.token_id, request.csr_pem, request.member_keys)
        verify_ed25519(keys.statement, request.binding_signature, message)
        mine = {keys.statement, keys.certificate, keys.sealing}
        for other in store.all_members(conn):
            if mine & {other.keys.statement, other.keys.certificate, other.keys.sealing}:
                raise ComityError(ErrorCode.CONFLICT, "another member has this key")
        return keys
