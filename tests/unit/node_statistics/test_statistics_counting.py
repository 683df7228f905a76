"""A party's arithmetic and the lead's: exact integers, nothing of too few records, quantiles by refinement."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_node.statistics import counting, vectors
from comity_node.statistics.combining import Combiner
from comity_node.statistics.questions import Question, Window, parts_of
from comity_node.statistics.records import Selection, select
from comity_node.training.datasets import Copy
from comity_policies.documents import AggregateStep, Agreement
from comity_policies.query_text import parse
from comity_policies.terms import Terms

NUMBERS = st.lists(st.integers(0, 1_000), min_size=3, max_size=200)


def selection(numbers: list[int]) -> Selection:
    return Selection(len(numbers), (np.array(numbers, np.int64),), 0)


@settings(max_examples=60)
@given(st.lists(st.integers(-(2**94), 2**94), min_size=1, max_size=5), st.integers(1, 50))
def test_limbs_add_up_to_the_sums_of_integers(integers: list[int], parties: int) -> None:
    keys = [bytes([party]) * 32 for party in range(parties)]
    contributions = [vectors.to_limbs(integers, key) for key in keys]
    assert vectors.from_limbs(np.sum(contributions, axis=0), parties) == [each * parties for each in integers]
    assert all(0 <= int(each.min()) <= int(each.max()) <= vectors.LIMB_MAX < 1 << 25 for each in contributions)
    assert np.array_equal(contributions[0], vectors.to_limbs(integers, keys[0])), "the same again for the same order"
    data = vectors.write(integers)
    assert vectors.read(data, len(integers)) == (integers, 1)
    assert len(data) == len(vectors.write([0] * len(integers))), "the size says nothing of the numbers"


def test_sums_of_limbs_do_not_tell_what_was_carried() -> None:
    """-5 and +5 against 0 and 0: without random carries each place but the lowest would tell them apart at once."""

    def sums(one: int, other: int, salt: int) -> np.ndarray:
        keys = [bytes([salt, party]) * 16 for party in range(2)]
        return vectors.to_limbs([one], keys[0]) + vectors.to_limbs([other], keys[1])

    apart, alike = (np.array([sums(*pair, salt) for salt in range(200)]) for pair in ((-5, 5), (0, 0)))
    assert vectors.from_limbs(apart[0], 2) == vectors.from_limbs(alike[0], 2) == [0]
    spread = 5 * float(1 << vectors.CARRY_BITS) / 12**0.5 * 2**0.5 / 200**0.5
    assert np.abs(apart.mean(axis=0) - alike.mean(axis=0)).max() < 6 * spread
    assert (apart.std(axis=0) > (1 << vectors.CARRY_BITS) / 4).all()


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_strange_vectors_and_questions_are_refused(data: bytes) -> None:
    for read in (lambda: vectors.read(data, 1), lambda: Question.from_bytes(data, parse("median(x in 0..9)"))):
        with pytest.raises(ComityError) as caught:
            read()
        assert caught.value.code in (ErrorCode.REPLY_SHAPE, ErrorCode.ORDER_MISMATCH)


@pytest.mark.parametrize(
    "windows", [(), (Window(0, 10_002),), (Window(5, 5),), (Window(-1, 3),), (Window(0, 5), Window(0, 6))]
)
def test_windows_outside_the_declared_range_are_refused(windows: tuple[Window, ...]) -> None:
    with pytest.raises(ComityError, match="not a question"):
        Question.from_bytes(Question(1, windows).to_bytes(), parse("median(x in 0..10)"))


@settings(max_examples=60)
@given(NUMBERS, st.integers(3, 20))
def test_no_group_of_microaggregated_records_is_small(numbers: list[int], least: int) -> None:
    made = counting.microaggregate(np.array(numbers, np.int64), least)
    _, sizes = np.unique(made, return_counts=True)
    assert len(made) == len(numbers)
    assert min(sizes) >= min(least, len(numbers))
    for edge in (0, 250, 500, 750):
        moved = int((made < edge).sum()) - sum(each < edge for each in numbers)
        assert abs(moved) < 2 * least


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(3, 10))
def test_hidden_cells_cannot_be_found_by_subtraction(cells: list[int], least: int) -> None:
    shown, hidden = counting.hide(cells, least)
    assert all(each == 0 or each >= least for each in shown)
    assert sum(hidden) != 1 or sum(1 for each in cells if each) == 1
    assert [int(a != b) for a, b in zip(cells, shown, strict=True)] == hidden


def test_sums_of_squares_do_not_overflow() -> None:
    numbers = np.full(100_000, 2**31, np.int64)
    assert counting.exact_squares(numbers) == 100_000 * 2**62
    assert counting.exact_squares(-numbers) == 100_000 * 2**62


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_records_are_read_alike_from_every_format(tmp_path: Path, kind: str) -> None:
    rows = [("1.0005", "1"), ("-3", "1.0"), ("99", "yes"), ("2.5", "0"), ("7", "")]
    path = tmp_path / f"d.{kind}"
    if kind == "csv":
        path.write_text("x,s\n" + "".join(f"{a},{b}\n" for a, b in rows) + "NA,1\n")
    else:
        np.savez(path, x=np.array([*(a for a, _ in rows), "NA"]), s=np.array([*(b for _, b in rows), "1"]))
    copy = Copy(path, ("s", "x"), 6)
    found = select(copy, parse("sum(x in 0..10) where s = 1"))
    # 1.0005 is halfway between two steps of 0.001: rounded to the even one; -3 is clipped.
    assert (found.count, found.columns[0].tolist(), found.left_out) == (2, [1000, 0], 3)
    assert select(copy, parse("count where s != 1")).count == 2
    assert select(copy, parse("table(s: 0, 1; x: 99, 2.5)")).columns[0].tolist() == [0]
    with pytest.raises(ComityError, match="column s holds what is no number") as caught:
        select(copy, parse("sum(s in 0..10)"))
    assert caught.value.code == ErrorCode.DATASET_COLUMNS


@pytest.mark.parametrize("cell", ["1e999999999", "-1e999999999", "1e-999999999", "inf", "0x10", "9" * 100])
def test_strange_numbers_are_clipped_or_refused_and_cost_nothing(tmp_path: Path, cell: str) -> None:
    (tmp_path / "d.csv").write_text(f"x\n{cell}\n")
    try:
        found = select(Copy(tmp_path / "d.csv", ("x",), 1), parse("sum(x in 0..10)"))
    except ComityError as error:
        assert error.code == ErrorCode.DATASET_COLUMNS  # noqa: PT017 - both ways are right
    else:
        assert found.columns[0].tolist() in ([0], [10_000])


def agreement_of(terms: dict[str, Any]) -> Agreement:
    proposal = SimpleNamespace(datasets=(), steps=())
    made = SimpleNamespace(terms=Terms.parse(terms), parties=("a", "b"), proposal=proposal, limits={"rounds": 9})
    return cast("Agreement", made)


@settings(max_examples=40)
@given(st.lists(NUMBERS, min_size=2, max_size=2), st.sampled_from(["0.05", "0.5", "0.99"]))
def test_refinement_ends_at_the_records_quantile(parties: list[list[int]], chance: str) -> None:
    step = AggregateStep("ask", "a", parse(f"quantiles(x in 0..1000 by 1: {chance})"), 6, 60)
    combiner = Combiner(agreement_of({}), step)
    least = 3
    grouped = [counting.microaggregate(np.array(each, np.int64), least) for each in parties]
    while (question := combiner.next_question()) is not None:
        vector = [counting.vector_of(step.query, question, selection(each), least, private=False) for each in parties]
        combiner.take(question, [sum(column) for column in zip(*vector, strict=True)], 2)
    answer = combiner.answer()
    pooled = np.concatenate(grouped)
    assert answer["values"][0]["value"] == np.quantile(pooled, float(chance), method="inverted_cdf")
    assert answer["records"] == len(pooled)
    assert answer["rounds"] <= 2


def test_the_noise_of_an_answer_is_what_its_repetition_shows() -> None:
    """Means of noisy sums scatter as the stated standard deviation says: not half of it, not twice."""
    terms = {"privacy": {"epsilon": "2", "delta": "0.000001"}, "aggregation": "masked"}
    step = AggregateStep("ask", "a", parse("variance(x in 0..100 by 1)"), 1, 60)
    agreement, draw = agreement_of(terms), np.random.default_rng(5)
    numbers = draw.integers(0, 101, 2_000)
    exact = counting.vector_of(step.query, Question(1), selection(numbers.tolist()), 3, private=True)
    found, stated = [], 0.0
    for _ in range(300):
        combiner = Combiner(agreement, step)
        combiner.take(Question(1), exact, 2)
        noisy = [round(value + draw.normal(0, std)) for value, std in zip(exact, combiner._stds, strict=True)]
        combiner.take(Question(1), noisy, 2)
        answer = combiner.answer()
        found.append(answer["value"])
        stated = answer["noise_std"]
    assert abs(np.std(found) / stated - 1) < 5 / math.sqrt(2 * 300)
    assert len(parts_of(step.query, Question(1), private=True)) == len(exact) == 3
