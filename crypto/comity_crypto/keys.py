"""The keys of an organisation: public (`MemberKeys`, in the charter) and private (`OrgKeys`, at its node).

Four keys, each for one thing (architecture.md section 4): statements (Ed25519), certificates (BLS12-381 with proof of
possession), sealing (ML-KEM-768 + X25519), and a node secret that never leaves and feeds pseudo-random streams.
The TLS key (P-256) is not here: it is replaced often and lives in the key store.

Rules:
1. Public keys are checked where they enter: lengths, points, small orders, possession. What was built was checked.
2. Private keys have no text form, are never pickled or copied, and compare by identity.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto import bls
from comity_crypto.ed25519 import PUBLIC_BYTES, check_statement_key
from comity_crypto.encoding import fields, from_base64, to_base64

STATEMENT_BYTES = PUBLIC_BYTES
KEM_BYTES = 1184
SEALING_BYTES = KEM_BYTES + 32
# HPKE overhead: encapsulated key (1088 + 32) and the tag (16).
BOX_OVERHEAD_BYTES = 1088 + 32 + 16
SECRET_BYTES = 32
SPELLED_CHARS = 26

# draft-ietf-hpke-pq: the hybrid KEM with the one-stage SHAKE256 key derivation.
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.SHAKE256, AEAD.AES_256_GCM)


def spell(digest_hex: str) -> str:
    """Return the form of a digest that people read to each other: 26 base32 characters (130 bits) in groups.

    Raises:
        ComityError: `MALFORMED` if `digest_hex` is not a SHA-256 in lower-case hexadecimal.
    """
    if len(digest_hex) != 64:
        raise ComityError(ErrorCode.MALFORMED, "not a SHA-256 in lower-case hexadecimal")
    try:
        raw = bytes.fromhex(digest_hex)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not a SHA-256 in lower-case hexadecimal") from error
    text = base64.b32encode(raw).decode("ascii").lower()[:SPELLED_CHARS]
    cuts = (0, 4, 8, 13, 17, 21, 26)
    return "-".join(text[start:end] for start, end in pairwise(cuts))


@dataclass(frozen=True)
class MemberKeys:
    """An organisation's public keys, as the charter names them.

    Args:
        statement: Ed25519, 32 bytes.
        certificate: BLS12-381 G1, compressed, 48 bytes.
        possession: proof of possession of `certificate`, 96 bytes.
        sealing: ML-KEM-768 encapsulation key (1,184 bytes), then the X25519 key (32 bytes).

    Raises:
        ComityError: `MALFORMED` for a wrong length or a bad point. Possession is checked by `from_json` and
            `verify_possession`.
    """

    statement: bytes
    certificate: bytes
    possession: bytes
    sealing: bytes

    def __post_init__(self) -> None:
        _check_public(self.statement, self.certificate, self.possession, self.sealing)

    def to_json(self) -> dict[str, Any]:
        """Return the document form: four base64 fields."""
        return {
            "statement": to_base64(self.statement),
            "certificate": to_base64(self.certificate),
            "possession": to_base64(self.possession),
            "sealing": to_base64(self.sealing),
        }

    @classmethod
    def from_json(cls, value: Any) -> MemberKeys:
        """Read the document form. Raises `MALFORMED`, or `POSSESSION_UNPROVEN` if the proof does not hold."""
        names = frozenset({"statement", "certificate", "possession", "sealing"})
        found = fields(value, names, what="member keys")
        keys = cls(
            statement=from_base64(found["statement"], what="statement", size_bytes=STATEMENT_BYTES),
            certificate=from_base64(found["certificate"], what="certificate", size_bytes=bls.PUBLIC_BYTES),
            possession=from_base64(found["possession"], what="possession", size_bytes=bls.SIGNATURE_BYTES),
            sealing=from_base64(found["sealing"], what="sealing", size_bytes=SEALING_BYTES),
        )
        keys.verify_possession()
        return keys

    def verify_possession(self) -> None:
        """Check that the organisation knows its BLS secret. Raises `POSSESSION_UNPROVEN`."""
        if not bls.possession_holds(self.certificate, self.possession):
            raise ComityError(ErrorCode.POSSESSION_UNPROVEN)

    def fingerprint(self) -> str:
        """Return 26 base32 characters in groups: what two admins compare by telephone."""
        return spell(canonical.digest(self.to_json()))


@dataclass(frozen=True, repr=False)
class OrgSecrets:
    """The stored form of an organisation's private keys; only a key store touches it. Sizes: 32, 32, 64, 32, 32."""

    statement: bytes
    certificate: bytes
    kem: bytes
    exchange: bytes
    node: bytes

    def __repr__(self) -> str:
        return "OrgSecrets(hidden)"

    @classmethod
    def generate(cls) -> OrgSecrets:
        """Draw fresh keys from the operating system's generator."""
        return cls(
            statement=Ed25519PrivateKey.generate().private_bytes_raw(),
            certificate=(secrets.randbelow(bls.ORDER - 1) + 1).to_bytes(bls.SECRET_BYTES, "big"),
            kem=MLKEM768PrivateKey.generate().private_bytes_raw(),
            exchange=X25519PrivateKey.generate().private_bytes_raw(),
            node=secrets.token_bytes(SECRET_BYTES),
        )


