"""Transport certificates: one P-256 authority for each consortium's transport, SPIFFE ids as names.

The coordinator holds this authority, so a certificate opens the port and nothing more: decisions count by statement
and BLS keys, which the charter names (architecture.md section 4, "Joining").

Rules:
1. A request's subject and extensions are ignored; the authority names the organisation, the request only brings a key.
2. Every certificate has exactly one URI name, a SPIFFE id, and exactly one extended key usage: client or server.
3. Nothing outlives the authority; validity begins a minute in the past, because clocks differ.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode

PEM_BYTES_MAX = 1 << 14
AUTHORITY_DAYS = 3650
SERVER_DAYS = 365
NODE_DAYS_MAX = 398
JOIN_SECONDS_MAX = 30 * 86_400
REPLICA_SECONDS_MAX = 30 * 86_400
NAMES_MAX = 32

_BACKDATE = timedelta(minutes=1)


def create_authority(consortium: str) -> tuple[bytes, bytes]:
    """Return (key PEM, self-signed certificate PEM) of a new transport authority. Raises `MALFORMED`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"{_label(consortium)} transport authority"[:64])
    start = instants.now() - _BACKDATE
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def make_csr(common_name: str) -> tuple[bytes, bytes]:
    """Return (key PEM, request PEM) for a fresh P-256 key. Raises `MALFORMED`."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(_subject(_label(common_name))).sign(key, hashes.SHA256())
    )
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def issue_node(
    ca_key_pem: bytes, ca_cert_pem: bytes, csr_pem: bytes, consortium: str, org: str, valid_days: int = 90
) -> bytes:
    """Issue a member's client certificate for the key in `csr_pem`.

    Raises:
        ComityError: `CERTIFICATE_INVALID` if the request is unreadable, not signed by its own key, or not P-256;
            `MALFORMED` for a bad name or validity.
    """
    if not 1 <= valid_days <= NODE_DAYS_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"a node's certificate holds for 1 to {NODE_DAYS_MAX} days")
    public = _request_key(csr_pem)
    uri = ids.spiffe_org(_label(consortium), ids.org_id(org))
    return _issue(
        ca_key_pem, ca_cert_pem, public, org, [_uri(uri)], timedelta(days=valid_days), ExtendedKeyUsageOID.CLIENT_AUTH
    )


def issue_join(
    ca_key_pem: bytes, ca_cert_pem: bytes, consortium: str, token_id: str, valid_s: int
) -> tuple[bytes, bytes]:
    """Return (key PEM, certificate PEM) of a join token: it authorises the enrolment service only.

    Raises:
        ComityError: `MALFORMED` for a bad name or validity.
    """
    if not 1 <= valid_s <= JOIN_SECONDS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a join token holds for 1 second to 30 days")
    key = ec.generate_private_key(ec.SECP256R1())
    uri = ids.spiffe_join(_label(consortium), _label(token_id))
    certificate = _issue(
        ca_key_pem,
        ca_cert_pem,
        key.public_key(),
        token_id,
        [_uri(uri)],
        timedelta(seconds=valid_s),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    return _key_pem(key), certificate


def issue_replica(
    ca_key_pem: bytes, ca_cert_pem: bytes, consortium: str, replica: str, valid_s: int
) -> tuple[bytes, bytes]:
    """Return (key PEM, certificate PEM) with which a coordinator's replica calls the others.

    Raises:
        ComityError: `MALFORMED` for a bad name or validity.
    """
    if not 1 <= valid_s <= REPLICA_SECONDS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a replica's certificate holds for 1 second to 30 days")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _issue(
        ca_key_pem,
        ca_cert_pem,
        key.public_key(),
        ids.org_id(replica),
        [_uri(ids.spiffe_replica(_label(consortium), replica))],
        timedelta(seconds=valid_s),
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    return _key_pem(key), certificate


def issue_server(
    ca_key_pem: bytes, ca_cert_pem: bytes, consortium: str, dns_names: Sequence[str], ips: Sequence[str]
) -> tuple[bytes, bytes]:
    """Return (key PEM, certificate PEM) of the coordinator's server for the given names and addresses.

    Raises:
        ComityError: `MALFORMED` if a name is not ASCII, an address is not one, or there are none or too many.
    """
    names = _server_names(dns_names, ips)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _issue(
        ca_key_pem,
        ca_cert_pem,
        key.public_key(),
        ids.COORDINATOR,
        [*names, _uri(ids.spiffe_coordinator(_label(consortium)))],
        timedelta(days=SERVER_DAYS),
        ExtendedKeyUsageOID.SERVER_AUTH,
    )
    return _key_pem(key), certificate


def self_signed(dns_names: Sequence[str], ips: Sequence[str], valid_days: int = SERVER_DAYS) -> tuple[bytes, bytes]:
    """Return (key PEM, certificate PEM) of a server that vouches for itself: clients pin this very certificate.

    Raises:
        ComityError: `MALFORMED` as `issue_server`, or for a bad validity.
    """
    if not 1 <= valid_days <= NODE_DAYS_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"a server's certificate holds for 1 to {NODE_DAYS_MAX} days")
    names = _server_names(dns_names, ips)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject((*dns_names, *ips)[0][:64])
    start = instants.now() - _BACKDATE
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(cert_pem: bytes) -> str:
    """Return the lower-case hexadecimal SHA-256 of the certificate's DER form. Raises `CERTIFICATE_INVALID`."""
    return hashlib.sha256(_certificate(cert_pem).public_bytes(serialization.Encoding.DER)).hexdigest()


