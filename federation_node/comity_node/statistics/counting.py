"""From a party's selected records to its vector of integers: pure, exact, and nothing of too few records.

Rules (the field's best practice of disclosure control; Hundepool et al., "Statistical Disclosure Control", 2012):
1. Fewer than `least` records behind the whole statistic, or fewer than `least` but not none left out by its condition:
   nothing leaves. The first is judged as every result's cohort is, the second here.
2. A cell of a histogram or table with fewer than `least` records counts as empty. Where that hides one cell alone, the
   smallest other one is hidden with it, so that a known total does not give it away. Which cells were hidden is added
   to the vector, so that nobody takes them for empty.
3. Quantiles are taken of microaggregated records: sorted, cut into blocks of `least` or more, each record standing for
   the mean of its block. So every cell of every window, in every round, holds none or `least` records (Domingo-Ferrer
   and Mateo-Sanz, 2002); a rank is wrong by less than `least` records a party.
4. With a privacy budget rules 2 and 3 do not apply: the noise hides single records, and hiding cells by their true size
   would not be private.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics.questions import Question, centre_of
from comity_node.statistics.records import Selection
from comity_policies.documents import Query
from comity_policies.query import fixed

# Where no term asks for more.
CELL_MIN = 3
_HALF_BITS = 31


def vector_of(query: Query, question: Question, selection: Selection, least: int, private: bool) -> list[int]:
    """Return the integers of one party, in the order of `parts_of`.

    Raises:
        ComityError: `EGRESS_DENIED` if the condition leaves out too few records.
    """
    if not private and 0 < selection.left_out < least:
        raise ComityError(ErrorCode.EGRESS_DENIED, "the condition leaves out fewer records than the minimum")
    if query.measure == "count":
        return [selection.count]
    if query.measure in ("histogram", "table"):
        cells = _cells(query, selection)
        if private:
            return cells
        shown, hidden = hide(cells, least)
        return [*shown, *hidden]
    numbers = selection.columns[0]
    if query.measure == "quantiles":
        if not private:
            numbers = microaggregate(numbers, least)
        return [each for window in question.windows for each in _counts(numbers, window.edges)]
    if query.measure == "sum":
        total = exact_sum(numbers)
        return [total] if private else [selection.count, total]
    deviations = numbers - centre_of(query)
    first = [selection.count, exact_sum(deviations)]
    return first if query.measure == "mean" else [*first, exact_squares(deviations)]


def hide(cells: list[int], least: int) -> tuple[list[int], list[int]]:
    """Return the cells with small ones emptied, and 1 for each that was, else 0."""
    hidden = {place for place, count in enumerate(cells) if 0 < count < least}
    if len(hidden) == 1:
        others = [(count, place) for place, count in enumerate(cells) if count >= least]
        hidden |= {min(others)[1]} if others else set()
    shown = [0 if place in hidden else count for place, count in enumerate(cells)]
    return shown, [int(place in hidden) for place in range(len(cells))]


def microaggregate(numbers: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Return the sorted numbers with each block of `least` or more replaced by its rounded mean."""
    ordered = np.sort(numbers)
    if not len(ordered):
        return ordered
    starts: NDArray[np.int64] = np.arange(max(1, len(ordered) // least)) * least
    sizes: NDArray[np.int64] = np.diff(np.append(starts, len(ordered)))
    totals = np.add.reduceat(ordered, starts)
    # Rounded to the nearest, halves up.
    return np.repeat((2 * totals + sizes) // (2 * sizes), sizes)


def exact_sum(numbers: NDArray[np.int64]) -> int:
    """Return the sum without overflow: |number| is below 2^33, there are at most 2^28 of them."""
    return int(numbers.sum(dtype=np.int64))


def exact_squares(numbers: NDArray[np.int64]) -> int:
    """Return the sum of squares without overflow: |number| is at most 2^31, there are at most 2^28 of them."""
    squares = numbers * numbers
    upper, lower = squares >> _HALF_BITS, squares & ((1 << _HALF_BITS) - 1)
    return (int(upper.sum(dtype=np.int64)) << _HALF_BITS) + int(lower.sum(dtype=np.int64))


def _cells(query: Query, selection: Selection) -> list[int]:
    if query.measure == "table":
        first, second = selection.columns
        width = len(query.columns[1].values or ())
        counts = np.bincount(first * width + second, minlength=query.cells)
        return [int(each) for each in counts]
    edges = [fixed(each, query.decimals) for each in query.edges]
    # The last edge belongs to the last cell.
    edges[-1] += 1
    return _counts(selection.columns[0], edges)[1:-1]


def _counts(numbers: NDArray[np.int64], edges: tuple[int, ...] | list[int]) -> list[int]:
    """Return how many numbers lie below the first edge, between two edges each, and from the last edge on."""
    places = np.searchsorted(np.array(edges, np.int64), numbers, side="right")
    return [int(each) for each in np.bincount(places, minlength=len(edges) + 1)]
