"""The one place where Ed25519 signatures are checked (ADR-0025): statements, notes, vouchers, enrolment, greetings.

Rules:
1. one implementation, libsodium, decides for every organisation: two that differ on an odd signature would fork;
2. what is odd is refused before or by it: keys and R of small order, keys that are not canonical, S not below the
   group's order; what remains open between implementations is said in the ADR and only a signer can bring about;
3. sizes are checked here, because the library trusts them.
"""

from __future__ import annotations

from functools import lru_cache

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from comity.wire.errors import ComityError, ErrorCode

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
# The y coordinates of the eight points of small order (RFC 8032 curve); such a "key" verifies forged signatures.
_SMALL_Y = frozenset(
    {
        0,
        1,
        _P - 1,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
        _P - 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    }
)


def check_statement_key(data: bytes) -> None:
    """Refuse an Ed25519 key that is not canonical or is of small order. Raises `MALFORMED`."""
    if len(data) != PUBLIC_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a statement key has 32 bytes")
    y = int.from_bytes(data, "little") & ((1 << 255) - 1)
    if y >= _P or y in _SMALL_Y:
        raise ComityError(ErrorCode.MALFORMED, "not a usable statement key")


def verify_ed25519(public: bytes, signature: bytes, message: bytes) -> None:
    """Check `signature` (64 bytes) of `message` under `public` (32 bytes), RFC 8032. Raises `SIGNATURE_INVALID`."""
    if len(signature) != SIGNATURE_BYTES or not holds(public, signature + message):
        raise ComityError(ErrorCode.SIGNATURE_INVALID)


def holds(public: bytes, signed: bytes) -> bool:
    """Tell whether `signed`, a signature and its message one after the other, holds under `public`."""
    if len(signed) < SIGNATURE_BYTES or not _usable(bytes(public)):
        return False
    try:
        crypto_sign_open(bytes(signed), public)
    except BadSignatureError:
        return False
    return True


@lru_cache(maxsize=1_024)
def _usable(public: bytes) -> bool:
    try:
        check_statement_key(public)
    except ComityError:
        return False
    return True
