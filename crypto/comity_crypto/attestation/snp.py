"""AMD SEV-SNP attestation reports, verified offline with `cryptography` alone.

Numbered obligations, the same numbers in code, refusals and tests:

1. form: 1,184 bytes, version 2 to 5, signed with ECDSA P-384, by the chip's own key (VCEK);
2. chain: VCEK <- ASK <- ARK, RSASSA-PSS with SHA-384 under 4096-bit keys, valid now, and the ARK (as it came, DER or
   PEM) is one of those whose SHA-256 the verifier trusts (a charter records them as trust roots of the kind `sev-snp`);
3. signature: the VCEK signed the first 672 bytes;
4. chip: the VCEK is that of the report's chip, at the report's firmware versions (TCB);
5. guest policy: no debugging, no migration agent; the report comes from privilege level 0 (`vmpl_max`);
6. firmware: every reported and committed version is at least the verifier's floor;
7. measurement: the launched image is one that the verifier expects;
8. binding: report_data is the digest of the node's statement key and of the verifier's nonce (`evidence`).

Facts: SEV Secure Nested Paging Firmware ABI Specification (document 56860), tables "ATTESTATION_REPORT" and
"TCB_VERSION"; VCEK Certificate and KDS Interface Specification (document 57230), table of extensions. Family 1Ah
(Turin) lays out its versions otherwise and is refused; so are reports signed with a provider's key (VLEK). Revocation
lists are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from comity_crypto.attestation.evidence import check_binding, refused

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
CERTIFICATE_BYTES_MAX = 16 << 10
MEASUREMENT_BYTES = 48
VERSIONS = range(2, 6)
# From version 3 on a report names its processor's family; Milan, Genoa and their kin are 19h.
FAMILY = 0x19

_ECDSA_P384_SHA384 = 1
_KEY_BITS = 4096
_SIGNING_KEY_VCEK = 0
_DEBUG_BIT, _MIGRATION_BIT, _ALWAYS_BIT = 1 << 19, 1 << 18, 1 << 17
_HARDWARE_ID = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
_VERSIONS_OF = {
    "boot_loader": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.1"),
    "tee": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.2"),
    "snp": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.3"),
    "microcode": x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.3.8"),
}


@dataclass(frozen=True, slots=True)
class Tcb:
    """Security versions of a platform's firmware."""

    boot_loader: int
    tee: int
    snp: int
    microcode: int

    @classmethod
    def read(cls, data: bytes) -> Tcb:
        """Read a TCB_VERSION of 8 bytes as family 19h lays it out."""
        return cls(boot_loader=data[0], tee=data[1], snp=data[6], microcode=data[7])

    def reaches(self, floor: Tcb) -> bool:
        """Tell whether every version is at least that of `floor`."""
        return all(getattr(self, name) >= getattr(floor, name) for name in _VERSIONS_OF)


