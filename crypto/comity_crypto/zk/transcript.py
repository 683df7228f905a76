"""Fiat-Shamir: the verifier's challenges, drawn from everything that was said before them.

Rules:
1. A transcript begins with what is claimed, by whom, and for which agreement and round: a proof moved to another
   place, or to another claim, meets other challenges.
2. Each part goes in with its label and length, so that no two sequences of parts spell the same bytes.
3. A challenge is never zero, and goes back into the transcript.
"""

from __future__ import annotations

import hashlib

from comity_crypto.zk.binding import Binding
from comity_crypto.zk.group import ORDER

PROTOCOL = b"comity/zk/v1"


class Transcript:
    """The running hash of one proof."""

    def __init__(self, claim: str, binding: Binding) -> None:
        self._state = hashlib.sha512(PROTOCOL).digest()
        self.absorb("claim", claim.encode("ascii"))
        self.absorb("agreement", bytes.fromhex(binding.agreement))
        self.absorb("round", binding.round.encode("ascii"))
        self.absorb("organisation", binding.organisation.encode("ascii"))

    def absorb(self, label: str, *parts: bytes) -> None:
        """Take in public values."""
        name = label.encode("ascii")
        for part in parts:
            sized = len(name).to_bytes(4, "big") + name + len(part).to_bytes(4, "big") + part
            self._state = hashlib.sha512(self._state + sized).digest()

    def absorb_number(self, label: str, value: int) -> None:
        """Take in a public whole number of at most 8 bytes."""
        self.absorb(label, value.to_bytes(8, "big", signed=True))

    def challenge(self, label: str) -> int:
        """Return the next challenge, from 1 to the group's order - 1 (bias below 2^-250)."""
        self.absorb("challenge", label.encode("ascii"))
        return int.from_bytes(self._state, "big") % (ORDER - 1) + 1
