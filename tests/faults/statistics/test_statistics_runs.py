"""Statistics through the whole path: exact against numpy on the pooled records, under every profile."""

from __future__ import annotations

import numpy as np
import pytest

PROFILES = ["plain", "lead-key", "masked", "threshold"]


def numbers(rows, column=0, low=None, high=None, keep=lambda row: True):
    found = np.array([float(row[column]) for row in rows() if row[column] and keep(row)])
    return found if low is None else np.clip(found, low, high)


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_variance_is_that_of_the_pooled_records(ask, rows, profile):
    text = "variance(bmi in 15..45) where age >= 18 and smoker = 1"
    got = await ask.answer(text, terms={"aggregation": profile})
    wanted = numbers(rows, 1, 15, 45, lambda row: float(row[0]) >= 18 and row[3] in ("1", "1.0"))
    assert got["records"] == len(wanted)
    assert got["value"] == pytest.approx(wanted.var(), rel=1e-12)
    assert got["sample"] == pytest.approx(wanted.var(ddof=1), rel=1e-12)
    assert (got["parties"], got["noise_std"]) == (3, 0.0)


async def test_every_other_measure_is_exact(ask, rows):
    got = await ask.answer("sum(bmi in 15..45)", terms={"aggregation": "masked"})
    assert got["value"] == pytest.approx(numbers(rows, 1, 15, 45).sum(), abs=1e-9)
    assert (await ask.answer("mean(age in 0..120)"))["value"] == pytest.approx(numbers(rows, 0, 0, 120).mean())
    assert (await ask.answer("count where group = north"))["value"] == sum(row[2] == "north" for row in rows())
    edges = [0, 30, 60, 90, 120]
    got = await ask.answer("histogram(age: 0, 30, 60, 90, 120)")
    assert got["counts"] == np.histogram(numbers(rows), edges)[0].tolist()
    got = await ask.answer("table(group: north, south, east; smoker: 0, 1)")
    wanted = [
        [sum(r[2] == g and r[3] in s for r in rows()) for s in (("0",), ("1", "1.0"))]
        for g in ("north", "south", "east")
    ]
    assert (got["counts"], got["hidden_by"]) == (wanted, [[0, 0]] * 3)
    got = await ask.answer("histogram(age: -5, -4, 30, 60, 130)")
    wanted = np.histogram(numbers(rows), [-5, -4, 30, 60, 130])[0].tolist()
    assert any(got["hidden_by"]), "a party has one or two records of one year"
    for count, least, by, exact in zip(got["counts"], got["at_least"], got["hidden_by"], wanted, strict=True):
        assert (count is None and least <= exact) if by else count == exact


async def test_quantiles_are_found_by_rounds_within_the_stated_ranks(ask, rows):
    text = "quantiles(bmi in 0..100: 0.1, 0.5, 0.9)"
    got = await ask.answer(text, rounds=4, terms={"aggregation": "lead-key"})
    ordered = np.sort(numbers(rows, 1, 0, 100))
    assert got["records"] == len(ordered)
    assert got["rank_error"] == 3 * 2
    assert got["rounds"] <= 4
    for row in got["values"]:
        assert row["low"] == row["high"] == row["value"], "refined down to one step"
        rank = np.searchsorted(ordered, row["value"], side="right")
        assert abs(rank - float(row["p"]) * len(ordered)) <= got["rank_error"] + 1
