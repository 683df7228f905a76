"""Vectors of exact integers as they travel: from a party to its lead under `plain`, and from a sum to the lead.

Rules:
1. Integers are decimal text (they may pass 2^63), all of one width: receipts tell the size of what left, and that must
   say nothing of the numbers. Each is below 2^95 in size.
2. For a sum each integer becomes `LIMBS` unsigned limbs of two bits, after `OFFSET` was added. Whoever opens the sums
   of limbs does not see what was carried, and so how many numbers are small or negative: amounts below 2^`CARRY_BITS`
   are moved between limbs, which hides it within (n - 1) 2^-22 a border (`frame.limbs`). Limbs stay below 2^25.
3. What is moved follows from a secret of the node and the order: a repeated computation gives the same limbs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import Content, Record, read_blob
from comity_crypto.secagg.frame.limbs import Cut

VECTOR_BYTES_MAX = 1 << 20
INTEGERS_MAX = 4_096
# A sign and 32 digits: sums of 2^10 integers of 95 bits.
INTEGER_CHARS = 33
LIMBS, LIMB_BITS, CARRY_BITS = 48, 2, 22
OFFSET = 1 << (LIMBS * LIMB_BITS - 1)
_CUT = Cut(LIMB_BITS, LIMBS, CARRY_BITS)
LIMB_MAX = _CUT.limb_max
_RECORD, _INTEGERS, _PARTIES = "statistic", "integers", "parties"
_INTEGER = re.compile(r"[+-][0-9]{32}")


def write(integers: Sequence[int], parties: int = 1) -> bytes:
    """Return a vector of `parties` contributions as the content of a reply. Raises `TOO_LARGE`."""
    check(integers, parties)
    items = ((_INTEGERS, " ".join(f"{each:+0{INTEGER_CHARS}d}" for each in integers)), (_PARTIES, parties))
    return b"".join(Content((Record(_RECORD, "config", items),)).parts())


def read(data: bytes, length: int) -> tuple[list[int], int]:
    """Return the integers of a vector, and of how many contributions it is the sum. Raises `REPLY_SHAPE`."""
    if len(data) > VECTOR_BYTES_MAX:
        raise ComityError(ErrorCode.REPLY_SHAPE, "the integers of a statistic are too many")
    values = read_blob(data).configs.get(_RECORD, {})
    text, parties = values.get(_INTEGERS), values.get(_PARTIES)
    if not isinstance(text, str) or not isinstance(parties, int) or isinstance(parties, bool) or parties < 1:
        raise _shapeless()
    texts = text.split(" ")
    if len(texts) != length or not all(_INTEGER.fullmatch(each) for each in texts):
        raise _shapeless()
    integers = [int(each) for each in texts]
    if any(abs(each) >= OFFSET * parties for each in integers) or write(integers, parties) != data:
        raise _shapeless()
    return integers, parties


def check(integers: Sequence[int], parties: int = 1) -> None:
    """Refuse what no limbs can carry. Raises `TOO_LARGE`."""
    if len(integers) > INTEGERS_MAX or any(abs(each) >= OFFSET * parties for each in integers):
        raise ComityError(ErrorCode.TOO_LARGE, "the integers of a statistic", limit=INTEGERS_MAX)


def to_limbs(integers: Sequence[int], key: bytes) -> NDArray[np.int64]:
    """Return one contribution as limbs, shape (integers * LIMBS,); `key` is secret, and of this order alone.

    Raises:
        ComityError: `TOO_LARGE`.
    """
    check(integers)
    return _CUT.limbs([each + OFFSET for each in integers], key)


def from_limbs(sums: NDArray[np.int64], parties: int) -> list[int]:
    """Return the sums of the integers of `parties` contributions. Raises `SUM_MISMATCH`."""
    return [each - parties * OFFSET for each in _CUT.totals(sums, parties)]


def _shapeless() -> ComityError:
    return ComityError(ErrorCode.REPLY_SHAPE, "not the integers of a statistic")
