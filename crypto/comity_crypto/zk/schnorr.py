"""Two commitments open to the same number (Schnorr 1991, on their difference), without saying which.

The difference of commitments to one number is d * BLINDING, d the difference of their blindings; whoever knows d shows
it: R = k * BLINDING, challenge c, s = k + c d; the verifier checks s * BLINDING = R + c (C1 - C2). 80 bytes: R, s.
"""

from __future__ import annotations

from py_arkworks_bls12381 import G1Point

from comity_crypto.zk.binding import Binding
from comity_crypto.zk.group import (
    BLINDING,
    ORDER,
    POINT_BYTES,
    SCALAR_BYTES,
    combine,
    decode_point,
    decode_scalar,
    encode_point,
    encode_scalar,
    random_scalar,
    refused,
    scalar,
)
from comity_crypto.zk.pedersen import Opening
from comity_crypto.zk.transcript import Transcript

CLAIM = "same-value"
PROOF_BYTES = POINT_BYTES + SCALAR_BYTES


def prove_same(first: bytes, second: bytes, of_first: Opening, of_second: Opening, binding: Binding) -> bytes:
    """Return the proof (80 bytes) that two commitments hold one number. Raises `ValueError` if they do not."""
    if of_first.values != of_second.values or (of_first.blinding - of_second.blinding) % ORDER == 0:
        raise ValueError("two commitments of their own to one number expected")
    nonce = random_scalar()
    shown = encode_point(BLINDING * scalar(nonce))
    challenge = _challenge(first, second, shown, binding)
    return shown + encode_scalar(nonce + challenge * (of_first.blinding - of_second.blinding))


def verify_same(first: bytes, second: bytes, proof: bytes, binding: Binding) -> None:
    """Check the proof that two commitments hold one number. Raises `CLAIM_UNPROVEN`."""
    if len(proof) != PROOF_BYTES:
        raise refused("a proof of equality has 80 bytes")
    shown, answer = decode_point(proof[:POINT_BYTES]), decode_scalar(proof[POINT_BYTES:])
    difference = decode_point(first) + -decode_point(second)
    if difference == G1Point.identity():
        raise refused("one commitment, named twice")
    challenge = _challenge(first, second, proof[:POINT_BYTES], binding)
    if combine([BLINDING, difference], [answer, -challenge]) != shown:
        raise refused("the commitments are not shown to hold one number")


def _challenge(first: bytes, second: bytes, shown: bytes, binding: Binding) -> int:
    transcript = Transcript(CLAIM, binding)
    transcript.absorb("commitment", first, second)
    transcript.absorb("R", shown)
    return transcript.challenge("c")
