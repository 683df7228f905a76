"""The lead's arithmetic: from summed integers to an answer with its uncertainty, and quantiles by refinement. Pure.

Rules:
1. The next question follows from the answers before it alone, so that a restarted lead asks the same again.
2. A quantile p is the smallest number that at least p of the records do not exceed (the inverse of the empirical
   distribution). Each round narrows its window to one cell, until the cell is one step wide.
3. A cell of fewer records than any party's minimum is not shown. Under a budget that is judged by the noisy number, so
   it costs nothing.
4. An answer says what is not exact in it: rounding, hidden cells, the standard deviation of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics import privacy
from comity_node.statistics.counting import CELL_MIN
from comity_node.statistics.party import least_of
from comity_node.statistics.questions import Part, Question, Window, centre_of, parts_of, whole_window
from comity_policies.documents import AggregateStep, Agreement
from comity_policies.query import shortest


@dataclass(slots=True)
class Combiner:
    """One run of a statistic. `next_question`, then `take` its sum, until there is no next one; then `answer`."""

    agreement: Agreement
    step: AggregateStep
    round: int = 0
    parties: int = 0
    _sums: list[int] = field(default_factory=list)
    _windows: list[Window] = field(default_factory=list)
    _stds: list[float] = field(default_factory=list)

    def next_question(self) -> Question | None:
        """Return what to ask now, None when enough is known."""
        query = self.step.query
        if query.measure != "quantiles":
            return Question(1) if self.round == 0 else None
        if not self._windows:
            self._windows = [whole_window(query) for _ in query.probabilities]
        if self.round >= self.step.rounds or all(each.cells == 1 for each in self._windows):
            return None
        return Question(self.round + 1, self._distinct())

    def take(self, question: Question, integers: Sequence[int], parties: int) -> None:
        """Take the sum of `parties` vectors. Raises `EGRESS_DENIED` if too few records are behind it."""
        self.round, self.parties = question.round, parties
        self._sums = list(integers)
        parts = self.parts(question)
        shares = privacy.shares_of(self.agreement, parts)
        self._stds = [math.sqrt(parties * share.variance) for share in shares]
        if self.step.query.measure == "quantiles":
            self._narrow(question, parts)
        elif not self._private and parts[0].name == "count" and self._sums[0] < self._least:
            raise ComityError(ErrorCode.EGRESS_DENIED, "fewer records than the minimum stand behind the statistic")

    def parts(self, question: Question) -> tuple[Part, ...]:
        """Return the groups of the vector."""
        return parts_of(self.step.query, question, self._private)

    def answer(self) -> dict[str, Any]:
        """Return what the recipients read: numbers of JSON, exact sums as decimal text."""
        query = self.step.query
        found: dict[str, Any] = {
            "query": query.text,
            "measure": query.measure,
            "parties": self.parties,
            "rounds": self.round,
            "rounded_to": shortest(Decimal(1).scaleb(-query.decimals)),
            "privacy": self.agreement.terms.to_json().get("privacy"),
        }
        make = {
            "count": self._count,
            "sum": self._sum,
            "mean": self._mean,
            "variance": self._variance,
            "histogram": self._histogram,
            "table": self._table,
            "quantiles": self._quantiles,
        }
        return found | make[query.measure]()

    @property
    def _private(self) -> bool:
        return "privacy" in self.agreement.terms

    @property
    def _least(self) -> int:
        return max([CELL_MIN, *(least_of(self.agreement, org) for org in self.agreement.parties)])

    @property
    def _scale(self) -> int:
        return int(10**self.step.query.decimals)

    def _std(self, place: int) -> float:
        return self._stds[place] if self._stds else 0.0

    # -- answers

    def _count(self) -> dict[str, Any]:
        return {"value": self._sums[0], "records": self._sums[0], "noise_std": self._std(0)}

    def _sum(self) -> dict[str, Any]:
        exact = Fraction(self._sums[-1], self._scale)
        records = None if self._private else self._sums[0]
        text = shortest(Decimal(self._sums[-1]).scaleb(-self.step.query.decimals))
        return {"value": float(exact), "exact": text, "records": records, "noise_std": self._std(0) / self._scale}

    def _mean(self) -> dict[str, Any]:
        records, total = self._sums
        if records < 1:
            return {"value": None, "records": records, "noise_std": None}
        mean = Fraction(centre_of(self.step.query)) + Fraction(total, records)
        spread = math.hypot(self._std(1), total / records * self._std(0)) / records
        return {"value": float(mean / self._scale), "records": records, "noise_std": spread / self._scale}

    def _variance(self) -> dict[str, Any]:
        records, total, squares = self._sums
        if records < 2:
            return {"value": None, "sample": None, "records": records, "noise_std": None}
        mean = Fraction(total, records)
        variance = Fraction(squares, records) - mean * mean
        area = self._scale**2
        # To first order: what each of the three noisy numbers moves.
        by_count = float(2 * mean * mean - Fraction(squares, records)) / records * self._std(0)
        by_sum = float(2 * mean) / records * self._std(1)
        spread = math.hypot(by_count, by_sum, self._std(2) / records)
        sample = variance * records / (records - 1)
        return {
            "value": float(variance / area),
            "sample": float(sample / area),
            "records": records,
            "noise_std": spread / area,
        }

    def _histogram(self) -> dict[str, Any]:
        return {"edges": list(self.step.query.edges), **self._cells(self.step.query.cells)}

    def _table(self) -> dict[str, Any]:
        rows, columns = self.step.query.columns
        return {
            "rows": {"column": rows.name, "values": list(rows.values or ())},
            "columns": {"column": columns.name, "values": list(columns.values or ())},
            **self._cells(len(columns.values or ())),
        }

    def _cells(self, width: int) -> dict[str, Any]:
        """Return counts in rows of `width` (a histogram is one row, and is given as such).

        A cell that a party has hidden has no count but an `at_least`, and so has one below the minimum.
        """
        cells = self.step.query.cells
        sums, hidden = self._sums[:cells], self._sums[cells:] or [0] * cells
        # Under a budget an empty cell is as noisy as a small one, and is not told from it.
        exact_none = not self._private
        counts = [
            n if not by and (n >= self._least or (n == 0 and exact_none)) else None
            for n, by in zip(sums, hidden, strict=True)
        ]
        at_least = [max(0, n) if by else 0 for n, by in zip(sums, hidden, strict=True)]
        found: dict[str, list[Any]] = {"counts": counts, "at_least": at_least, "hidden_by": hidden}
        made: dict[str, Any] = {}
        for name, row in found.items():
            rows = [row[start : start + width] for start in range(0, cells, width)]
            made[name] = row if self.step.query.measure == "histogram" else rows
        return {**made, "minimum": self._least, "noise_std": self._std(0)}

    def _quantiles(self) -> dict[str, Any]:
        rows = []
        for chance, window in zip(self.step.query.probabilities, self._windows, strict=True):
            low, high = window.low / self._scale, (window.high - 1) / self._scale
            rows.append({"p": chance, "value": (low + high) / 2, "low": low, "high": high})
        least = 0 if self._private else self._least - 1
        return {
            "values": rows,
            "records": self._records(),
            "rank_error": least * self.parties,
            "noise_std": max(self._stds, default=0.0),
        }

    def _records(self) -> int:
        """Return how many records the last round counted: every window sees them all."""
        return sum(self._sums[: self._distinct_sizes[0]]) if self._sums else 0

    _distinct_sizes: tuple[int, ...] = ()

    # -- quantiles

    def _distinct(self) -> tuple[Window, ...]:
        return tuple(dict.fromkeys(self._windows))

    def _narrow(self, question: Question, parts: tuple[Part, ...]) -> None:
        """Put each probability's window on the cell in which its rank lies."""
        start, counts = 0, {}
        for window, part in zip(question.windows, parts, strict=True):
            counts[window] = self._sums[start : start + part.group.size]
            start += part.group.size
        self._distinct_sizes = tuple(part.group.size for part in parts)
        if not self._private and self._records() < self._least:
            raise ComityError(ErrorCode.EGRESS_DENIED, "fewer records than the minimum stand behind the statistic")
        for place, (chance, window) in enumerate(zip(self.step.query.probabilities, self._windows, strict=True)):
            self._windows[place] = _cell_of(window, counts[window], Fraction(chance))


def _cell_of(window: Window, counts: Sequence[int], chance: Fraction) -> Window:
    """Return the cell of `window` in which the rank lies; noise may put it outside, then the nearest cell is taken."""
    rank = chance * sum(counts)
    reached, edges = counts[0], window.edges
    for cell in range(window.cells - 1):
        reached += counts[cell + 1]
        if reached >= rank:
            return Window(edges[cell], edges[cell + 1])
    return Window(edges[-2], edges[-1])
