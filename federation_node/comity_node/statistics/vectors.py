"""Vectors of exact integers as they travel: from a party to its lead under `plain`, and from a sum to the lead.

Rules:
1. Integers are decimal text (they may pass 2^63), all of one width: receipts tell the size of what left, and that must
   say nothing of the numbers. Each is below 2^95 in size, so that four limbs of 24 bits carry it.
2. For a sum each integer becomes `LIMBS` unsigned limbs, the lowest first, after `OFFSET` was added: a sum of 50 limbs
   stays below 2^30, which every number format of the profiles carries. Adding limbs adds integers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import Content, Record, read_blob

VECTOR_BYTES_MAX = 1 << 20
INTEGERS_MAX = 4_096
# A sign and 32 digits: sums of 2^10 integers of 95 bits.
INTEGER_CHARS = 33
LIMBS, LIMB_BITS = 4, 24
OFFSET = 1 << (LIMBS * LIMB_BITS - 1)
_RECORD, _INTEGERS, _PARTIES = "statistic", "integers", "parties"
_LIMB_MASK = (1 << LIMB_BITS) - 1
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


def to_limbs(integers: Sequence[int]) -> NDArray[np.int64]:
    """Return one contribution as limbs, shape (integers * LIMBS,). Raises `TOO_LARGE`."""
    check(integers)
    shifted = [each + OFFSET for each in integers]
    limbs = [(each >> (LIMB_BITS * place)) & _LIMB_MASK for each in shifted for place in range(LIMBS)]
    return np.array(limbs, np.int64)


def from_limbs(sums: NDArray[np.int64], parties: int) -> list[int]:
    """Return the sums of the integers of `parties` contributions. Raises `SUM_MISMATCH`."""
    if sums.size % LIMBS or (sums.size and not 0 <= int(sums.min()) <= int(sums.max()) <= parties * _LIMB_MASK):
        raise ComityError(ErrorCode.SUM_MISMATCH, "a sum of limbs is impossible")
    rows = sums.reshape(-1, LIMBS).tolist()
    return [sum(limb << (LIMB_BITS * place) for place, limb in enumerate(row)) - parties * OFFSET for row in rows]


def _shapeless() -> ComityError:
    return ComityError(ErrorCode.REPLY_SHAPE, "not the integers of a statistic")
