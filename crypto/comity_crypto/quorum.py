"""Quorum certificates: several organisations said yes to one document, shown by one BLS signature.

Rules:
1. What is signed is `message_for(domain, digest)`: a domain, so that a yes to one kind of document is none to another.
2. A certificate names its signers; they are sorted, distinct, and hold distinct keys. Whether they are *enough* is the
   charter's question (`comity_policies.charter`), whether they signed is answered here.
3. Keys come from the charter in force, where possession of each was proven; identity points are refused (`bls`).
4. `independent_*` repeat the whole judgement through py_ecc, another implementation of the same ciphersuite.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import bls
from comity_crypto.encoding import fields, from_base64, to_base64

SIGNERS_MAX = 1024

_DOMAIN = b"comity/quorum/v1\x00"


@dataclass(frozen=True)
class QuorumCertificate:
    """One aggregate signature (96 bytes) of `signers` over the document with this `digest` (SHA-256, hexadecimal).

    Raises:
        ComityError: `MALFORMED` if the signers are not sorted, distinct ids, or a size is wrong.
    """

    digest: str
    signers: tuple[str, ...]
    signature: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.digest, str):
            raise ComityError(ErrorCode.MALFORMED, "a digest is text")
        ids.sha256_hex(self.digest)
        if not 1 <= len(self.signers) <= SIGNERS_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"a quorum certificate has 1 to {SIGNERS_MAX} signers")
        for org in self.signers:
            if not isinstance(org, str):
                raise ComityError(ErrorCode.MALFORMED, "a signer is an organisation id")
            ids.org_id(org)
        if list(self.signers) != sorted(set(self.signers)):
            raise ComityError(ErrorCode.MALFORMED, "signers are sorted and named once")
        if len(self.signature) != bls.SIGNATURE_BYTES:
            raise ComityError(ErrorCode.MALFORMED, "a BLS signature has 96 bytes")

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {"digest": self.digest, "signers": list(self.signers), "signature": to_base64(self.signature)}

    @classmethod
    def from_json(cls, value: Any) -> QuorumCertificate:
        """Read the document form. Raises `MALFORMED`."""
        found = fields(value, frozenset({"digest", "signers", "signature"}), what="a quorum certificate")
        if not isinstance(found["signers"], list | tuple):
            raise ComityError(ErrorCode.MALFORMED, "signers are a list")
        signature = from_base64(found["signature"], what="signature", size_bytes=bls.SIGNATURE_BYTES)
        return cls(digest=found["digest"], signers=tuple(found["signers"]), signature=signature)


def message_for(domain: str, digest_hex: str) -> bytes:
    """Return the bytes that parties sign for a document: domain such as `agreement`, then its SHA-256.

    Raises:
        ComityError: `MALFORMED`.
    """
    return _DOMAIN + ids.name(domain).encode("ascii") + b"\x00" + bytes.fromhex(ids.sha256_hex(digest_hex))


def bls_verify(pk: bytes, message: bytes, sig: bytes) -> bool:
    """Tell whether one organisation's signature holds; never raises. For partial signatures before aggregation."""
    return bls.verify(pk, message, sig)


def aggregate(signatures: Mapping[str, bytes]) -> bytes:
    """Return the aggregate signature (96 bytes) of {organisation: signature}. Raises `MALFORMED`.

    Check each with `bls_verify` first: one bad signature spoils the sum without naming its author.
    """
    return bls.aggregate([signatures[org] for org in sorted(signatures)])


def make_certificate(digest: str, signatures: Mapping[str, bytes]) -> QuorumCertificate:
    """Return the certificate of {organisation: signature} over the document with `digest`. Raises `MALFORMED`."""
    return QuorumCertificate(digest=digest, signers=tuple(sorted(signatures)), signature=aggregate(signatures))


def verify_certificate(cert: QuorumCertificate, message: bytes, keys: Mapping[str, bytes]) -> None:
    """Check that every named signer signed `message`.

    Args:
        cert: the certificate.
        message: `message_for(domain, cert.digest)`.
        keys: organisation -> BLS public key, for all members under the charter in force.

    Raises:
        ComityError: `QUORUM_MISSING`.
    """
    if not bls.verify_aggregate(_signer_keys(cert, message, keys), message, cert.signature):
        raise ComityError(ErrorCode.QUORUM_MISSING, "the aggregate signature does not hold")


def independent_verify(cert: QuorumCertificate, message: bytes, keys: Mapping[str, bytes]) -> None:
    """As `verify_certificate`, through py_ecc: about 150 times slower, other people's code. Raises `QUORUM_MISSING`."""
    publics = _signer_keys(cert, message, keys)
    if not _oracle().FastAggregateVerify(publics, message, cert.signature):
        raise ComityError(ErrorCode.QUORUM_MISSING, "the aggregate signature does not hold (py_ecc)")


def independent_signature(pk: bytes, message: bytes, sig: bytes) -> bool:
    """As `bls_verify`, through py_ecc."""
    return bool(_oracle().Verify(pk, message, sig))


def independent_possession(pk: bytes, proof: bytes) -> bool:
    """As `bls.possession_holds`, through py_ecc."""
    return bool(_oracle().PopVerify(pk, proof))


def _oracle() -> Any:
    # Imported here: 35 MB that only an offline verifier pays for. Its import raises the recursion limit to 100,000,
    # more than the stack bears when a stranger's nested document is parsed: put back what was there.
    limit = sys.getrecursionlimit()
    from py_ecc.bls import G2ProofOfPossession

    sys.setrecursionlimit(limit)
    return G2ProofOfPossession


def _signer_keys(cert: QuorumCertificate, message: bytes, keys: Mapping[str, bytes]) -> list[bytes]:
    if not (message.startswith(_DOMAIN) and message.endswith(b"\x00" + bytes.fromhex(cert.digest))):
        raise ComityError(ErrorCode.QUORUM_MISSING, "the certificate is for another document")
    missing = [org for org in cert.signers if org not in keys]
    if missing:
        raise ComityError(ErrorCode.QUORUM_MISSING, "a signer is not a member", organisation=missing[0])
    found = [keys[org] for org in cert.signers]
    if len(set(found)) != len(found):
        raise ComityError(ErrorCode.QUORUM_MISSING, "two signers hold the same key")
    return found
