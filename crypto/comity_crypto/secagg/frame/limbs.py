"""Large numbers as limbs that can be added, without showing what was carried between them.

1. A number is cut into limbs of few bits, the lowest first. Adding limbs adds numbers; but whoever opened the sums of
   plain limbs would also see the carries, which tell more than the total: how many low parts are large, say.
2. So each contribution moves an amount below M = 2^`moved_bits`, uniform and its own, from each limb into the one below
   it. The total stays exact.
3. What is left to see: let C_j be what m contributions moved across border j, K_j <= m - 1 what the plain limbs would
   have carried there. The opened limbs are a function of the total and of the C_j + K_j alone. The sum of uniform draws
   is unimodal with no probability above 1 / M, so C_j + K_j is within K_j / M of C_j in statistical distance. Two sets
   of contributions with one total differ by at most (m - 1) / M for each border. m counts those whom nobody who looks
   knows: two or more.
4. What is moved follows from a secret of this contribution: a repeated computation gives the same limbs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode

_DOMAIN = b"comity/secagg/limbs/v1\x00"


@dataclass(frozen=True)
class Cut:
    """How numbers are cut: `places` limbs of `limb_bits`, with amounts of `moved_bits` (at most 32) moved between."""

    limb_bits: int
    places: int
    moved_bits: int

    @property
    def number_max(self) -> int:
        """The largest number."""
        return (1 << (self.limb_bits * self.places)) - 1

    @property
    def limb_max(self) -> int:
        """The largest limb of one contribution; the smallest is 0."""
        return (((1 << self.limb_bits) + 1) << self.moved_bits) - 1

    def limbs(self, numbers: Sequence[int], key: bytes) -> NDArray[np.int64]:
        """Return one contribution, shape (numbers * places,).

        Args:
            numbers: from 0 to `number_max`. key: secret, for these numbers alone.

        Raises:
            ComityError: `TOO_LARGE` for a number out of range.
        """
        if any(not 0 <= each <= self.number_max for each in numbers):
            raise ComityError(ErrorCode.TOO_LARGE, "a number is too large to be summed")
        mask, bits, places = (1 << self.limb_bits) - 1, self.limb_bits, self.places
        limbs = np.array([(each >> (bits * place)) & mask for each in numbers for place in range(places)], np.int64)
        rows = limbs.reshape(-1, places)
        stream = hashlib.shake_256(_DOMAIN + key).digest(4 * len(numbers) * (places - 1))
        moved = (np.frombuffer(stream, "<u4") >> np.uint32(32 - self.moved_bits)).astype(np.int64)
        moved = moved.reshape(-1, places - 1)
        rows[:, :-1] += moved << bits
        # Lifted by M, so that no limb is negative.
        rows[:, 1:] += (1 << self.moved_bits) - moved
        return limbs

    def totals(self, sums: NDArray[np.int64], contributors: int) -> list[int]:
        """Return the exact totals of summed limbs. Raises `SUM_MISMATCH` for sums that nobody could have reached."""
        if sums.size % self.places:
            raise _impossible()
        if sums.size and not 0 <= int(sums.min()) <= int(sums.max()) <= contributors * self.limb_max:
            raise _impossible()
        lifted = contributors * sum((1 << self.moved_bits) << (self.limb_bits * each) for each in range(1, self.places))
        found = [
            sum(limb << (self.limb_bits * place) for place, limb in enumerate(row)) - lifted
            for row in sums.reshape(-1, self.places).tolist()
        ]
        if any(not 0 <= each <= contributors * self.number_max for each in found):
            raise _impossible()
        return found


def _impossible() -> ComityError:
    return ComityError(ErrorCode.SUM_MISMATCH, "a sum of limbs is impossible")
