"""What a lead asks in one round of a statistic, and how its integers are laid out: the same at every party.

Rules:
1. A question holds nothing but its round and, for quantiles, windows of the declared range; everything else stands in
   the signed query.
2. The groups of a question follow from query, windows and whether there is a privacy budget; so does their order in the
   vector of integers that is summed.
3. What one record can change in a group (its L2 sensitivity) follows from the declared range alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.noise.mechanism import Group
from comity_policies.documents import Agreement, Query
from comity_policies.query import PROBABILITIES_MAX, fixed

QUESTION_BYTES_MAX = 4_096
VERSION = 1
# Cells of one window of a quantile: six rounds narrow 2^32 steps down to one.
WINDOW_CELLS = 64
COUNT, SUM, SQUARES, CELLS, HIDDEN, WINDOW = "count", "sum", "squares", "cells", "hidden", "window"


@dataclass(frozen=True, slots=True)
class Window:
    """Fixed-point numbers from `low` to below `high`, cut into cells."""

    low: int
    high: int

    @property
    def cells(self) -> int:
        """How many cells it is cut into."""
        return min(WINDOW_CELLS, self.high - self.low)

    @property
    def edges(self) -> tuple[int, ...]:
        """The cells' edges, one more than cells."""
        width, cells = self.high - self.low, self.cells
        return tuple(self.low + width * each // cells for each in range(cells + 1))


@dataclass(frozen=True, slots=True)
class Question:
    """One round."""

    round: int
    windows: tuple[Window, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the canonical form."""
        windows = [[each.low, each.high] for each in self.windows]
        return canonical.canonical({"version": VERSION, "round": self.round, "windows": windows})

    @classmethod
    def from_bytes(cls, data: bytes, query: Query) -> Question:
        """Read a lead's question on `query`. Raises `ORDER_MISMATCH` if it is not one."""
        try:
            value = canonical.parse(data, max_bytes=QUESTION_BYTES_MAX)
            windows = tuple(Window(_whole(low), _whole(high)) for low, high in value["windows"])
            read = cls(_whole(value["round"]), windows)
        except (ComityError, ValueError, TypeError, KeyError) as error:
            raise _mismatch() from error
        if read.to_bytes() != data or read.round < 1:
            raise _mismatch()
        read.check(query)
        return read

    def check(self, query: Query) -> None:
        """Refuse windows that do not belong to `query`. Raises `ORDER_MISMATCH`."""
        if query.measure != "quantiles":
            if self.windows or self.round != 1:
                raise _mismatch()
            return
        whole = whole_window(query)
        if not 1 <= len(self.windows) <= min(len(query.probabilities), PROBABILITIES_MAX):
            raise _mismatch()
        if any(not whole.low <= each.low < each.high <= whole.high for each in self.windows):
            raise _mismatch()


@dataclass(frozen=True, slots=True)
class Part:
    """One group of the vector: what its integers are, and `group` for the noise."""

    name: str
    group: Group


def whole_window(query: Query) -> Window:
    """Return the declared range of a number as a window: both ends belong to it."""
    low, high = ends_of(query)
    return Window(low, high + 1)


def ends_of(query: Query) -> tuple[int, int]:
    """Return the declared range of the query's only column in fixed-point steps."""
    only = query.columns[0]
    return fixed(str(only.low), query.decimals), fixed(str(only.high), query.decimals)


def centre_of(query: Query) -> int:
    """Return the middle of the declared range, from which deviations are summed: their bound is half the range."""
    low, high = ends_of(query)
    return (low + high) // 2


def parts_of(query: Query, question: Question, private: bool) -> tuple[Part, ...]:
    """Return the groups of a question, in the order of the vector."""
    count = Part(COUNT, Group(1, 1))
    if query.measure == "count":
        return (count,)
    if query.measure in ("histogram", "table"):
        cells = Part(CELLS, Group(query.cells, 1))
        # Without a budget small cells are hidden by each party; by how many parties each was is part of the answer.
        return (cells,) if private else (cells, Part(HIDDEN, Group(query.cells, 1)))
    if query.measure == "quantiles":
        # Below, the cells, and from the window's end on: every record is in exactly one.
        return tuple(Part(WINDOW, Group(each.cells + 2, 1)) for each in question.windows)
    low, high = ends_of(query)
    if query.measure == "sum":
        total = Part(SUM, Group(1, max(abs(low), abs(high))))
        # Under a budget the number of records is a statistic of its own, and is not asked for.
        return (total,) if private else (count, total)
    reach = max(high - centre_of(query), centre_of(query) - low)
    deviations = Part(SUM, Group(1, reach))
    if query.measure == "mean":
        return (count, deviations)
    return (count, deviations, Part(SQUARES, Group(1, reach * reach)))


def length_of(parts: tuple[Part, ...]) -> int:
    """Return how many integers a vector has."""
    return sum(each.group.size for each in parts)


def private(agreement: Agreement) -> bool:
    """Tell whether the agreement has a privacy budget."""
    return "privacy" in agreement.terms


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number expected")
    return value


def _mismatch() -> ComityError:
    detail = "the order's content is not a question of the agreed query"
    return ComityError(ErrorCode.ORDER_MISMATCH, detail, field="content")