@dataclass(frozen=True, slots=True)
class Chain:
    """Three certificates, each DER or PEM as its file has it: the chip's key, AMD's signing key, AMD's root."""

    vcek: bytes
    ask: bytes
    ark: bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """What a verifier asks of a report.

    Args:
        roots: SHA-256 (hexadecimal) of the files of trusted ARKs, DER or PEM.
        measurements: accepted launch measurements, 48 bytes each.
        floor: lowest accepted firmware versions.
        vmpl_max: highest accepted privilege level, 0 the most privileged.
    """

    roots: frozenset[str]
    measurements: frozenset[bytes]
    floor: Tcb
    vmpl_max: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The fields of a report that are judged; a report that was not verified says nothing."""

    version: int
    guest_policy: int
    vmpl: int
    report_data: bytes
    measurement: bytes
    chip: bytes
    reported: Tcb
    committed: Tcb
    signed: bytes
    r: int
    s: int


def verify(report: bytes, chain: Chain, policy: Policy, *, statement_key: bytes, nonce: bytes, now: datetime) -> Report:
    """Verify a report against all eight obligations.

    Args:
        report: the ATTESTATION_REPORT as the guest handed it over.
        chain: its certificates, as files.
        policy: what is asked of it.
        statement_key: the node's Ed25519 public key, 32 bytes.
        nonce: drawn by the verifier, 32 bytes.
        now: an instant with its time zone.

    Raises:
        ComityError: `ATTESTATION_INVALID` with the fact `obligation`; `MALFORMED` for a key or nonce of another size.
    """
    found = read(report)
    vcek = verify_chain(chain, policy.roots, now)
    _check_signature(found, vcek)
    _check_chip(found, vcek)
    _check_guest(found, policy)
    if not (found.reported.reaches(policy.floor) and found.committed.reaches(policy.floor)):
        raise refused(6, "the platform's firmware is older than accepted")
    if found.measurement not in policy.measurements:
        raise refused(7, "the measurement is none of those expected")
    check_binding(found.report_data, statement_key, nonce, 8)
    return found


def read(data: bytes) -> Report:
    """Obligation 1: read a report. Raises `ATTESTATION_INVALID`."""
    if len(data) != REPORT_BYTES:
        raise refused(1, f"a report has {REPORT_BYTES} bytes")
    version = int.from_bytes(data[0:4], "little")
    if version not in VERSIONS or int.from_bytes(data[0x34:0x38], "little") != _ECDSA_P384_SHA384:
        raise refused(1, "its version or signature algorithm is not supported")
    if version >= 3 and data[0x188] != FAMILY:
        raise refused(1, "its processor's family is not supported")
    flags = int.from_bytes(data[0x48:0x4C], "little")
    if flags >> 2 & 0b111 != _SIGNING_KEY_VCEK or flags & 0b10:
        raise refused(1, "it is not signed by the chip's own key, or hides the chip")
    return Report(
        version=version,
        guest_policy=int.from_bytes(data[0x08:0x10], "little"),
        vmpl=int.from_bytes(data[0x30:0x34], "little"),
        report_data=data[0x50:0x90],
        measurement=data[0x90 : 0x90 + MEASUREMENT_BYTES],
        chip=data[0x1A0:0x1E0],
        reported=Tcb.read(data[0x180:0x188]),
        committed=Tcb.read(data[0x1E0:0x1E8]),
        signed=data[:SIGNED_BYTES],
        r=int.from_bytes(data[0x2A0:0x2E8], "little"),
        s=int.from_bytes(data[0x2E8:0x330], "little"),
    )


def verify_chain(chain: Chain, roots: frozenset[str], now: datetime) -> x509.Certificate:
    """Obligation 2: verify the three certificates; return the VCEK. Raises `ATTESTATION_INVALID`."""
    vcek, ask, ark = (_certificate(each) for each in (chain.vcek, chain.ask, chain.ark))
    # AMD hands the root out as PEM, a guest's firmware as DER: one certificate, whichever file was put on record.
    spellings = (chain.ark, ark.public_bytes(Encoding.DER), ark.public_bytes(Encoding.PEM))
    if roots.isdisjoint(hashlib.sha256(each).hexdigest() for each in spellings):
        raise refused(2, "the root is not a trusted one")
    for issued, issuer in ((vcek, ask), (ask, ark), (ark, ark)):
        _check_issued(issued, issuer)
    for each, authority in ((vcek, False), (ask, True), (ark, True)):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise refused(2, "a certificate is not valid now")
        if _is_authority(each) != authority:
            raise refused(2, "a certificate stands in another's place")
    return vcek


def _certificate(data: bytes) -> x509.Certificate:
    if len(data) > CERTIFICATE_BYTES_MAX:
        raise refused(2, "a certificate is too large")
    try:
        if data.startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise refused(2, "a certificate is not well formed") from error


def _check_issued(issued: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        key, scheme = issuer.public_key(), issued.signature_algorithm_parameters
        sound = (
            isinstance(key, rsa.RSAPublicKey)
            and key.key_size == _KEY_BITS
            and isinstance(scheme, padding.PSS)
            and isinstance(issued.signature_hash_algorithm, hashes.SHA384)
        )
        if not sound:
            raise refused(2, "a certificate is not signed with RSASSA-PSS, SHA-384 and 4096 bits")
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise refused(2, "a certificate is not signed by the next") from error


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False
    except (ValueError, x509.DuplicateExtension) as error:
        raise refused(2, "a certificate's extensions are not well formed") from error


def _check_signature(report: Report, vcek: x509.Certificate) -> None:
    try:
        key = vcek.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise refused(3, "the VCEK is not a P-384 key")
        key.verify(encode_dss_signature(report.r, report.s), report.signed, ec.ECDSA(hashes.SHA384()))
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise refused(3, "the VCEK did not sign this report") from error


def _check_chip(report: Report, vcek: x509.Certificate) -> None:
    hardware = _extension(vcek, _HARDWARE_ID)
    # The identifier stands bare in AMD's certificates; the specification calls it an octet string of 64 bytes.
    if hardware not in (report.chip, b"\x04\x40" + report.chip) or not any(report.chip):
        raise refused(4, "the VCEK is another chip's")
    versions = {name: _small_integer(_extension(vcek, oid)) for name, oid in _VERSIONS_OF.items()}
    if Tcb(**versions) != report.reported:
        raise refused(4, "the VCEK is for other firmware versions")


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise refused(4, "the VCEK lacks one of AMD's extensions") from error
    if not isinstance(value, x509.UnrecognizedExtension):
        raise refused(4, "one of AMD's extensions is something else")
    return value.value


def _small_integer(data: bytes) -> int:
    """Read a DER INTEGER from 0 to 255: two bytes from 128 on, since the first would be a sign."""
    value = int.from_bytes(data[2:], "big")
    if data != _der_integer(value):
        raise refused(4, "a firmware version is not a small number")
    return value


def _der_integer(value: int) -> bytes:
    body: Sequence[int] = [value] if value < 128 else [0, value]
    return bytes([2, len(body), *body]) if value < 256 else b""


def _check_guest(report: Report, policy: Policy) -> None:
    if not report.guest_policy & _ALWAYS_BIT:
        raise refused(5, "the guest's policy is not well formed")
    if report.guest_policy & _DEBUG_BIT:
        raise refused(5, "the guest may be debugged: it hides nothing from its host")
    if report.guest_policy & _MIGRATION_BIT:
        raise refused(5, "the guest may be moved by a migration agent")
    if report.vmpl > policy.vmpl_max:
        raise refused(5, "the report comes from a less privileged part of the guest")
