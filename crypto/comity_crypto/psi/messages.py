"""The messages of an intersection as bytes: one header, then compressed points of P-256, 33 bytes each.

Header (20 bytes, big-endian): "CPSI", version 1, kind (u8), zero (u16), the sizes of two lists and a count (u32).

1. The sizes decide the message's to the byte; it is compared before anything is read.
2. Sizes of masked sets are padded sizes (`identifiers.padded`), at most `ITEMS_MAX`.
3. Lists whose order would tell something are strictly ascending, so nothing is in them twice. Only `MATCHED` keeps the
   order of the list that it answers; it holds nothing twice either.
4. Whether 33 bytes are a point of the curve is for the worker to say (`workers`): that takes the curve's arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import ITEMS_MAX, padded

POINT_BYTES = 33
_HEADER = struct.Struct(">4sBBHIII")
HEADER_BYTES = _HEADER.size
MESSAGE_BYTES_MAX = HEADER_BYTES + 2 * ITEMS_MAX * POINT_BYTES
_MAGIC, _VERSION = b"CPSI", 1
_SIGNS = frozenset(b"\x02\x03")


class Kind(IntEnum):
    """What a message says."""

    ASK = 1  # mask your set
    MASKED = 2  # a set under its owner's key, ascending
    COMPARE = 3  # the lead's masked set; the partner's under both keys; both ascending
    COUNT = 4  # how many are common
    MATCHED = 5  # how many are common; the lead's set under both keys, in the order of COMPARE


# How many lists of points a message of a kind holds, and whether it holds a count.
_LISTS = {Kind.ASK: 0, Kind.MASKED: 1, Kind.COMPARE: 2, Kind.COUNT: 0, Kind.MATCHED: 1}
_COUNTED = frozenset({Kind.COUNT, Kind.MATCHED})


@dataclass(frozen=True, slots=True)
class Message:
    """One message; a list is points, one behind the other. `count` goes with `COUNT` and `MATCHED`."""

    kind: Kind
    first: bytes = field(default=b"", repr=False)
    second: bytes = field(default=b"", repr=False)
    count: int = 0

    def to_bytes(self) -> bytes:
        """Return the message's bytes."""
        one, two = len(self.first) // POINT_BYTES, len(self.second) // POINT_BYTES
        return _HEADER.pack(_MAGIC, _VERSION, self.kind, 0, one, two, self.count) + self.first + self.second


def message_of(data: bytes | memoryview, *kinds: Kind) -> Message:
    """Read a message of one of `kinds` from a stranger.

    Raises:
        ComityError: `TOO_LARGE`; `MALFORMED` for another kind, another size, or lists that are not as they have to be.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a message of an intersection", limit_bytes=MESSAGE_BYTES_MAX)
    if len(data) < HEADER_BYTES:
        raise _malformed("it is shorter than its header")
    magic, version, word, zero, one, two, count = _HEADER.unpack_from(data)
    if (magic, version, zero) != (_MAGIC, _VERSION, 0) or word not in {int(kind) for kind in kinds}:
        raise _malformed("it is not the message that is awaited")
    kind, body = Kind(word), bytes(data[HEADER_BYTES:])
    lists = [size for size in (one, two) if size]
    if len(lists) != _LISTS[kind] or (two and not one) or len(body) != (one + two) * POINT_BYTES:
        raise _malformed("its size is not what its header says")
    if any(size > ITEMS_MAX or size != padded(size) for size in lists):
        raise _malformed("a set has not a padded size")
    if count > (ITEMS_MAX if kind in _COUNTED else 0) or (kind is Kind.MATCHED and count > one):
        raise _malformed("its count is out of range")
    if not _SIGNS.issuperset(body[::POINT_BYTES]):
        raise _malformed("a point is not compressed")
    message = Message(kind, body[: one * POINT_BYTES], body[one * POINT_BYTES :], count)
    _check_order(message)
    return message


def ascending(points: Iterable[bytes]) -> bytes:
    """Return points in the order in which they cross."""
    return b"".join(sorted(points))


def points_of(data: bytes) -> list[bytes]:
    """Return a list of points, each 33 bytes."""
    return [data[start : start + POINT_BYTES] for start in range(0, len(data), POINT_BYTES)]


def _check_order(message: Message) -> None:
    if message.kind is Kind.MATCHED:
        points = points_of(message.first)
        if len(set(points)) != len(points):
            raise _malformed("a point is there twice")
        return
    for each in (message.first, message.second):
        if not _strictly_ascending(points_of(each)):
            raise _malformed("points are not in ascending order")


def _strictly_ascending(points: Sequence[bytes]) -> bool:
    return all(one < other for one, other in pairwise(points))


def _malformed(detail: str) -> ComityError:
    return ComityError(ErrorCode.MALFORMED, f"a message of an intersection: {detail}")
