"""Who proves knows what opens a sum of commitments, and says neither the total nor the blinding (Okamoto 1992).

S = v V + r B is the sum of several parties' commitments. Its prover shows R = a V + b B, takes the challenge c, and
answers s = a + c v and t = b + c r; the verifier checks s V + t B = R + c S. 112 bytes: R, s, t. Nobody knows a second
opening of S, so what the prover knows is the sum of what the parties committed to.

Not enough would be a proof that S and a commitment of the prover's own hold the same number: that one can be made for
any S, without knowing what is in it. A test shows that.
"""

from __future__ import annotations

from collections.abc import Sequence

from py_arkworks_bls12381 import G1Point

from comity_crypto.zk.binding import Binding
from comity_crypto.zk.group import (
    BLINDING,
    ORDER,
    POINT_BYTES,
    SCALAR_BYTES,
    VALUE,
    combine,
    decode_point,
    decode_scalar,
    encode_point,
    encode_scalar,
    random_scalar,
    refused,
)
from comity_crypto.zk.pedersen import PARTS_MAX, Opening
from comity_crypto.zk.transcript import Transcript

CLAIM = "sum-opening"
PROOF_BYTES = POINT_BYTES + 2 * SCALAR_BYTES


def sum_of(commitments: Sequence[bytes]) -> bytes:
    """Return the commitment to the sum of what 1 to 1,024 commitments hold. Raises `CLAIM_UNPROVEN`."""
    if not 1 <= len(commitments) <= PARTS_MAX:
        raise refused("a sum has 1 to 1,024 parts")
    summed = G1Point.identity()
    for each in commitments:
        summed = summed + decode_point(each)
    if summed == G1Point.identity():
        raise refused("the commitments add up to the identity")
    return encode_point(summed)


def prove_opening(commitment: bytes, opening: Opening, binding: Binding) -> bytes:
    """Return the proof (112 bytes) that its maker can open `commitment`. Raises `ValueError` for another opening."""
    value, blinding = opening.values[0], opening.blinding
    if combine([VALUE, BLINDING], [value, blinding]) != decode_point(commitment):
        raise ValueError("this does not open the commitment")
    first, second = random_scalar(), random_scalar()
    shown = encode_point(combine([VALUE, BLINDING], [first, second]))
    challenge = _challenge(commitment, shown, binding)
    answers = ((first + challenge * value) % ORDER, (second + challenge * blinding) % ORDER)
    return shown + b"".join(encode_scalar(each) for each in answers)


def verify_opening(commitment: bytes, proof: bytes, binding: Binding) -> None:
    """Check the proof that its maker can open `commitment`. Raises `CLAIM_UNPROVEN`."""
    if len(proof) != PROOF_BYTES:
        raise refused("a proof of an opening has 112 bytes")
    point, shown = decode_point(commitment), decode_point(proof[:POINT_BYTES])
    value = decode_scalar(proof[POINT_BYTES : POINT_BYTES + SCALAR_BYTES])
    blinding = decode_scalar(proof[POINT_BYTES + SCALAR_BYTES :])
    challenge = _challenge(commitment, proof[:POINT_BYTES], binding)
    if combine([VALUE, BLINDING, point], [value, blinding, -challenge]) != shown:
        raise refused("nobody is shown to know what opens the sum")


def _challenge(commitment: bytes, shown: bytes, binding: Binding) -> int:
    transcript = Transcript(CLAIM, binding)
    transcript.absorb("commitment", commitment)
    transcript.absorb("R", shown)
    return transcript.challenge("c")
