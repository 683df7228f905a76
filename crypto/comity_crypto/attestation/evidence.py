"""What binds evidence to a node and to a moment, and how evidence is refused.

The guest puts `report_data` into what its hardware signs: a digest of the node's statement key and of a nonce that the
verifier drew. Without the key, evidence could be shown by another machine; without the nonce, it could be an old one.
"""

from __future__ import annotations

import hashlib
import hmac

from comity.wire.errors import ComityError, ErrorCode

STATEMENT_KEY_BYTES = 32
NONCE_BYTES = 32
REPORT_DATA_BYTES = 64

_DOMAIN = b"comity/attestation/v1\x00"


def report_data(statement_key: bytes, nonce: bytes) -> bytes:
    """Return the 64 bytes (SHA-512) that a node's evidence carries.

    Args:
        statement_key: the node's Ed25519 public key, 32 bytes.
        nonce: drawn by the verifier for this exchange, 32 bytes.

    Raises:
        ComityError: `MALFORMED` for other sizes.
    """
    if len(statement_key) != STATEMENT_KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a statement key and a nonce have 32 bytes each")
    return hashlib.sha512(_DOMAIN + statement_key + nonce).digest()


def check_binding(found: bytes, statement_key: bytes, nonce: bytes, obligation: int) -> None:
    """Check that evidence carries the digest of this key and nonce. Raises `ATTESTATION_INVALID`, `MALFORMED`."""
    if not hmac.compare_digest(found, report_data(statement_key, nonce)):
        raise refused(obligation, "it is bound to another key or nonce")


def refused(obligation: int, detail: str) -> ComityError:
    """Return the refusal of evidence, with the number of the obligation that does not hold."""
    return ComityError(ErrorCode.ATTESTATION_INVALID, f"obligation {obligation}: {detail}", obligation=obligation)
