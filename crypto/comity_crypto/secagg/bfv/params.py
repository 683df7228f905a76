"""The two parameter sets, pinned (secure-aggregation.md section 2).

1. A set is named by the SHA-256 of its parameter bytes: SEAL 4.3's uncompressed `EncryptionParameters`. TenSEAL's own
   bytes are these, compressed; `scheme.self_test` compares the two at start-up.
2. Every message and every blob carries that digest; anything else is refused before arithmetic.
3. log2 of the key modulus is 150 bits for N = 8192: below the 218 bits of SEAL's 128-bit security table.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from comity.wire.errors import ComityError, ErrorCode

SEAL_HEADER_BYTES = 16
SEAL_MAGIC = 0xA15E
SEAL_VERSION = (4, 3)
_BFV_SCHEME = 1

RESIDUE_BITS = 50
POLYS = 2
LIMBS = 2
# The key modulus has one more prime (the key-switching prime), which ciphertexts never contain.
KEY_LIMBS = 3

CHECK_SLOTS = 8
# 4096 chunks of agg-q16 are 67 million values and 839 MB: the largest sum this version accepts.
CHUNKS_MAX = 4096


@dataclass(frozen=True)
class Parameters:
    """One pinned BFV set.

    Args:
        name: `agg-q16` or `agg-i32`.
        ring_degree: N, also the number of slots of a chunk.
        primes: coefficient primes; the last one is the key-switching prime.
        plain_modulus: t, a prime = 1 mod 2N, so that slots batch.
        values_per_slot: 2 for 16-bit quantised values in 22-bit fields, 1 for signed integers.
        digest: the pinned name, SHA-256 of `parms_bytes`.
        parms_id: SEAL's id of the ciphertext level, 32 bytes in hexadecimal (first byte lowest).
        key_parms_id: the same for the key level.
    """

    name: str
    ring_degree: int
    primes: tuple[int, ...]
    plain_modulus: int
    values_per_slot: int
    digest: str
    parms_id: str
    key_parms_id: str

    @property
    def parms_bytes(self) -> bytes:
        """Return SEAL's uncompressed parameter bytes: scheme, N, number of primes, each prime, t."""
        body = struct.pack("<BQQ", _BFV_SCHEME, self.ring_degree, len(self.primes))
        for modulus in (*self.primes, self.plain_modulus):
            size_bytes = SEAL_HEADER_BYTES + 8
            body += struct.pack("<HBBBBHQQ", SEAL_MAGIC, SEAL_HEADER_BYTES, *SEAL_VERSION, 0, 0, size_bytes, modulus)
        return body

    @property
    def data_primes(self) -> tuple[int, ...]:
        """The primes of a ciphertext's residues."""
        return self.primes[:LIMBS]

    @property
    def chunk_bytes(self) -> int:
        """Size of one packed ciphertext: `POLYS` x `LIMBS` x N residues of 50 bits."""
        return POLYS * LIMBS * self.ring_degree * RESIDUE_BITS // 8

    @property
    def key_bytes(self) -> int:
        """Size of one packed public key: `POLYS` x `KEY_LIMBS` x N residues of 50 bits."""
        return POLYS * KEY_LIMBS * self.ring_degree * RESIDUE_BITS // 8

    def poly_bytes(self, limbs: int) -> int:
        """Size of one packed polynomial of `limbs` x N residues: 102,400 bytes for two limbs."""
        return limbs * self.ring_degree * RESIDUE_BITS // 8

    @property
    def payload_slots(self) -> int:
        """Slots of a chunk that carry numbers; the first `CHECK_SLOTS` hold 1 in every contribution."""
        return self.ring_degree - CHECK_SLOTS

    def chunks_for(self, slots: int) -> int:
        """Return how many chunks hold `slots` payload slots. Raises `TOO_LARGE` beyond `CHUNKS_MAX`."""
        chunks = max(1, -(-slots // self.payload_slots))
        if chunks > CHUNKS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "too many values for one secure sum", chunks=chunks)
        return chunks


_PRIMES = (0x3FFFFFFEF4001, 0x3FFFFFFFCC001, 0x3FFFFFFFFC001)

AGG_Q16 = Parameters(
    name="agg-q16",
    ring_degree=8192,
    primes=_PRIMES,
    plain_modulus=35184371613697,
    values_per_slot=2,
    digest="1d7ca7b158a6e1096dbd845710b0f2bdfb20f6bf9682dc9ca4f0239722ff9f61",
    parms_id="4747d624ad928f6182b3aa3b8b0bd83ed350abe082bdafdd17a22ce7ee6e4206",
    key_parms_id="11e6fae3dc3cf2db5b3b14833a8d85561f6d3b9733690ee93f259fa51282488f",
)
AGG_I32 = Parameters(
    name="agg-i32",
    ring_degree=8192,
    primes=_PRIMES,
    plain_modulus=8589852673,
    values_per_slot=1,
    digest="11d8bf622f9b3bb678ce2390e7cca389c3397bb3a317b1b886ad2f1496a0cb26",
    parms_id="34169f13d75e1cc7bc938f67058e6301b254657639634411afad9ca67bf38304",
    key_parms_id="9779d04a0f03e502704e80d10afcbcef54e5c3e7549f74727d13138961498c0d",
)
PARAMETER_SETS = {item.name: item for item in (AGG_Q16, AGG_I32)}


def parameter_set(name: str, digest: str) -> Parameters:
    """Return the pinned set. Raises `UNSUPPORTED` if the name is unknown or the digest is not the pinned one."""
    found = PARAMETER_SETS.get(name)
    if found is None or found.digest != digest:
        raise ComityError(ErrorCode.UNSUPPORTED, "unknown encryption parameters")
    return found


def computed_digest(parameters: Parameters) -> str:
    """Return the SHA-256 of the parameter bytes, to compare with the pinned one."""
    return hashlib.sha256(parameters.parms_bytes).hexdigest()
