"""The short text of a query, as people type it after `--query`.

    query      = head [ "where" test { "and" test } ]
    head       = "count" [ "(" ")" ]
               | ( "sum" | "mean" | "variance" | "median" ) "(" number ")"
               | "quantiles" "(" number ":" decimal { "," decimal } ")"
               | "histogram" "(" name [ "by" step ] ":" decimal { "," decimal } ")"
               | "table" "(" category ";" category ")"
    number     = name [ "in" decimal ".." decimal ] [ "by" step ]
    category   = name ":" value { "," value }
    test       = name ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
    name       = letters, digits and "_", or any text between single quotes ('' is a quote in it)
    value      = decimal | name | 'quoted text'
    step       = 1 | 0.1 | 0.01 | ... | 0.000001

Rules:
1. a range that the text does not give comes from `ranges` (`--range age=0..120`); without one the query is refused;
2. in a condition an unquoted number compares as a number, anything else as text;
3. without `by` numbers are kept to 3 places, or to as many as the range leaves room for; a histogram to those of its
   edges;
4. every refusal says what was expected and at which character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from comity.wire.errors import ComityError
from comity_policies.query import (
    DECIMALS_MAX,
    FIXED_MAX,
    MEASURES,
    OPERATORS,
    Column,
    Comparison,
    Query,
    decimal_of,
    shortest,
)
from comity_policies.term_rows import malformed

QUERY_CHARS_MAX = 16_384
DECIMALS_DEFAULT = 3
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?![A-Za-z_]))|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|'(?P<quoted>(?:[^']|'')*)'|(?P<sign>\.\.|!=|<=|>=|[=<>():;,])"
)
_STEPS = {shortest(Decimal(1).scaleb(-places)): places for places in range(DECIMALS_MAX + 1)}
_RANGE = re.compile(r"(.{1,128})=([^=.]+(?:\.[0-9]+)?)\.\.([^=]+)")


def parse(text: str, ranges: Mapping[str, tuple[str, str]] | None = None) -> Query:
    """Return the query that `text` means.

    Args:
        text: see the head of this module; at most 16,384 characters.
        ranges: column -> (low, high), for numbers whose range the text does not give.

    Raises:
        ComityError: `MALFORMED`, saying what was expected and where.
    """
    if len(text) > QUERY_CHARS_MAX:
        raise malformed(f"a query has at most {QUERY_CHARS_MAX} characters")
    reader = _Reader(text, ranges or {})
    query = reader.query()
    reader.end()
    return query


def read_range(text: str) -> tuple[str, tuple[str, str]]:
    """Read `COLUMN=LOW..HIGH`. Raises `MALFORMED`."""
    found = _RANGE.fullmatch(text)
    if found is None:
        raise malformed(f"--range is COLUMN=LOW..HIGH, such as age=0..120, not {text[:64]}")
    name, low, high = found.groups()
    return name, (_decimal(low), _decimal(high))


def _decimal(text: str) -> str:
    try:
        return decimal_of(shortest(Decimal(text)))
    except ArithmeticError as error:
        raise malformed(f"{text[:32]} is not a number") from error


class _Reader:
    """One pass over the tokens; every method reads what it is named after or refuses."""

    def __init__(self, text: str, ranges: Mapping[str, tuple[str, str]]) -> None:
        self._ranges = ranges
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise malformed(f"character {place + 1}: {text[place]!r} has no place in a query")
            kind = str(found.lastgroup)
            if kind != "space":
                value = found[kind].replace("''", "'") if kind == "quoted" else found[kind]
                self._tokens.append((kind, value, place + 1))
            place = found.end()
        self._tokens.append(("end", "the end", len(text) + 1))

    def query(self) -> Query:
        measure = self._word(f"one of {', '.join(MEASURES)}, median")
        if measure == "count":
            if self._take("("):
                self._need(")")
            return Query("count", where=self._where())
        if measure not in (*MEASURES, "median"):
            self._at -= 1
            raise self._wrong(f"one of {', '.join(MEASURES)}, median")
        self._need("(")
        if measure == "table":
            first = self._category()
            self._need(";")
            columns = (first, self._category())
            self._need(")")
            return Query("table", columns, where=self._where())
        if measure == "histogram":
            return self._histogram()
        column, decimals = self._number()
        chances: tuple[str, ...] = ("0.5",) if measure == "median" else ()
        if measure == "quantiles":
            self._need(":")
            chances = self._decimals()
        self._need(")")
        named = "quantiles" if measure == "median" else measure
        return Query(named, (column,), decimals, (), chances, self._where())

    def end(self) -> None:
        if self._peek()[0] != "end":
            raise self._wrong("where, and or the end")

    def _histogram(self) -> Query:
        name, places = self._name("a column"), self._step()
        self._need(":")
        edges = self._decimals()
        self._need(")")
        if places is None:
            places = max(len(each.partition(".")[2]) for each in edges)
        return Query("histogram", (Column(name),), places, edges, (), self._where())

    def _number(self) -> tuple[Column, int]:
        name = self._name("a column")
        if self._take("in"):
            low = self._literal_number()
            self._need("..")
            ends = (low, self._literal_number())
        elif name in self._ranges:
            ends = self._ranges[name]
        else:
            raise malformed(f"say the range of {name}: {name} in LOW..HIGH, or --range {name}=LOW..HIGH")
        places = self._step()
        if places is None:
            largest = max(abs(Decimal(each)) for each in ends)
            needed = max(len(each.partition(".")[2]) for each in ends)
            fitting = [each for each in range(needed, DECIMALS_DEFAULT + 1) if largest.scaleb(each) <= FIXED_MAX]
            places = fitting[-1] if fitting else needed
        return Column(name, *ends), places

    def _category(self) -> Column:
        name = self._name("a column")
        self._need(":")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        return Column(name, values=tuple(value for value, _ in values))

    def _where(self) -> tuple[Comparison, ...]:
        if not self._take("where"):
            return ()
        tests = [self._test()]
        while self._take("and"):
            tests.append(self._test())
        return tuple(tests)

    def _test(self) -> Comparison:
        name = self._name("a column")
        kind, sign, _ = self._peek()
        if kind != "sign" or sign not in OPERATORS:
            raise self._wrong(f"one of {' '.join(OPERATORS)}")
        self._at += 1
        value, number = self._value()
        return Comparison(name, sign, value, number)

    def _step(self) -> int | None:
        if not self._take("by"):
            return None
        kind, text, _ = self._peek()
        if kind != "number" or text not in _STEPS:
            raise self._wrong(f"one of {' '.join(_STEPS)}")
        self._at += 1
        return _STEPS[text]

    def _decimals(self) -> tuple[str, ...]:
        found = [self._literal_number()]
        while self._take(","):
            found.append(self._literal_number())
        return tuple(found)

    def _literal_number(self) -> str:
        kind, text, _ = self._peek()
        if kind != "number":
            raise self._wrong("a number")
        self._at += 1
        return _decimal(text)

    def _value(self) -> tuple[str, bool]:
        if self._peek()[0] == "number":
            return self._literal_number(), True
        return self._name("a value"), False

    def _name(self, what: str) -> str:
        kind, text, _ = self._peek()
        if kind not in ("word", "quoted"):
            raise self._wrong(what)
        self._at += 1
        return text

    def _word(self, what: str) -> str:
        kind, text, _ = self._peek()
        if kind != "word":
            raise self._wrong(what)
        self._at += 1
        return text

    def _take(self, wanted: str) -> bool:
        kind, text, _ = self._peek()
        if kind in ("word", "sign") and text == wanted:
            self._at += 1
            return True
        return False

    def _need(self, wanted: str) -> None:
        if not self._take(wanted):
            raise self._wrong(wanted)

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at]

    def _wrong(self, wanted: str) -> ComityError:
        _, text, place = self._peek()
        return malformed(f"character {place}: {wanted} expected, not {text[:32]}")
