"""The kinds of terms: how each is read, written, made stricter and compared (negotiation.md section 3).

Rules: a row never sees an absent term (absent is no constraint, and `terms.py` handles it); `meet` is commutative,
associative and idempotent, and never less strict than either side; `parse` accepts what a person may write (any order,
short decimals) and refuses everything else; `to_json` gives the one spelling that is signed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Protocol

from comity.wire import ids, instants
from comity.wire.canonical import INTEGER_MAX
from comity.wire.errors import ComityError, ErrorCode

SET_SIZE_MAX = 1024
KEYS_MAX = 256
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,15})?")


def malformed(detail: str) -> ComityError:
    """Return the refusal of a document that is not in the agreed form."""
    return ComityError(ErrorCode.MALFORMED, detail)


class Row(Protocol):
    """One kind of term; values are immutable."""

    def parse(self, value: Any) -> Any:
        """Return the value that JSON `value` means. Raises `MALFORMED`."""
        ...

    def to_json(self, value: Any) -> Any:
        """Return the one spelling of `value`."""
        ...

    def meet(self, a: Any, b: Any) -> Any:
        """Return the stricter of two values."""
        ...

    def conforms(self, a: Any, b: Any) -> bool:
        """Tell whether `a` is at least as strict as `b`; `a` None means absent."""
        ...


def text_of(value: Any, chars_max: int = 256) -> str:
    """Return `value` if it is text of at most `chars_max` characters. Raises `MALFORMED`."""
    if not isinstance(value, str) or len(value) > chars_max:
        raise malformed(f"text of at most {chars_max} characters expected")
    return value


def whole_number(value: Any, low: int, high: int) -> int:
    """Return `value` if it is an integer (no boolean) from `low` to `high`. Raises `MALFORMED`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise malformed(f"a whole number from {low} to {high} expected")
    return value


def column(text: Any) -> str:
    """Return `text` if it can name a column: 1 to 128 printable characters. Raises `MALFORMED`."""
    if not text_of(text, 128) or not text.isprintable():
        raise malformed("a column name is 1 to 128 printable characters")
    return str(text)


def dataset_key(text: Any) -> str:
    """Return `text` if it reads `<organisation>/<dataset>`. Raises `MALFORMED`."""
    org, slash, dataset = text_of(text).partition("/")
    if not slash:
        raise malformed("a dataset is named <organisation>/<dataset>")
    return f"{ids.org_id(org)}/{ids.name(dataset)}"


def one_of(choices: Collection[str]) -> Callable[[Any], str]:
    """Return a reader of one of `choices`."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise malformed(f"one of {', '.join(choices)} expected")
        return value

    return read


@dataclass(frozen=True, slots=True)
class SetRow:
    """A set of texts; `union` terms add up (each element is a duty), the others intersect (each is a permission)."""

    item: Callable[[Any], str]
    union: bool = False

    def parse(self, value: Any) -> frozenset[str]:
        if not isinstance(value, list | tuple | set | frozenset) or len(value) > SET_SIZE_MAX:
            raise malformed(f"a list of at most {SET_SIZE_MAX} texts expected")
        items = frozenset(self.item(each) for each in value)
        if len(items) != len(value):
            raise malformed("a set names each element once")
        return items

    def to_json(self, value: frozenset[str]) -> list[str]:
        return sorted(value)

    def meet(self, a: frozenset[str], b: frozenset[str]) -> frozenset[str]:
        return a | b if self.union else a & b

    def conforms(self, a: frozenset[str] | None, b: frozenset[str]) -> bool:
        if self.union:
            return b <= (a or frozenset())
        return a is not None and a <= b


@dataclass(frozen=True, slots=True)
class CountRow:
    """A whole number; the unit is in the term's name."""

    larger: bool
    low: int = 0
    high: int = INTEGER_MAX

    def parse(self, value: Any) -> int:
        return whole_number(value, self.low, self.high)

    def to_json(self, value: int) -> int:
        return value

    def meet(self, a: int, b: int) -> int:
        return max(a, b) if self.larger else min(a, b)

    def conforms(self, a: int | None, b: int) -> bool:
        if self.larger:
            return (self.low if a is None else a) >= b
        return a is not None and a <= b


@dataclass(frozen=True, slots=True)
class DecimalRow:
    """A positive decimal with at most `scale` digits after the point; smaller is stricter."""

    scale: int

    def parse(self, value: Any) -> Decimal:
        if isinstance(value, Decimal):
            value = format(value, "f")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
            raise malformed("a real number is written as decimal text, such as 0.5")
        if len(value.partition(".")[2]) > self.scale:
            raise malformed(f"at most {self.scale} digits after the point")
        number = Decimal(value)
        if number <= 0:
            raise malformed("a number above zero expected")
        return number

    def to_json(self, value: Decimal) -> str:
        return f"{value:.{self.scale}f}"

    def meet(self, a: Decimal, b: Decimal) -> Decimal:
        return min(a, b)

    def conforms(self, a: Decimal | None, b: Decimal) -> bool:
        return a is not None and a <= b


