"""What a statistic asks of every party's records: a measure, its columns with declared ranges or values, a condition.

Rules:
1. a query fixes beforehand everything that leaves: which columns, which ranges, which cells; nothing of it depends on
   data;
2. numbers are decimal text in their shortest spelling (signed bytes hold no floats); a record's number is clipped to
   the declared range and rounded to `decimals` places, and sums are sums of those integers, so they are exact;
3. `low` and `high` times 10^`decimals` stay within 2^31, so that sums of squares over 2^32 records fit 95 bits;
4. counts are bounded: 1,024 cells, 64 values a column, 9 probabilities, 8 comparisons.

Source: secure-aggregation.md section 2. The text form is in `query_text.py`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from comity_policies.document import Document, Part, choice_of, items_of
from comity_policies.term_rows import column, malformed, text_of, whole_number

MEASURES = ("count", "sum", "mean", "variance", "histogram", "quantiles", "table")
OPERATORS = ("=", "!=", "<", "<=", ">", ">=")
CELLS_MAX = 1_024
VALUES_MAX = 64
VALUE_CHARS_MAX = 64
PROBABILITIES_MAX = 9
COMPARISONS_MAX = 8
DECIMALS_MAX = 6
# |number| x 10^decimals of any declared bound.
FIXED_MAX = 1 << 31
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,6})?")


def decimal_of(value: object) -> str:
    """Return `value` if it is decimal text in its shortest spelling: 12 digits, 6 places. Raises `MALFORMED`."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value) or shortest(Decimal(value)) != value:
        raise malformed("a decimal number in its shortest spelling expected, such as 0.5")
    return value


