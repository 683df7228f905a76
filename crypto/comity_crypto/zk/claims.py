"""What Comity proves about numbers that stay with their owner (secure-aggregation.md section 7).

1. `at-least`: a committed number is at least k, without the number (cohorts in receipts).
2. `between`: each of several committed numbers lies in a public range [low, high] (statistics).
3. `same-value`: two commitments hold one number (`schnorr`).
4. An aggregate is the sum of what was committed to: with the blindings' sum in hand (`pedersen.verify_sum`,
   `pedersen.verify_vector_sum`), or without showing total and blinding (`openings`, weights of secure sums).

A claim's public numbers are in its transcript. Each has a twin in `independent`, written apart, with another engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comity_crypto.zk import bulletproofs, pedersen
from comity_crypto.zk.binding import Binding
from comity_crypto.zk.group import refused
from comity_crypto.zk.pedersen import Opening
from comity_crypto.zk.transcript import Transcript

AT_LEAST, BETWEEN = "at-least", "between"
AT_LEAST_BITS = 32
NUMBER_MAX = (1 << 62) - 1
BETWEEN_COUNT_MAX = bulletproofs.COUNT_MAX // 2


@dataclass(frozen=True, slots=True)
class Proven:
    """A commitment (48 bytes), the proof of a claim about it, and the secret opening, which stays with its owner."""

    commitment: bytes
    proof: bytes
    opening: Opening


def prove_at_least(value: int, minimum: int, binding: Binding) -> Proven:
    """Commit to `value` and prove that it is at least `minimum`; the proof has 832 bytes.

    A value further above than 2^32 - 1 is committed to as if it were just that far above: the claim stays true.

    Raises:
        ValueError: it is less.
    """
    if not 0 <= minimum <= NUMBER_MAX or value < minimum:
        raise ValueError("the number is less than the minimum")
    shown = min(value, minimum + (1 << AT_LEAST_BITS) - 1)
    commitment, opening = pedersen.commit(shown)
    transcript = _at_least(minimum, binding)
    proof = bulletproofs.prove(transcript, [commitment], [shown - minimum], [opening.blinding], AT_LEAST_BITS)
    return Proven(commitment, proof, opening)


def verify_at_least(commitment: bytes, minimum: int, proof: bytes, binding: Binding) -> None:
    """Check that the committed number is at least `minimum`. Raises `CLAIM_UNPROVEN`."""
    if not 0 <= minimum <= NUMBER_MAX:
        raise refused("a minimum of 0 to 2^62 - 1")
    bulletproofs.verify(_at_least(minimum, binding), [commitment], [minimum], proof, AT_LEAST_BITS)


def prove_between(
    commitments: Sequence[bytes], openings: Sequence[Opening], low: int, high: int, binding: Binding
) -> bytes:
    """Prove that each of 1 to 64 commitments holds a number from `low` to `high`.

    Both v - low and v - (high - 2^bits + 1) lie in [0, 2^bits), with the fewest bits that span the range.

    Raises:
        ValueError: one of them does not.
    """
    values = [opening.values[0] for opening in openings]
    if any(not low <= value <= high for value in values):
        raise ValueError("a number outside the range")
    bits, shifts = _span(low, high, len(commitments))
    twice = [*openings, *openings]
    shifted = [opening.values[0] - shift for opening, shift in zip(twice, shifts, strict=True)]
    transcript = _between(low, high, binding)
    blindings = [opening.blinding for opening in twice]
    return bulletproofs.prove(transcript, [*commitments, *commitments], shifted, blindings, bits)


def verify_between(commitments: Sequence[bytes], low: int, high: int, proof: bytes, binding: Binding) -> None:
    """Check that each commitment holds a number from `low` to `high`. Raises `CLAIM_UNPROVEN`."""
    bits, shifts = _span(low, high, len(commitments))
    bulletproofs.verify(_between(low, high, binding), [*commitments, *commitments], shifts, proof, bits)


def _span(low: int, high: int, count: int) -> tuple[int, list[int]]:
    """Return the bits that span [low, high], and what to subtract for the lower and for the upper bound."""
    if not 1 <= count <= BETWEEN_COUNT_MAX or not -NUMBER_MAX <= low <= high <= NUMBER_MAX:
        raise refused("1 to 64 numbers, in a range within 62 bits")
    bits = next(each for each in bulletproofs.BITS if high - low < 1 << each)
    return bits, [low] * count + [high - (1 << bits) + 1] * count


def _at_least(minimum: int, binding: Binding) -> Transcript:
    transcript = Transcript(AT_LEAST, binding)
    transcript.absorb_number("minimum", minimum)
    return transcript


def _between(low: int, high: int, binding: Binding) -> Transcript:
    transcript = Transcript(BETWEEN, binding)
    transcript.absorb_number("low", low)
    transcript.absorb_number("high", high)
    return transcript
