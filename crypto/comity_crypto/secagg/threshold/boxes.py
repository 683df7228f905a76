"""Boxes for dealt shares: bulk to one holder's key of one ceremony.

1. A fresh 32-byte key goes into a box of `frame.boxes` (HPKE); the bulk is AES-256-GCM under it, once.
2. Both are bound to ceremony, sender and receiver: a box opens in no other place. Its size follows from the plan, and
   any other is refused before it is opened.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from comity.wire.canonical import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame.boxes import SEED_BOX_BYTES, SEED_BYTES, BoxKey, seal
from comity_crypto.secagg.threshold.keys import dealt_bytes
from comity_crypto.secagg.threshold.messages import KeyPlan

_INFO = b"comity/secagg/deal/v1\x00"
_NONCE = bytes(12)  # one message under each key
_TAG_BYTES = 16


def box_bytes(plan: KeyPlan) -> int:
    """Return the exact size of a box of this ceremony."""
    return SEED_BOX_BYTES + plan.keys * dealt_bytes(plan.parameter_set) + _TAG_BYTES


def seal_dealt(plan: KeyPlan, sender: str, receiver: str, public: bytes, dealt: bytes) -> bytes:
    """Return the box of one dealer for one holder, whose announced key is `public`. Raises `MALFORMED`."""
    info, key = _place(plan, sender, receiver), os.urandom(SEED_BYTES)
    return seal(public, key, info) + AESGCM(key).encrypt(_NONCE, dealt, info)


def open_dealt(plan: KeyPlan, sender: str, receiver: str, private: BoxKey, box: bytes) -> bytes:
    """Return what a dealer put in. Raises `SEAL_BROKEN` for another size, key, place, or altered bytes."""
    if len(box) != box_bytes(plan):
        raise ComityError(ErrorCode.SEAL_BROKEN, "a box of a ceremony has another size", org=sender)
    info = _place(plan, sender, receiver)
    try:
        key = private.open(box[:SEED_BOX_BYTES], info)
        return AESGCM(key).decrypt(_NONCE, box[SEED_BOX_BYTES:], info)
    except (ComityError, InvalidTag) as error:
        raise ComityError(ErrorCode.SEAL_BROKEN, "a box of a ceremony does not open here", org=sender) from error


def _place(plan: KeyPlan, sender: str, receiver: str) -> bytes:
    return _INFO + canonical({"ceremony": plan.digest, "sender": sender, "receiver": receiver})