class OrgKeys:
    """An organisation's private keys in use. Thread-safe: nothing changes after construction.

    Raises:
        ComityError: `KEY_UNREADABLE` if a stored secret has a wrong size or value.
    """

    __slots__ = ("_bls", "_node", "_sealing", "_statement", "public")

    public: MemberKeys

    def __init__(self, stored: OrgSecrets) -> None:
        try:
            self._statement = Ed25519PrivateKey.from_private_bytes(stored.statement)
            self._bls = bls.secret_scalar(stored.certificate)
            kem = MLKEM768PrivateKey.from_seed_bytes(stored.kem)
            exchange = X25519PrivateKey.from_private_bytes(stored.exchange)
        except (ValueError, ComityError):
            # No cause is attached: a library's text about a secret stays out of logs.
            raise ComityError(ErrorCode.KEY_UNREADABLE, "a stored key has not the right form") from None
        if len(stored.node) != SECRET_BYTES:
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the node secret has not the right form")
        self._node = stored.node
        self._sealing = MLKEM768X25519PrivateKey(kem, exchange)
        self.public = MemberKeys(
            statement=self._statement.public_key().public_bytes_raw(),
            certificate=bls.public_of(self._bls),
            possession=bls.prove_possession(self._bls),
            sealing=kem.public_key().public_bytes_raw() + exchange.public_key().public_bytes_raw(),
        )

    @classmethod
    def generate(cls) -> OrgKeys:
        """Return fresh keys that are stored nowhere (tests, one-off tools)."""
        return cls(OrgSecrets.generate())

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) of `data`; callers prefix a domain (`statements`, `notes`)."""
        return self._statement.sign(data)

    def bls_sign(self, message: bytes) -> bytes:
        """Return the BLS signature (96 bytes) of `message`, which comes from `quorum.message_for`."""
        return bls.sign(self._bls, message)

    def open_box(self, box: bytes, info: bytes, aad: bytes) -> bytes:
        """Open an HPKE box made by `seal_box` with the same `info` and `aad`. Raises `SEAL_BROKEN`."""
        try:
            return _SUITE.decrypt(box, self._sealing, bound_info(info, aad))
        except (InvalidTag, ValueError) as error:
            raise ComityError(ErrorCode.SEAL_BROKEN, "the key box does not open") from error

    def secret(self, label: bytes) -> bytes:
        """Return 32 pseudo-random bytes for `label`: HKDF-SHA-256 (RFC 5869) of the node secret."""
        info = b"comity/secret/v1\x00" + label
        return HKDF(algorithm=hashes.SHA256(), length=SECRET_BYTES, salt=None, info=info).derive(self._node)

    def __repr__(self) -> str:
        return f"OrgKeys({self.public.fingerprint()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("private keys are not pickled or copied")


def seal_box(plain: bytes, receiver: bytes, info: bytes, aad: bytes) -> bytes:
    """Seal `plain` to a sealing key with HPKE (RFC 9180, base mode): `enc || ciphertext`, 1,136 bytes longer.

    Args:
        plain: a small secret, such as a content key.
        receiver: `MemberKeys.sealing`, 1,216 bytes.
        info: the purpose.
        aad: what the box belongs to.

    Raises:
        ComityError: `MALFORMED` if the key is not a sealing key.
    """
    try:
        return _SUITE.encrypt(plain, sealing_public(receiver), bound_info(info, aad))
    except ValueError as error:
        # X25519 with a point of small order: the shared secret would be zero.
        raise ComityError(ErrorCode.MALFORMED, "the sealing key cannot be used") from error


def sealing_public(data: bytes) -> MLKEM768X25519PublicKey:
    """Decode a sealing key of 1,216 bytes. Raises `MALFORMED`."""
    if len(data) != SEALING_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a sealing key has 1216 bytes")
    try:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(data[:KEM_BYTES]), X25519PublicKey.from_public_bytes(data[KEM_BYTES:])
        )
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not a sealing key") from error


@lru_cache(maxsize=4096)
def _check_public(statement: bytes, certificate: bytes, possession: bytes, sealing: bytes) -> None:
    """Check the four parts of `MemberKeys`. Raises `MALFORMED`.

    Cached, being pure: every read of a charter brings the same keys again, and subgroup checks are half of its cost.
    What is refused is not cached, so hostile keys do not push out good ones. Public bytes only.
    """
    check_statement_key(statement)
    bls.public_point(certificate)
    bls.signature_point(possession)
    sealing_public(sealing)


def bound_info(info: bytes, aad: bytes) -> bytes:
    """Bind `aad` through HPKE's `info`: the library's public call takes no associated data, and `info` enters the key
    schedule, so a box opens only under the same pair. The digest's fixed length keeps the split unambiguous."""
    return info + b"\x00" + hashlib.sha256(aad).digest()