@dataclass(frozen=True, slots=True)
class OrderRow:
    """One of a ladder of values, the strictest last; the first is the same as no constraint."""

    ladder: tuple[str, ...]

    def parse(self, value: Any) -> str:
        return one_of(self.ladder)(value)

    def to_json(self, value: str) -> str:
        return value

    def meet(self, a: str, b: str) -> str:
        return max(a, b, key=self.ladder.index)

    def conforms(self, a: str | None, b: str) -> bool:
        return self.ladder.index(a or self.ladder[0]) >= self.ladder.index(b)


@dataclass(frozen=True, slots=True)
class InstantRow:
    """An instant as text, whose order is the order of time; earlier is stricter."""

    def parse(self, value: Any) -> str:
        return instants.to_text(instants.parse(value))

    def to_json(self, value: str) -> str:
        return value

    def meet(self, a: str, b: str) -> str:
        return min(a, b)

    def conforms(self, a: str | None, b: str) -> bool:
        return a is not None and a <= b


@dataclass(frozen=True, slots=True)
class KeyedRow:
    """One value of another row for each key; a key that is absent carries no constraint."""

    key: Callable[[Any], str]
    inner: Row

    def parse(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or len(value) > KEYS_MAX:
            raise malformed(f"an object of at most {KEYS_MAX} keys expected")
        return MappingProxyType({self.key(each): self.inner.parse(value[each]) for each in sorted(value, key=str)})

    def to_json(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return {each: self.inner.to_json(item) for each, item in value.items()}

    def meet(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> Mapping[str, Any]:
        both = {
            each: self.inner.meet(a[each], b[each]) if each in a and each in b else a[each] if each in a else b[each]
            for each in sorted({*a, *b})
        }
        return MappingProxyType(both)

    def conforms(self, a: Mapping[str, Any] | None, b: Mapping[str, Any]) -> bool:
        mine = a or {}
        return all(self.inner.conforms(mine.get(each), item) for each, item in b.items())


def met(row: Row, values: Sequence[Any]) -> Any:
    """Return the strictest of several values, at least one: `row.meet` between all of them."""
    if not isinstance(row, KeyedRow):
        return functools.reduce(row.meet, values)
    by_key: dict[str, list[Any]] = {}
    for value in values:
        for key, item in value.items():
            by_key.setdefault(key, []).append(item)
    return MappingProxyType({key: met(row.inner, by_key[key]) for key in sorted(by_key)})


@dataclass(frozen=True, slots=True)
class Privacy:
    """A differential-privacy budget for the whole agreement."""

    epsilon: Decimal
    delta: Decimal


@dataclass(frozen=True, slots=True)
class PrivacyRow:
    """`{"epsilon", "delta"}`, each smaller is stricter; four and twelve digits after the point."""

    epsilon: DecimalRow = DecimalRow(4)
    delta: DecimalRow = DecimalRow(12)

    def parse(self, value: Any) -> Privacy:
        if not isinstance(value, Mapping) or set(value) != {"epsilon", "delta"}:
            raise malformed("privacy has exactly epsilon and delta")
        delta = self.delta.parse(value["delta"])
        if delta >= 1:
            raise malformed("delta is below 1")
        return Privacy(self.epsilon.parse(value["epsilon"]), delta)

    def to_json(self, value: Privacy) -> dict[str, str]:
        return {"epsilon": self.epsilon.to_json(value.epsilon), "delta": self.delta.to_json(value.delta)}

    def meet(self, a: Privacy, b: Privacy) -> Privacy:
        return Privacy(min(a.epsilon, b.epsilon), min(a.delta, b.delta))

    def conforms(self, a: Privacy | None, b: Privacy) -> bool:
        return a is not None and a.epsilon <= b.epsilon and a.delta <= b.delta


@dataclass(frozen=True, slots=True)
class Peers:
    """At least `count` of the organisations in `among` take part; `among` do not collude in the eyes of one party."""

    count: int
    among: frozenset[str]


@dataclass(frozen=True, slots=True)
class PeersRow:
    """`{"count", "among"}`: more of fewer is stricter."""

    orgs: SetRow

    def parse(self, value: Any) -> Peers:
        if not isinstance(value, Mapping) or set(value) != {"count", "among"}:
            raise malformed("independent_peers has exactly count and among for each organisation")
        return Peers(whole_number(value["count"], 1, SET_SIZE_MAX), self.orgs.parse(value["among"]))

    def to_json(self, value: Peers) -> dict[str, Any]:
        return {"count": value.count, "among": self.orgs.to_json(value.among)}

    def meet(self, a: Peers, b: Peers) -> Peers:
        return Peers(max(a.count, b.count), a.among & b.among)

    def conforms(self, a: Peers | None, b: Peers) -> bool:
        return a is not None and a.count >= b.count and a.among <= b.among
