"""Boxes for mask seeds: HPKE to a key that lives for one attempt at one round.

1. The key pair is made for one attempt, announced in a signed `Ready`, and dropped with the state: nothing that a node
   keeps can open an old box.
2. RFC 9180 base mode, ML-KEM-768 + X25519, SHAKE256, AES-256-GCM. The HPKE info binds agreement, round key, order,
   roster, sender and receiver (secure-aggregation.md section 4 c), so that a box opens in no other place.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.masks import SEED_BYTES
from comity_crypto.secagg.lead_key.messages import BOX_BYTES, BOX_KEY_BYTES, Offer

_MLKEM_BYTES = 1184
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.SHAKE256, hpke.AEAD.AES_256_GCM)
_INFO = b"comity/secagg/seed/v1\x00"


class BoxKey:
    """One attempt's private key."""

    def __init__(self) -> None:
        x = x25519.X25519PrivateKey.generate()
        kem = mlkem.MLKEM768PrivateKey.generate()
        self._private = hpke.MLKEM768X25519PrivateKey(kem, x)
        self.public: bytes = kem.public_key().public_bytes_raw() + x.public_key().public_bytes_raw()

    def open(self, box: bytes, info: bytes) -> bytes:
        """Return the 32-byte seed. Raises `SEAL_BROKEN` for another key, place or length, or altered bytes."""
        if len(box) != BOX_BYTES:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a seed's box has another length", size_bytes=len(box))
        try:
            seed = _SUITE.decrypt(box, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a seed's box does not open here") from error
        if len(seed) != SEED_BYTES:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a seed is 32 bytes")
        return seed


def seal_seed(public: bytes, seed: bytes, info: bytes) -> bytes:
    """Return the box of a seed for another party's announced key. Raises `MALFORMED` for an impossible key."""
    if len(public) != BOX_KEY_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a box key has another length", size_bytes=len(public))
    try:
        kem = mlkem.MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_BYTES])
        x = x25519.X25519PublicKey.from_public_bytes(public[_MLKEM_BYTES:])
        return _SUITE.encrypt(seed, hpke.MLKEM768X25519PublicKey(kem, x), info)
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "a box key is not a key") from error


def seed_info(offer: Offer, roster_digest: str, sender: str, receiver: str) -> bytes:
    """Return the HPKE info: agreement, round key, order, roster, both parties."""
    place = {
        "agreement": offer.agreement,
        "session": offer.digest,
        "key_id": offer.key_id,
        "order_digest": offer.order_digest,
        "roster": roster_digest,
        "sender": sender,
        "receiver": receiver,
    }
    return _INFO + canonical(place)
