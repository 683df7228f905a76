"""Boxes for secrets of one session: HPKE to a key that lives for one attempt at one round, or for one ceremony.

1. A key pair is made for one attempt, announced in a signed message, and dropped with the state: nothing that a node
   keeps can open an old box.
2. RFC 9180 base mode, ML-KEM-768 + X25519, SHAKE256, AES-256-GCM. The HPKE info binds the place (agreement, round key,
   order, roster, sender, receiver; secure-aggregation.md section 4 c), so that a box opens in no other one.
3. A box of another size than its purpose's is refused before it is opened.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import bound_info

SEED_BYTES = 32
MATERIAL_BYTES = 96  # randomness of a key pair: ML-KEM 64, X25519 32
BOX_KEY_BYTES = 1216  # ML-KEM-768 1184 + X25519 32
BOX_OVERHEAD_BYTES = 1136  # encapsulation 1120, tag 16
SEED_BOX_BYTES = SEED_BYTES + BOX_OVERHEAD_BYTES
_MLKEM_SEED_BYTES, _MLKEM_PUBLIC_BYTES = 64, 1184
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)


class BoxKey:
    """A private key for boxes, made of 96 bytes of randomness: fresh ones, or the caller's."""

    def __init__(self, material: bytes | None = None) -> None:
        material = os.urandom(MATERIAL_BYTES) if material is None else material
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(material[:_MLKEM_SEED_BYTES])
        curve = x25519.X25519PrivateKey.from_private_bytes(material[_MLKEM_SEED_BYTES:])
        self._private = hpke.MLKEM768X25519PrivateKey(kem, curve)
        self.public: bytes = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "BoxKey(held)"

    def open_box(self, box: bytes, info: bytes, aad: bytes) -> bytes:
        """Open a box of `keys.seal_box`, as organisations' own keys do. Raises `SEAL_BROKEN`."""
        try:
            return _SUITE.decrypt(box, self._private, bound_info(info, aad))
        except (InvalidTag, ValueError) as error:
            raise ComityError(ErrorCode.SEAL_BROKEN, "the key box does not open") from error

    def open(self, box: bytes, info: bytes, size_bytes: int = SEED_BYTES) -> bytes:
        """Return what is in a box. Raises `SEAL_BROKEN` for another key, place or size, or altered bytes."""
        if len(box) != size_bytes + BOX_OVERHEAD_BYTES:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a box has another size", size_bytes=len(box))
        try:
            return _SUITE.decrypt(box, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a box does not open here") from error


def seal(public: bytes, plain: bytes, info: bytes) -> bytes:
    """Return the box of `plain` for an announced key. Raises `MALFORMED` for an impossible key."""
    if len(public) != BOX_KEY_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a box key has another length", size_bytes=len(public))
    try:
        kem = mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES])
        curve = x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:])
        return _SUITE.encrypt(plain, hpke.MLKEM768X25519PublicKey(kem, curve), info)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "a box key is not a key") from error
