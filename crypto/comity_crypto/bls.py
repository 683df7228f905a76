"""BLS12-381 signatures: public keys in G1 (48 bytes), signatures in G2 (96 bytes), compressed.

Ciphersuite `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_` of draft-irtf-cfrg-bls-signature-05 (proof of possession).

Rules:
1. A point is decoded with its subgroup check, and the identity is refused wherever a point enters: a naive pairing
   check accepts the pair (identity key, identity signature) for every message (research/crypto.md section 3).
2. Keys are aggregated only over one message, and only keys whose possession was proven may be aggregated.
3. Checks answer with `bool`; only decoding raises, and then `MALFORMED`.
4. The engine is not constant-time: signing happens at an organisation's own node, never on request of a stranger
   without a decision in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

from comity.wire.errors import ComityError, ErrorCode

PUBLIC_BYTES = 48
SIGNATURE_BYTES = 96
SECRET_BYTES = 32
# The order r of the groups.
ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001

_SIGN_DST = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
_POP_DST = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"


@lru_cache(maxsize=4096)
def public_point(data: bytes) -> G1Point:
    """Decode a public key of 48 bytes. Raises `MALFORMED` off the curve or subgroup, and for the identity.

    Cached, being pure: the subgroup check costs more than the sum it is for. Points are never changed in place.
    """
    if len(data) != PUBLIC_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a BLS public key has 48 bytes")
    try:
        point = G1Point.from_compressed_bytes(data)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not a BLS public key") from error
    if point == G1Point.identity():
        raise ComityError(ErrorCode.MALFORMED, "the identity is not a BLS public key")
    return point


def signature_point(data: bytes) -> G2Point:
    """Decode a signature of 96 bytes. Raises `MALFORMED` off the curve or subgroup, and for the identity."""
    if len(data) != SIGNATURE_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a BLS signature has 96 bytes")
    try:
        point = G2Point.from_compressed_bytes(data)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not a BLS signature") from error
    if point == G2Point.identity():
        raise ComityError(ErrorCode.MALFORMED, "the identity is not a BLS signature")
    return point


def secret_scalar(data: bytes) -> Scalar:
    """Decode a secret key: 32 bytes, big-endian, from 1 to r - 1. Raises `MALFORMED`."""
    if len(data) != SECRET_BYTES or not 0 < int.from_bytes(data, "big") < ORDER:
        raise ComityError(ErrorCode.MALFORMED, "not a BLS secret key")
    return Scalar.from_be_bytes(data)


def public_of(secret: Scalar) -> bytes:
    """Return the public key (48 bytes) of a secret key."""
    return (G1Point() * secret).to_compressed_bytes()


def sign(secret: Scalar, message: bytes) -> bytes:
    """Return the signature (96 bytes) of `message`."""
    return (G2Point.hash_to_curve(message, _SIGN_DST) * secret).to_compressed_bytes()


def prove_possession(secret: Scalar) -> bytes:
    """Return the proof (96 bytes) that the holder of the public key knows its secret (draft section 3.3.2)."""
    return (G2Point.hash_to_curve(public_of(secret), _POP_DST) * secret).to_compressed_bytes()


@lru_cache(maxsize=4096)
def possession_holds(public: bytes, proof: bytes) -> bool:
    """Tell whether `proof` shows possession of `public` (draft section 3.3.3). Never raises; cached, being pure."""
    return _holds([public], public, proof, _POP_DST)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` over `message` holds under `public`. Never raises."""
    return _holds([public], message, signature, _SIGN_DST)


def verify_aggregate(publics: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Tell whether the aggregate `signature` of one `message` holds under all of `publics`. Never raises.

    The caller vouches that possession of every key was proven (`FastAggregateVerify`, draft section 3.3.4).
    """
    return _holds(publics, message, signature, _SIGN_DST)


def aggregate(signatures: Sequence[bytes]) -> bytes:
    """Add signatures (96 bytes each). Raises `MALFORMED` for none, for a bad one, and if the sum is the identity."""
    if not signatures:
        raise ComityError(ErrorCode.MALFORMED, "no signatures to aggregate")
    total = signature_point(signatures[0])
    for data in signatures[1:]:
        total += signature_point(data)
    if total == G2Point.identity():
        raise ComityError(ErrorCode.MALFORMED, "the signatures cancel out")
    return total.to_compressed_bytes()


def _holds(publics: Sequence[bytes], message: bytes, signature: bytes, dst: bytes) -> bool:
    """Check e(sum of keys, H(message)) = e(g1, signature)."""
    if not publics:
        return False
    try:
        total = public_point(publics[0])
        for data in publics[1:]:
            total = total + public_point(data)  # not in place: the first point is in the cache
        point = signature_point(signature)
    except ComityError:
        return False
    if total == G1Point.identity():
        return False
    return GT.pairing_check([total, -G1Point()], [G2Point.hash_to_curve(message, dst), point])