def shortest(number: Decimal) -> str:
    """Return the shortest spelling of a finite number, without an exponent."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def fixed(text: str, decimals: int) -> int:
    """Return a decimal text as an integer of 10^-`decimals`. Raises `MALFORMED` if it has more places or is too big."""
    scaled = Decimal(text).scaleb(decimals)
    if scaled != scaled.to_integral_value() or abs(scaled) > FIXED_MAX:
        raise malformed(f"{text} does not fit {decimals} decimal places within 2^31 steps: say a coarser step")
    return int(scaled)


@dataclass(frozen=True, slots=True)
class Column(Part):
    """One column: a number from `low` to `high`, or a category that is one of `values`, or what `edges` say of it."""

    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"low", "high", "values"})

    name: str
    low: str | None = None
    high: str | None = None
    values: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        column(self.name)
        if (self.low is None) != (self.high is None):
            raise malformed("a range has two ends")
        if self.low is not None and Decimal(decimal_of(self.low)) >= Decimal(decimal_of(self.high)):
            raise malformed("a range goes from the smaller to the larger number")
        if self.values is not None:
            values = tuple(_value(each) for each in items_of(self.values, VALUES_MAX))
            if self.low is not None or not values or len(set(values)) != len(values):
                raise malformed("a category has its values, each once, and no range")
            self._fix(values=values)


@dataclass(frozen=True, slots=True)
class Comparison(Part):
    """One condition on a record: a column, an operator, a value; `number` says whether numbers are compared."""

    column: str
    op: str
    value: str
    number: bool

    def __post_init__(self) -> None:
        column(self.column)
        choice_of(self.op, OPERATORS)
        if not isinstance(self.number, bool):
            raise malformed("number is true or false")
        if self.number:
            decimal_of(self.value)
        else:
            _value(self.value)
            if self.op not in ("=", "!="):
                raise malformed("texts are compared by = and != only")


@dataclass(frozen=True, slots=True)
class Query(Document):
    """One statistic. A record counts if all of `where` hold and the columns of the measure have a value."""

    NESTED: ClassVar[dict[str, tuple[type[Part], int | None]]] = {
        "columns": (Column, 2),
        "where": (Comparison, COMPARISONS_MAX),
    }

    measure: str
    columns: tuple[Column, ...] = ()
    decimals: int = 0
    edges: tuple[str, ...] = ()
    probabilities: tuple[str, ...] = ()
    where: tuple[Comparison, ...] = ()

    def __post_init__(self) -> None:
        choice_of(self.measure, MEASURES)
        whole_number(self.decimals, 0, DECIMALS_MAX)
        self._fix(
            columns=tuple(items_of(self.columns, 2)),
            edges=tuple(decimal_of(each) for each in items_of(self.edges, CELLS_MAX + 1)),
            probabilities=tuple(decimal_of(each) for each in items_of(self.probabilities, PROBABILITIES_MAX)),
            where=tuple(items_of(self.where, COMPARISONS_MAX)),
        )
        wanted = {"count": 0, "table": 2}.get(self.measure, 1)
        if len(self.columns) != wanted or len({each.name for each in self.columns}) != wanted:
            raise malformed(f"{self.measure} is of {wanted} different columns")
        if bool(self.edges) != (self.measure == "histogram"):
            raise malformed("edges go with histogram, and with nothing else")
        if bool(self.probabilities) != (self.measure == "quantiles"):
            raise malformed("probabilities go with quantiles, and with nothing else")
        self._check_columns()

    def _check_columns(self) -> None:
        if self.measure in ("count", "table"):
            if self.decimals:
                raise malformed(f"{self.measure} has no decimals")
            if any(each.values is None for each in self.columns):
                raise malformed("the columns of a table are categories: name their values")
            if self.cells > CELLS_MAX:
                raise malformed(f"at most {CELLS_MAX} cells")
            return
        only = self.columns[0]
        if only.values is not None or (only.low is None) != (self.measure == "histogram"):
            raise malformed(
                f"{self.measure} is of a number" + (" with its range" if not self.edges else ", cut by edges")
            )
        if self.measure == "histogram":
            ends = [fixed(each, self.decimals) for each in self.edges]
            if len(ends) < 2 or any(a >= b for a, b in itertools.pairwise(ends)):
                raise malformed("a histogram has two edges or more, rising")
            return
        for end in (only.low, only.high):
            fixed(str(end), self.decimals)
        chances = [Decimal(each) for each in self.probabilities]
        if any(not 0 < each < 1 for each in chances) or sorted(set(chances)) != chances:
            raise malformed("probabilities lie between 0 and 1, rising")

    @property
    def cells(self) -> int:
        """How many cells a table or histogram has; 0 for other measures."""
        if self.measure == "histogram":
            return len(self.edges) - 1
        if self.measure == "table":
            first, second = (len(each.values or ()) for each in self.columns)
            return first * second
        return 0

    @property
    def names(self) -> frozenset[str]:
        """All columns that it reads, those of its condition included."""
        return frozenset({each.name for each in self.columns} | {each.column for each in self.where})

    @property
    def text(self) -> str:
        """The text that `query_text.parse` reads as this very query."""
        inside = "; ".join(_spell(each, self.decimals) for each in self.columns)
        lists = ", ".join(self.edges or self.probabilities)
        head = f"{self.measure}({inside}{': ' + lists if lists else ''})" if self.columns else self.measure
        tests = [f"{_quoted(each.column, name=True)} {each.op} {_literal(each)}" for each in self.where]
        return head + (" where " + " and ".join(tests) if tests else "")


def _value(value: object) -> str:
    if not text_of(value, VALUE_CHARS_MAX) or not str(value).isprintable():
        raise malformed(f"a value is 1 to {VALUE_CHARS_MAX} printable characters")
    return str(value)


def _spell(each: Column, decimals: int) -> str:
    name = _quoted(each.name, name=True)
    if each.values is not None:
        return f"{name}: " + ", ".join(_quoted(value) for value in each.values)
    step = f" by {shortest(Decimal(1).scaleb(-decimals))}"
    return name + ("" if each.low is None else f" in {each.low}..{each.high}") + step


def _quoted(text: str, *, name: bool = False) -> str:
    if name and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) and text not in ("where", "and", "in", "by"):
        return text
    return "'" + text.replace("'", "''") + "'"


def _literal(each: Comparison) -> str:
    return each.value if each.number else _quoted(each.value)
