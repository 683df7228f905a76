"""Encoder and masks: exact sums, the mean up to quantisation, clipping that is reported, masks that cancel."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import encoder as enc
from comity_crypto.secagg.bfv.masks import PairSeed, mask_chunk, mask_stream
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, CHECK_SLOTS
from comity_crypto.secagg.frame import replies as shared

KEY = bytes(32)


def arrays(rng: np.random.Generator, shapes: list[tuple[int, ...]], dtype: str) -> dict[str, Any]:
    return {f"a{i}": rng.standard_normal(shape).astype(dtype) for i, shape in enumerate(shapes)}


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(3, 50),
    shapes=st.lists(st.lists(st.integers(0, 40), min_size=0, max_size=2).map(tuple), max_size=4),
    dtype=st.sampled_from(["f2", "f4", "f8"]),
)
def test_the_decoded_sum_is_the_weighted_mean(seed: int, n: int, shapes: list[tuple[int, ...]], dtype: str) -> None:
    rng = np.random.default_rng(seed)
    x = arrays(rng, shapes, dtype)
    replies = [
        {name: (v + rng.standard_normal(v.shape).astype(dtype) / 9).astype(dtype) for name, v in x.items()}
        for _ in range(n)
    ]
    weights = [shared.weight_of(int(rng.integers(1, 900)), 800, 1000) for _ in range(n)]
    numbers = [[int(each) for each in rng.integers(0, 2**63, 2)] + [2**80 - 1] for _ in range(n)]
    value_range = 5.0
    total = np.zeros((1, AGG_Q16.ring_degree), np.uint64)
    for number in range(n):
        one = enc.encode(
            x, replies[number], weights[number], 1e6, value_range, bytes([number]) * 32,
            numbers=numbers[number],
        )  # fmt: skip
        assert one.clipped == 0
        assert not one.norm_clipped
        total = total + one.slots
    assert int(total.max()) < AGG_Q16.plain_modulus
    out = enc.decode(total, n, x, value_range, numbers=3)
    whole = sum(weights)
    assert out.weight == whole / shared.WEIGHT_ONE
    summed = [sum(w * each for w, each in zip(weights, row, strict=True)) for row in zip(*numbers, strict=True)]
    assert out.weighed == tuple(summed)
    bound = n * value_range / enc.LEVELS * shared.WEIGHT_ONE / whole
    for name, v in x.items():
        deltas = [w * (reply[name].astype("f8") - v.astype("f8")) for w, reply in zip(weights, replies, strict=True)]
        plain = v.astype("f8") + sum(deltas) / whole
        assert out.arrays[name].dtype == v.dtype
        assert out.arrays[name].shape == v.shape
        slack = bound + np.abs(plain) * float(np.finfo(dtype).eps) + 1e-9
        assert (np.abs(out.arrays[name].astype("f8") - plain) <= slack).all()


def test_encoding_is_deterministic_and_unbiased() -> None:
    x = {"w": np.zeros(20_000, np.float32)}
    y = {"w": np.full(20_000, 0.3 / enc.LEVELS, np.float32)}
    first, again, other = (enc.encode(x, y, shared.WEIGHT_ONE, 1e3, 1.0, key) for key in (KEY, KEY, b"k" * 32))
    assert np.array_equal(first.slots, again.slots)
    assert not np.array_equal(first.slots, other.slots)
    levels = enc._fields(first.slots[:, CHECK_SLOTS:].reshape(-1)[1:10_001], 20_000, 1)
    assert set(levels.tolist()) == {0, 1}
    assert abs(levels.mean() - 0.3) < 0.02
    assert str(first.slots[0, 9]) not in repr(first)


def test_clips_are_applied_and_reported() -> None:
    x = {"w": np.zeros(100)}
    y = {"w": np.full(100, 2.0)}
    clipped = enc.encode(x, y, shared.WEIGHT_ONE, 10.0, 4.0, KEY)  # the norm is 20
    assert clipped.norm_clipped
    assert clipped.clipped == 0
    out = enc.decode(clipped.slots * np.uint64(3), 3, x, 4.0)
    assert np.abs(out.arrays["w"] - 1.0).max() < 4.0 / enc.LEVELS
    beyond = enc.encode(x, {"w": np.where(np.arange(100) < 7, 2.0, 0.1)}, shared.WEIGHT_ONE, 100.0, 1.0, KEY)
    assert beyond.clipped == 7
    assert not beyond.norm_clipped


@pytest.mark.parametrize(
    "reply",
    [
        {"w": np.zeros(4, np.float32), "more": np.zeros(1, np.float32)},
        {"v": np.zeros(4, np.float32)},
        {"w": np.zeros(5, np.float32)},
        {"w": np.zeros((2, 2), np.float32)},
        {"w": np.zeros(4, np.float64)},
        {"w": np.array([0, np.nan, 0, 0], np.float32)},
        {"w": np.array([0, np.inf, 0, 0], np.float32)},
    ],
)
def test_a_reply_of_another_shape_is_refused(reply: Any) -> None:
    with pytest.raises(ComityError) as caught:
        enc.encode({"w": np.zeros(4, np.float32)}, reply, 1, 1.0, 1.0, KEY)
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_weights_numbers_and_dtypes_are_judged() -> None:
    floats = {"w": np.zeros(2)}
    for job in (
        lambda: enc.encode(floats, floats, 0, 1.0, 1.0, KEY),
        lambda: enc.encode(floats, floats, shared.WEIGHT_ONE + 1, 1.0, 1.0, KEY),
        lambda: enc.encode({"w": np.zeros(2, int)}, {"w": np.zeros(2, int)}, 1, 1.0, 1.0, KEY),
        lambda: shared.weight_of(0, 10, 10),
        lambda: shared.weight_of(10, 0, 10),
    ):
        with pytest.raises(ComityError) as caught:
            job()
        assert caught.value.code is ErrorCode.REPLY_SHAPE
    for numbers in ([-1], [1 << 80], [0] * 65):
        with pytest.raises(ComityError) as caught:
            enc.encode(floats, floats, 1, 1.0, 1.0, KEY, numbers=numbers)
        assert caught.value.code is ErrorCode.TOO_LARGE
    assert shared.weight_of(10**9, 50, 100) == shared.WEIGHT_ONE // 2, "the measured cohort is the limit"
    for bad in ((0.0, 1.0), (1.0, float("inf")), (-1.0, 1.0)):
        with pytest.raises(ComityError):
            shared.Bounds(*bad)


@given(place=st.integers(0, AGG_Q16.ring_degree - 1), bit=st.integers(0, 44))
def test_impossible_sums_are_refused(place: int, bit: int) -> None:
    x = {"w": np.zeros(5)}
    one = enc.encode(x, x, shared.WEIGHT_ONE, 1.0, 1.0, KEY)
    total = one.slots * np.uint64(3)
    enc.decode(total, 3, x, 1.0)
    for wrong in (2, 4, 51):
        with pytest.raises(ComityError):
            enc.decode(total, wrong, x, 1.0)
    total[0, place] ^= np.uint64(1 << bit)
    if place >= CHECK_SLOTS and place < CHECK_SLOTS + enc.Layout.of(x).payload_slots:
        return  # a payload slot may hold other possible numbers
    with pytest.raises(ComityError) as caught:
        enc.decode(total, 3, x, 1.0)
    assert caught.value.code is ErrorCode.SUM_MISMATCH


@given(values=st.lists(st.integers(-enc.INTEGER_BOUND, enc.INTEGER_BOUND), max_size=50), n=st.integers(3, 50))
def test_integers_are_exact(values: list[int], n: int) -> None:
    one = enc.encode_integers(np.array(values, np.int64))
    total = one.slots * np.uint64(n) % np.uint64(AGG_I32.plain_modulus)
    assert enc.decode_integers(total, n, len(values)).tolist() == [n * value for value in values]
    for beyond in (enc.INTEGER_BOUND + 1, -enc.INTEGER_BOUND - 1, -(1 << 63)):
        with pytest.raises(ComityError):
            enc.encode_integers(np.array([*values, beyond], np.int64))


@given(n=st.integers(3, 50), chunk=st.integers(0, 4095), secret=st.binary(min_size=8, max_size=8))
def test_masks_are_uniform_words_that_sum_to_zero(n: int, chunk: int, secret: bytes) -> None:
    for parameters in (AGG_Q16, AGG_I32):
        total = np.zeros(parameters.ring_degree, np.uint64)
        for me in range(min(n, 5)):
            pairs = [PairSeed(me < other, pair_seed(me, other, secret)) for other in range(min(n, 5)) if other != me]
            masked = mask_chunk(np.full(parameters.ring_degree, me, np.uint64), chunk, pairs, parameters)
            assert int(masked.max()) < parameters.plain_modulus
            assert np.mean(masked == me) < 0.01
            total = (total + masked) % np.uint64(parameters.plain_modulus)
        assert set(total.tolist()) == {sum(range(min(n, 5)))}


def pair_seed(first: int, second: int, secret: bytes) -> bytes:
    return hashlib.sha256(secret + bytes(sorted((first, second)))).digest()


def test_streams_differ_by_chunk_and_fill_the_range() -> None:
    first, second = mask_stream(KEY, 0, AGG_Q16), mask_stream(KEY, 1, AGG_Q16)
    assert not np.array_equal(first, second)
    assert abs(first.mean() / AGG_Q16.plain_modulus - 0.5) < 0.02
    assert np.array_equal(first, mask_stream(KEY, 0, AGG_Q16))


def test_words_at_or_above_the_modulus_are_dropped_wherever_they_lie() -> None:
    # One word in 10^5 of agg-i32: among 40 chunks some have one, most have none, and both ways give what the rule says.
    modulus, degree, dropped = AGG_I32.plain_modulus, AGG_I32.ring_degree, 0
    for chunk in range(40):
        cipher = Cipher(algorithms.AES256(KEY), modes.CTR(struct.pack(">QII", 0, chunk, 0))).encryptor()
        words = np.frombuffer(cipher.update(bytes(8 * (degree + 64))), "<u8") % np.uint64(1 << modulus.bit_length())
        dropped += int(words[:degree].max()) >= modulus
        assert np.array_equal(mask_stream(KEY, chunk, AGG_I32), words[words < modulus][:degree])
    assert 0 < dropped < 40


def test_masks_need_two_others() -> None:
    with pytest.raises(ComityError):
        mask_chunk(np.zeros(AGG_Q16.ring_degree, np.uint64), 0, [PairSeed(True, KEY)], AGG_Q16)
    with pytest.raises(ComityError):
        PairSeed(True, b"short")
    assert "seed" not in repr(PairSeed(True, KEY))
