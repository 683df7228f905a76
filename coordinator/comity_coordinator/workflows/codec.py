"""Payloads at the workflow engine are encrypted: ids and digests only, and those under the coordinator's own key.

AES-256-GCM with a random 96-bit nonce for each payload; the key id travels as metadata. Workflow ids and type names
stay readable at the engine (Temporal's payload codec does not cover them).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from comity.wire.errors import ComityError, ErrorCode

KEY_BYTES = 32
NONCE_BYTES = 12
PAYLOAD_BYTES_MAX = 1 << 20
_ENCODING = b"binary/comity-aes256gcm"


class SealingCodec(PayloadCodec):
    """Encrypts what the SDK sends to the engine and decrypts what comes back."""

    def __init__(self, key: bytes) -> None:
        """Args: `key`, 32 bytes."""
        if len(key) != KEY_BYTES:
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the workflow key has 32 bytes")
        self._cipher = AESGCM(key)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Encrypt each payload."""
        return [self._seal(payload) for payload in payloads]

    async def decode(self, payloads: Iterable[Payload]) -> list[Payload]:
        """Decrypt each payload; one that is not ours is refused. Raises `SEAL_BROKEN`."""
        return [self._open(payload) for payload in payloads]

    def _seal(self, payload: Payload) -> Payload:
        nonce = os.urandom(NONCE_BYTES)
        data = nonce + self._cipher.encrypt(nonce, payload.SerializeToString(), _ENCODING)
        return Payload(metadata={"encoding": _ENCODING}, data=data)

    def _open(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != _ENCODING or len(payload.data) > PAYLOAD_BYTES_MAX:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a payload of the workflow engine is not ours")
        nonce, sealed = payload.data[:NONCE_BYTES], payload.data[NONCE_BYTES:]
        try:
            return Payload.FromString(self._cipher.decrypt(nonce, sealed, _ENCODING))
        except (InvalidTag, ValueError) as error:
            raise ComityError(ErrorCode.SEAL_BROKEN, "a payload of the workflow engine does not open") from error


def load_key(path: Path) -> bytes:
    """Return the key in `path`, made (0600) at the first call. Raises `KEY_UNREADABLE` for a file of another form."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != KEY_BYTES or path.stat().st_mode & 0o077:
            raise ComityError(ErrorCode.KEY_UNREADABLE, "the workflow key has the wrong size or mode") from None
        return key
    key = os.urandom(KEY_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
