"""From the copy of the granted columns to the integers that a query looks at.

Rules:
1. A record counts if every comparison holds and every column of the measure has a value. Empty cells and NA, NaN, null
   are missing; a missing value fulfils no comparison.
2. A number is rounded to the query's decimals, half to even, and clipped to the declared range. What is no number where
   one is declared is refused, naming the column, never the value.
3. A cell compares as a number where the query's value is a number, else as text; categories that are numbers compare by
   value (`1` is `1.0`).
4. Cells are read one record at a time; a cell beyond `CELL_CHARS_MAX` and a copy beyond `RECORDS_MAX` are refused.
"""

from __future__ import annotations

import csv
import operator
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation, localcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics.questions import ends_of
from comity_node.training.datasets import Copy
from comity_policies.documents import Query
from comity_policies.query import Column, Comparison, fixed, shortest

RECORDS_MAX = 1 << 28
CELL_CHARS_MAX = 64
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Reader = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Selection:
    """What counts. `columns`: for each column of the measure its integers, one per record; `left_out`: how many records
    the condition alone kept out."""

    count: int
    columns: tuple[NDArray[np.int64], ...]
    left_out: int


def select(copy: Copy, query: Query) -> Selection:
    """Read a copy. Raises `DATASET_COLUMNS` (a column is missing, or holds what is no number), `TOO_LARGE`."""
    missing = sorted(query.names - set(copy.columns))
    if missing:
        raise ComityError(ErrorCode.DATASET_COLUMNS, f"no column {missing[0][:64]}")
    tests = [(each.column, _test_of(each)) for each in query.where]
    readers = [(each.name, _reader_of(each, query)) for each in query.columns]
    found = tuple(array("q") for _ in readers)
    count = left_out = seen = 0
    with localcontext() as context:
        context.prec = 40
        for record in _records(copy, sorted(query.names)):
            seen += 1
            if seen > RECORDS_MAX:
                raise ComityError(ErrorCode.TOO_LARGE, "the records of a statistic", limit=RECORDS_MAX)
            values = [reader(record[name]) for name, reader in readers]
            if any(value is None for value in values):
                continue
            if not all(test(record[name]) for name, test in tests):
                left_out += 1
                continue
            count += 1
            for place, value in zip(found, values, strict=True):
                place.append(value or 0)
    return Selection(count, tuple(np.array(each, np.int64) for each in found), left_out)


def _records(copy: Copy, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the named cells of each record as text."""
    if copy.path.suffix == ".npz":
        with np.load(copy.path, allow_pickle=False) as arrays:
            columns = [arrays[name].tolist() for name in names]
            length = len(arrays[copy.columns[0]])
        for place in range(length):
            yield {name: str(column[place]) for name, column in zip(names, columns, strict=True)}
        return
    with copy.path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        places = [(name, header.index(name)) for name in names]
        for row in rows:
            yield {name: row[place] for name, place in places}


def _test_of(comparison: Comparison) -> Callable[[str], bool]:
    compare = _OPERATORS[comparison.op]
    wanted = Decimal(comparison.value) if comparison.number else None

    def test(cell: str) -> bool:
        text = cell.strip()
        if text.lower() in _MISSING:
            return False
        if wanted is None:
            return compare(text, comparison.value)
        number = _number(text)
        return comparison.op == "!=" if number is None else compare(number, wanted)

    return test


def _reader_of(column: Column, query: Query) -> Reader:
    if column.values is not None:
        places = {_plain(value): place for place, value in enumerate(column.values)}
        return lambda cell: places.get(_plain(cell.strip()))
    if query.edges:
        # One step beyond either end is as good as anything further out.
        low, high = fixed(query.edges[0], query.decimals) - 1, fixed(query.edges[-1], query.decimals) + 1
    else:
        low, high = ends_of(query)
    scale, lowest, highest = Decimal(10) ** query.decimals, Decimal(low), Decimal(high)

    def read(cell: str) -> int | None:
        text = cell.strip()
        if text.lower() in _MISSING:
            return None
        number = _number(text)
        if number is None:
            raise ComityError(ErrorCode.DATASET_COLUMNS, f"column {column.name[:64]} holds what is no number")
        if number.adjusted() > 40:
            return low if number < 0 else high
        # What is smaller than any step counts as 0 before its exponent is written out.
        steps = Decimal(0) if number.adjusted() < -40 else number * scale
        return int(min(max(steps, lowest), highest).to_integral_value(ROUND_HALF_EVEN))

    return read


def _number(text: str) -> Decimal | None:
    if len(text) > CELL_CHARS_MAX:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _plain(text: str) -> str:
    number = _number(text)
    return text if number is None or abs(number.adjusted()) > 40 else shortest(number)
