"""`python unsealed_node.py node up --home HOME`: a node whose payloads are not sealed, to see whether a test notices.

For the control run only: the cipher of sealed payloads is replaced by one that copies. Nothing in the product can do
this; a node of this kind cannot even open what an honest one sends.
"""

from __future__ import annotations

from typing import Any

from comity_client.main import main
from comity_crypto import sealing


class _NoCipher:
    def __init__(self, key: bytes) -> None:
        del key

    def encrypt_into(self, nonce: bytes, data: Any, aad: bytes, target: Any) -> int:
        """Copy, with an empty tag."""
        del nonce, aad
        plain = memoryview(data).cast("B")
        target[: len(plain)] = plain
        target[len(plain) : len(plain) + sealing.TAG_BYTES] = bytes(sealing.TAG_BYTES)
        return len(plain) + sealing.TAG_BYTES

    def decrypt(self, nonce: bytes, data: Any, aad: bytes) -> bytes:
        """Copy back."""
        del nonce, aad
        return bytes(data[: -sealing.TAG_BYTES])


sealing.AESGCM = _NoCipher  # type: ignore[misc,assignment]
main()