def spiffe_of(cert: bytes) -> str:
    """Return the SPIFFE id of a certificate in DER or PEM: its one and only URI name. Raises `CERTIFICATE_INVALID`."""
    try:
        names = _certificate(cert).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate carries no name") from error
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate must carry exactly one URI name")
    return uris[0]


def certificate_serial(cert_pem: bytes) -> str:
    """Return the serial number in lower-case hexadecimal. Raises `CERTIFICATE_INVALID`."""
    return f"{_certificate(cert_pem).serial_number:x}"


def expires_at(cert_pem: bytes) -> datetime:
    """Return the instant after which the certificate no longer holds. Raises `CERTIFICATE_INVALID`."""
    return _certificate(cert_pem).not_valid_after_utc


def check_set(key_pem: bytes, cert_pem: bytes, ca_pem: bytes, *, spiffe: str | None = None) -> None:
    """Check that key, certificate and authority belong together and, if given, that the certificate says `spiffe`.

    Raises:
        ComityError: `CERTIFICATE_INVALID`.
    """
    certificate = _certificate(cert_pem)
    key = _private(key_pem)
    if _certificate_key(certificate) != key.public_key():
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate was issued for another key")
    try:
        certificate.verify_directly_issued_by(_certificate(ca_pem))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate comes from another authority") from error
    if spiffe is not None and spiffe_of(cert_pem) != spiffe:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate names somebody else")


def _issue(
    ca_key_pem: bytes,
    ca_cert_pem: bytes,
    public: ec.EllipticCurvePublicKey,
    common_name: str,
    names: Sequence[x509.GeneralName],
    validity: timedelta,
    usage: ObjectIdentifier,
) -> bytes:
    ca_key, authority = _private(ca_key_pem), _certificate(ca_cert_pem)
    if _certificate_key(authority) != ca_key.public_key():
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the authority's key and certificate do not belong together")
    if public == ca_key.public_key():
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the request uses the authority's own key")
    now = instants.now()
    if authority.not_valid_after_utc <= now:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the authority has expired")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(common_name))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(now + validity, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _server_names(dns_names: Sequence[str], ips: Sequence[str]) -> list[x509.GeneralName]:
    """Return a server's names. Raises `MALFORMED` if there are none, too many, or one is neither."""
    if not 1 <= len(dns_names) + len(ips) <= NAMES_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"a server has 1 to {NAMES_MAX} names")
    try:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
        return names + [x509.IPAddress(ipaddress.ip_address(address)) for address in ips]
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not a DNS name or IP address") from error


def _request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    _bounded(csr_pem)
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        signed, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the request cannot be read") from error
    if not signed:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the request is not signed by its own key")
    return _p256(key)


def _certificate(data: bytes) -> x509.Certificate:
    _bounded(data)
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate cannot be read") from error


def _certificate_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        return _p256(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "the certificate's key cannot be read") from error


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    _bounded(pem)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # No cause is attached: a parser's text about a secret stays out of logs.
        raise ComityError(ErrorCode.KEY_UNREADABLE, "a transport key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ComityError(ErrorCode.KEY_UNREADABLE, "a transport key is not P-256")
    return key


def _p256(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "transport keys are P-256")
    return key


def _bounded(data: bytes) -> None:
    if len(data) > PEM_BYTES_MAX:
        raise ComityError(ErrorCode.CERTIFICATE_INVALID, "too large to be a certificate", limit_bytes=PEM_BYTES_MAX)


def _label(text: str) -> str:
    """Return `text` if it can stand in a SPIFFE id. Raises `MALFORMED`."""
    return text if text == ids.COORDINATOR else ids.org_id(text)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
