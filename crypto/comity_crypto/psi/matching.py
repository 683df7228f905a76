"""What two masked sets tell: how many elements are common, and to one side which of its own.

Under both keys an element has one form, whoever masked it first (the keys commute); under one key alone it tells
nothing. Source: Meadows 1986; Huberman, Franklin, Hogg 1999 (DDH, semi-honest parties).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.identifiers import OwnSet
from comity_crypto.psi.messages import points_of


def sorted_places(masked: bytes) -> array[int]:
    """Return which element stands at each place once points are ascending. Raises `INTERNAL` if two are equal."""
    points = points_of(masked)
    if len(set(points)) != len(points):
        raise ComityError(ErrorCode.INTERNAL, "two elements have one point")
    return array("l", sorted(range(len(points)), key=points.__getitem__))


def common(mine: bytes, theirs: bytes) -> list[int]:
    """Return the places in `mine` of points that are in `theirs` too; both lists are under both keys."""
    other = set(points_of(theirs))
    return [place for place, point in enumerate(points_of(mine)) if point in other]


def own_rows(places: Iterable[int], order: Sequence[int], own: OwnSet) -> list[int]:
    """Return the numbers of the own records behind matching places, ascending.

    Args:
        places: from `common`, over the list as it was sent.
        order: from `sorted_places` of the own set.
        own: the own set.

    Raises:
        ComityError: `CIPHERTEXT_INVALID` if padding matched, which nobody but a liar can bring about.
    """
    elements = {order[place] for place in places}
    if any(element >= own.distinct for element in elements):
        raise ComityError(ErrorCode.CIPHERTEXT_INVALID, "padding cannot be common to both sets")
    return [row for row, element in enumerate(own.element_of) if element in elements]
