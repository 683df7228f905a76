"""From replies to sums and back, without encryption: exact means of numbers, bounded errors of arrays, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import Content, Record, array_entry
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_node.training.profiles import sum_form
from comity_policies.terms import Terms

X = np.linspace(-1, 1, 500, dtype=np.float32)
ASKED = Content((Record("arrays", "array", (array_entry("w", X),)), Record("config", "config", (("round", 1),))))
KEYS = [bytes([index]) * 32 for index in range(3)]


def reply(values, numbers, *, arrays="arrays", metrics="metrics"):
    records = [] if values is None else [Record(arrays, "array", (array_entry("w", values),))]
    return Content((*records, Record(metrics, "metric", tuple(numbers.items()))))


def summed(replies, word="train", terms=None, cohort=1_000):
    terms = terms or Terms()
    fixed = sum_form.plan(ASKED, word, terms)
    formed = [sum_form.form(fixed, ASKED, each, word, cohort, key) for each, key in zip(replies, KEYS, strict=True)]
    slots = sum(each.encoded.slots for each in formed) % np.uint64(AGG_Q16.plain_modulus)
    decoded = sum_form.decode(slots, len(replies), ASKED, word, fixed)
    shape = sum_form.Shape.from_bytes(formed[0].shape.to_bytes())
    return formed, sum_form.unform(decoded, shape, ASKED, word, len(replies), fixed.weight_max)


@pytest.mark.parametrize("values", [(0.1, 0.2, 0.7), (-1e9, 3.0, 1e9), (2.0**-39, 0.0, -(2.0**-39)), (5, 6, 8)])
def test_numbers_have_their_exact_weighted_mean(values):
    weights = (100, 250, 999)
    replies = [reply(None, {"m": m, "l": [m, 1], "num-examples": w}) for m, w in zip(values, weights, strict=True)]
    formed, content = summed(replies, "evaluate")
    exact = [each.encoded.weight for each in formed]
    wanted = sum(m * w for m, w in zip(values, exact, strict=True)) / sum(exact)
    found = content.metrics["metrics"]
    assert found["m"] == pytest.approx(wanted, rel=1e-12, abs=2.0**-40)
    assert found["l"] == [pytest.approx(wanted, rel=1e-12, abs=2.0**-40), 1.0]
    assert found["num-examples"] == round(sum(weights) / 3)
    assert [each.clipped for each in formed] == [0, 0, 0]


def test_arrays_have_their_weighted_mean_up_to_the_rounding():
    noise = np.random.default_rng(3)
    parts = [X + noise.standard_normal(500).astype(np.float32) / 10 for _ in KEYS]
    replies = [reply(part, {"num-examples": w}) for part, w in zip(parts, (100, 300, 600), strict=True)]
    _, content = summed(replies)
    step = sum_form.plan(ASKED, "train", Terms()).bounds.value_range / 32767
    assert np.abs(content.arrays[0] - np.average(parts, axis=0, weights=(100, 300, 600))).max() < 3 * step
    assert content.shapes() == [("arrays", "w", "float32", (500,))]


def test_what_is_clamped_is_counted():
    replies = [reply(X + 10, {"m": 1e13, "num-examples": 5_000}) for _ in KEYS]
    formed, content = summed(replies)
    # The number beyond 2^39, the norm, and the examples beyond the largest weight.
    assert [each.clipped for each in formed] == [3, 3, 3]
    assert content.metrics["metrics"]["m"] == pytest.approx(2.0**39)


def test_without_examples_everybody_weighs_the_same():
    _, content = summed([reply(None, {"m": value}) for value in (1.0, 2.0, 6.0)], "evaluate")
    assert content.metrics["metrics"] == {"m": 3.0}


@pytest.mark.parametrize(
    "bad",
    [
        reply(X.astype(np.float64), {"num-examples": 1}),
        reply(X[:-1].copy(), {"num-examples": 1}),
        reply(None, {"num-examples": 1}),
        reply(X, {"num-examples": 0}),
        reply(X, {"num-examples": float("nan")}),
        reply(X, {"num-examples": 1, "m": float("inf")}),
        reply(X * np.float32("nan"), {"num-examples": 1}),
        reply(X, {f"m{place}": 1.0 for place in range(49)}),
        Content(error=(1, "secret text")),
    ],
)
def test_replies_that_cannot_be_summed_are_refused(bad):
    fixed = sum_form.plan(ASKED, "train", Terms())
    with pytest.raises(ComityError) as refused:
        sum_form.form(fixed, ASKED, bad, "train", 10, KEYS[0])
    assert refused.value.code in (ErrorCode.REPLY_SHAPE, ErrorCode.APP_FAILED)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("other", [{"n": 2.0, "num-examples": 9}, {"m": [2.0], "num-examples": 9}, {"num-examples": 9}])
def test_parties_with_other_names_are_noticed(other):
    same = {"m": 1.0, "num-examples": 9}
    with pytest.raises(ComityError) as refused:
        summed([reply(None, same), reply(None, other), reply(None, same)], "evaluate")
    assert refused.value.code is ErrorCode.REPLY_SHAPE


def test_only_an_order_to_train_is_answered_by_arrays():
    with pytest.raises(ComityError, match="train"):
        summed([reply(X, {"m": 1.0})] * 3, "evaluate")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"arrays":[],"metrics":[["a","b",99]]}', b'{"arrays":[1],"metrics":[]}']
)
def test_a_strangers_shape_is_read_strictly(data):
    with pytest.raises(ComityError):
        sum_form.Shape.from_bytes(data)


def test_terms_fix_the_bounds():
    fixed = sum_form.plan(ASKED, "train", Terms.parse({"clip_norm": "2", "range": "0.5", "weight_max": 7}))
    assert (fixed.bounds.clip_norm, fixed.bounds.value_range, fixed.weight_max) == (2.0, 0.5, 7)
