"""Joining a consortium, inviting others, rotating the TLS key (architecture.md section 4, "Joining").

Rules:
1. Keys are made here and their private parts never leave; only public parts and a certificate request are sent.
2. `join` stops without a genesis digest typed by hand when the consortium has a charter: the token's own copy of it is
   what the sender of the token says (negotiation.md section 6).
3. A request that may have reached the coordinator is repeated byte by byte: key and certificate request lie on disk
   before they are sent, so that a crash or a lost answer costs nothing.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from comity.v1 import enrolment_pb2, enrolment_pb2_grpc, membership_pb2
from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import x509
from comity_crypto.keys import OrgKeys, spell
from comity_crypto.keystore import FileKeyStore
from comity_crypto.statements import sign_statement
from comity_crypto.tokens import INVITATION, JoinToken, enrolment_message, invitation_body, rotation_message
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.moving import Moved, book, import_tables
from comity_node.settings import NodeSettings, write_private
from comity_node.transport.dial import Dialer, ask, dial_with
from comity_policies.bundle import write_defaults

GENESIS_CHARS_MIN = 24
INVITATION_VALID_S = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Joined:
    """What `join` came to: whom this node is now, and the fingerprint to compare by telephone."""

    org: str
    consortium: str
    fingerprint: str


async def join(
    token_text: str, home: Path, genesis: str | None, *, title: str | None = None, owner: str | None = None
) -> Joined:
    """Make this folder the node of the organisation that the token names.

    Args:
        token_text: the token, a secret until it is used.
        home: the node's folder; created, 0700.
        genesis: the consortium's genesis digest, obtained outside the coordinator; None for a founder.
        title: what people call the organisation (default: its id).
        owner: its legal owner (default: its id).

    Raises:
        ComityError: `TOKEN_INVALID`, `TOKEN_EXPIRED`, `TOKEN_USED`, `GENESIS_MISMATCH`, `ALREADY_A_MEMBER`,
            `CERTIFICATE_INVALID`, `UNAVAILABLE`.
    """
    token = JoinToken.parse(token_text)
    token.check_expiry(instants.now())
    _check_genesis(token, genesis)
    _make_home(home)
    keystore = FileKeyStore(home / "keys")
    keys = keystore.load() if keystore.exists() else keystore.create()
    request = _pending_request(home / "keys" / "join.pending", token.token_id, token.org)
    response = await _enrol(token, keys, request, title or token.org, owner or token.org)
    authority = token.authority_pem.encode()
    if x509.fingerprint(response.authority_pem) != token.authority_fingerprint:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the coordinator's authority is not the token's")
    spiffe = ids.spiffe_org(token.consortium, token.org)
    x509.check_set(request.key_pem, response.certificate_pem, authority, spiffe=spiffe)
    settings = _settings(token, home, genesis, title or token.org, owner or token.org, response.log_key)
    keystore.store_tls(request.key_pem, response.certificate_pem, authority)
    settings.make_folders()
    write_defaults(settings.policy_folder, settings.org)
    write_private(settings.token_file, secrets.token_urlsafe(32).encode() + b"\n")
    settings.save()
    (home / "keys" / "join.pending").unlink(missing_ok=True)
    return Joined(settings.org, settings.consortium, keys.public.fingerprint())


async def adopt(token_text: str, home: Path) -> tuple[str, Moved]:
    """Point this node to another coordinator; it keeps keys, journal and chain of charters.

    Returns where it dials, and what was under way (`moving.py`).

    The node must be stopped. Whether the other coordinator counts is the members' decision: until a charter that they
    have certified names its log, this node believes nothing that only a coordinator can say.

    Args:
        token_text: a token that the other coordinator made for this organisation.
        home: the node's folder.

    Raises:
        ComityError: `NOT_FOUND` before `join`; `GENESIS_MISMATCH` if the token is for another consortium than this
            node's chain of charters; `FORBIDDEN` if it is for another organisation; and what `join` raises.
    """
    settings, token = NodeSettings.load(home), JoinToken.parse(token_text)
    token.check_expiry(instants.now())
    if (token.org, token.consortium) != (settings.org, settings.consortium):
        raise ComityError(ErrorCode.FORBIDDEN, "the token is for another organisation or consortium")
    import_tables()
    journal = Journal.open(settings.journal_file)
    try:
        journal.create_all()
        charters = CharterStore(settings, journal)
        charters.load()
        _check_genesis(token, charters.genesis_name() or "")
        keystore = FileKeyStore(settings.keys_folder)
        request = _pending_request(settings.keys_folder / "adopt.pending", token.token_id, token.org)
        response = await _enrol(token, keystore.load(), request, settings.title, settings.owner)
        authority = token.authority_pem.encode()
        if x509.fingerprint(response.authority_pem) != token.authority_fingerprint:
            raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the coordinator's authority is not the token's")
        x509.check_set(request.key_pem, response.certificate_pem, authority, spiffe=settings.spiffe_id)
        # Each step may be done again: after a crash the same token goes on from here.
        moved = journal.transact(lambda conn: book(conn, settings.org, instants.now_text()))
        keystore.store_tls(request.key_pem, response.certificate_pem, authority)
        log_key = base64.b64encode(response.log_key).decode()
        settings.model_copy(update={"coordinator": token.address, "log_key": log_key}).save()
        (settings.keys_folder / "adopt.pending").unlink(missing_ok=True)
    finally:
        journal.close()
    return token.address, moved


async def rotate(home: Path) -> str:
    """Replace the TLS key and certificate; returns the new certificate's serial number.

    A node that runs dials again by itself when the coordinator refuses the old certificate.

    Raises:
        ComityError: `NOT_FOUND` before `join`, `REVOKED`, `CERTIFICATE_INVALID`, `UNAVAILABLE`.
    """
    settings = NodeSettings.load(home)
    keystore = FileKeyStore(settings.keys_folder)
    keys, paths = keystore.load(), keystore.tls_paths()
    former = x509.certificate_serial(paths.cert.read_bytes())
    pending = settings.keys_folder / "rotate.pending"
    request = _pending_request(pending, former, settings.org)
    signature = keys.sign(rotation_message(settings.org, request.csr_pem))
    dialer = Dialer(settings.coordinator, keystore)
    try:
        answer = await ask(
            dialer.membership().RotateCertificate,
            membership_pb2.RotateCertificateRequest(csr_pem=request.csr_pem, signature=signature),
        )
    finally:
        await dialer.close()
    authority = paths.ca.read_bytes()
    x509.check_set(request.key_pem, answer.certificate_pem, authority, spiffe=settings.spiffe_id)
    keystore.store_tls(request.key_pem, answer.certificate_pem, authority)
    pending.unlink(missing_ok=True)
    return x509.certificate_serial(answer.certificate_pem)


async def invite(
    dialer: Dialer,
    keys: OrgKeys,
    settings: NodeSettings,
    org: str,
    genesis: str | None,
    *,
    authority_pem: bytes,
    valid_s: int = INVITATION_VALID_S,
) -> str:
    """Sponsor `org`: return the text of a signed, single-use join token.

    Args:
        dialer: connection to the coordinator.
        keys: the sponsor's.
        settings: the sponsor's.
        org: the newcomer.
        genesis: the consortium's name, once there is a genesis charter.
        authority_pem: the authority that this node pinned when it joined.
        valid_s: seconds until the token expires.

    Raises:
        ComityError: `MALFORMED` for an id that is none, `CERTIFICATE_INVALID` if the coordinator names another
            authority, and its refusals.
    """
    request = membership_pb2.IssueInvitationRequest(org=ids.org_id(org), valid_s=valid_s)
    pieces = await ask(dialer.membership().IssueInvitation, request)
    fingerprint = x509.fingerprint(authority_pem)
    if x509.fingerprint(pieces.authority_pem) != fingerprint:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the coordinator names another authority than we pinned")
    body = invitation_body(
        token_id=pieces.token_id,
        org=org,
        address=pieces.address,
        authority_fingerprint=fingerprint,
        join_certificate_fingerprint=x509.fingerprint(pieces.join_certificate_pem),
        expires_at=pieces.expires_at,
        genesis=genesis,
    )
    invitation = sign_statement(keys, kind=INVITATION, consortium=settings.consortium, issuer=settings.org, body=body)
    token = JoinToken(
        consortium=settings.consortium,
        org=org,
        token_id=pieces.token_id,
        address=pieces.address,
        authority_pem=authority_pem.decode(),
        authority_fingerprint=fingerprint,
        join_key_pem=pieces.join_key_pem.decode(),
        join_certificate_pem=pieces.join_certificate_pem.decode(),
        expires_at=pieces.expires_at,
        genesis=genesis,
        invitation=invitation,
    )
    return token.to_text()


def _make_home(home: Path) -> None:
    if (home / "node.json").exists():
        raise ComityError(ErrorCode.ALREADY_A_MEMBER, "this folder is a node already")
    if (home / "coordinator.json").exists():
        # A node in there would take the coordinator's keys for its own.
        raise ComityError(ErrorCode.CONFLICT, "this folder is a coordinator's; give the node a folder of its own")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True, repr=False)
class _Request:
    """A key and its certificate request, as they lie on disk until the certificate is there."""

    key_pem: bytes
    csr_pem: bytes


def _pending_request(path: Path, purpose: str, org: str) -> _Request:
    """Return the request kept at `path` for `purpose`, or make and keep a new one."""
    if path.exists():
        try:
            kept = json.loads(path.read_bytes())
            if kept["purpose"] == purpose:
                return _Request(kept["key_pem"].encode(), kept["csr_pem"].encode())
        except (ValueError, KeyError, TypeError, AttributeError):
            # No cause is attached: a parser's text about a secret stays out of logs.
            raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is damaged; remove it") from None
    key_pem, csr_pem = x509.make_csr(org)
    document = {"purpose": purpose, "key_pem": key_pem.decode(), "csr_pem": csr_pem.decode()}
    write_private(path, canonical.canonical(document))
    return _Request(key_pem, csr_pem)


async def _enrol(
    token: JoinToken, keys: OrgKeys, request: _Request, title: str, owner: str
) -> enrolment_pb2.EnrolResponse:
    member_keys = canonical.canonical(keys.public.to_json())
    channel = dial_with(
        token.address,
        token.join_key_pem.encode(),
        token.join_certificate_pem.encode(),
        token.authority_pem.encode(),
    )
    stub: enrolment_pb2_grpc.EnrolmentServiceAsyncStub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
    try:
        return await ask(
            stub.Enrol,
            enrolment_pb2.EnrolRequest(
                org=token.org,
                invitation=token.invitation.to_bytes(),
                csr_pem=request.csr_pem,
                member_keys=member_keys,
                binding_signature=keys.sign(enrolment_message(token.token_id, request.csr_pem, member_keys)),
                title=title,
                owner=owner,
            ),
        )
    finally:
        await channel.close()


def _settings(
    token: JoinToken, home: Path, genesis: str | None, title: str, owner: str, log_key: bytes
) -> NodeSettings:
    try:
        return NodeSettings(
            home=home,
            org=token.org,
            consortium=token.consortium,
            title=title,
            owner=owner,
            coordinator=token.address,
            log_key=base64.b64encode(log_key).decode(),
            genesis=genesis,
        )
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "the coordinator's answer or the token has not its form") from error


def _check_genesis(token: JoinToken, typed: str | None) -> None:
    if token.genesis is None and typed is None:
        return  # a founder: the digest is typed when the genesis charter is signed
    if typed is None:
        raise ComityError(
            ErrorCode.GENESIS_MISMATCH, "give --genesis: the digest obtained outside the coordinator, typed by hand"
        )
    plain = _plain_genesis(typed)
    if len(plain) < GENESIS_CHARS_MIN:
        raise ComityError(ErrorCode.GENESIS_MISMATCH, "at least 24 characters of the digest are needed")
    if token.genesis is not None and not hmac.compare_digest(_plain_genesis(token.genesis)[: len(plain)], plain):
        raise ComityError(ErrorCode.GENESIS_MISMATCH, "the token is for another consortium than the digest names")


def _plain_genesis(text: str) -> str:
    """Return at most 26 base32 characters of a name or of a full hexadecimal digest, for comparison."""
    plain = "".join(text[:200].split()).replace("-", "").lower()
    if not plain.isascii():
        return ""
    if len(plain) == 64:
        return spell(plain).replace("-", "")
    return plain[:26]
