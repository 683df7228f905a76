"""Words, masks, tags and the encoder for uint32: exact sums, bounds, refusals."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv.encoder import Layout
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.replies import WEIGHT_ONE, weight_of
from comity_crypto.secagg.masked import blobs as masked_blobs
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.words import CHECK_WORDS, CONTENT_START, Mask

QUIET = settings(max_examples=40, deadline=None)
KEY = bytes(range(32))
NUMBERS = 2


def masks_of(n: int) -> list[list[Mask]]:
    """Own, round and pair masks of n parties."""
    pairs = {(a, b): os.urandom(32) for b in range(n) for a in range(b)}
    return [
        [
            Mask(True, os.urandom(32)),
            Mask(True, os.urandom(32)),
            *(Mask(me < o, pairs[min(me, o), max(me, o)]) for o in range(n) if o != me),
        ]
        for me in range(n)
    ]


@QUIET
@given(n=st.integers(3, 8), seed=st.integers(0, 2**32), size=st.integers(1, 40))
def test_masks_cancel_and_the_sum_is_exact(n: int, seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.integers(-(1 << 25) + 1, 1 << 25, size) for _ in range(n)]
    masks = masks_of(n)
    parts = [
        masked_words.protect(masked_encoder.encode_integers(value).words, KEY, mask)
        for value, mask in zip(values, masks, strict=True)
    ]
    total = np.sum(parts, axis=0, dtype=np.uint32)
    content = masked_words.unmask(total, KEY, [m.inverse for mask in masks for m in mask[:2]], n)
    assert np.array_equal(masked_encoder.decode_integers(content, n, size), np.sum(values, axis=0))


def test_fifty_of_the_largest_do_not_overflow() -> None:
    largest = np.full(3, masked_encoder.INTEGER_BOUND)
    for values in (largest, -largest):
        words = masked_encoder.encode_integers(values).words
        total = np.sum([words] * 50, axis=0, dtype=np.uint64)
        assert int(total.max()) < 1 << 32
        found = masked_encoder.decode_integers(total[CONTENT_START:].astype(np.uint32), 50, 3)
        assert np.array_equal(found, 50 * values)


def test_a_mask_is_uniform_and_a_long_vector_goes_block_by_block() -> None:
    words = np.zeros((1 << 18) + 7, np.uint32)
    masked_words.apply(words, [Mask(True, KEY)])
    assert abs(float(words.mean()) / 2**31 - 1) < 0.01
    assert np.array_equal(words[:7], masked_words.apply(np.zeros(7, np.uint32), [Mask(True, KEY)]))
    assert not masked_words.apply(words, [Mask(False, KEY)]).any()


@QUIET
@given(place=st.integers(0, CONTENT_START + 19), change=st.integers(1, 2**32 - 1), also=st.integers(0, 2**32 - 1))
def test_a_changed_word_is_seen(place: int, change: int, also: int) -> None:
    masks = masks_of(3)
    words = masked_encoder.encode_integers(np.arange(20)).words
    total = np.sum([masked_words.protect(words, KEY, mask) for mask in masks], axis=0, dtype=np.uint32)
    before = total.copy()
    total[place : place + 1] += np.uint32(change)
    total[-1:] += np.uint32(also)
    moved = np.flatnonzero(total != before)
    assume(bool(set(moved.tolist()) - {11, 15}))  # the tag's top limbs count modulo 2^4
    with pytest.raises(ComityError) as caught:
        masked_words.unmask(total, KEY, [m.inverse for mask in masks for m in mask[:2]], 3)
    assert caught.value.code is ErrorCode.SUM_MISMATCH


def test_without_enough_masks_or_with_large_words_nothing_leaves() -> None:
    words = masked_encoder.encode_integers(np.arange(4)).words
    with pytest.raises(ComityError) as caught:
        masked_words.protect(words, KEY, masks_of(3)[0][:3])
    assert caught.value.code is ErrorCode.INTERNAL
    words[-1] = masked_words.WORD_BOUND
    with pytest.raises(ComityError) as caught:
        masked_words.protect(words, KEY, masks_of(3)[0])
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert KEY.hex() not in repr(Mask(True, KEY))


# ---- replies


@QUIET
@given(n=st.integers(3, 6), seed=st.integers(0, 2**32), clip=st.floats(0.1, 100))
def test_the_mean_is_the_plain_one_up_to_the_bound(n: int, seed: int, clip: float) -> None:
    rng = np.random.default_rng(seed)
    x = {"a": rng.standard_normal((3, 5)), "b": rng.standard_normal(4)}
    total, plain, weights = None, {name: np.zeros_like(array) for name, array in x.items()}, 0
    summed = [0] * NUMBERS
    for _ in range(n):
        delta = {name: rng.standard_normal(array.shape) for name, array in x.items()}
        norm = np.sqrt(sum(float((d**2).sum()) for d in delta.values()))
        y = {name: x[name] + delta[name] for name in x}
        weight = weight_of(int(rng.integers(1, 200)), 100, 100)
        said = [int(rng.integers(0, 1 << 62)) << 17, 2**80 - 1]
        made = masked_encoder.encode(x, y, weight, clip, clip, os.urandom(32), numbers=said)
        assert made.words.size == masked_encoder.words_for(Layout.of(x, NUMBERS))
        assert made.norm_clipped == (norm > clip)
        total = made.words.astype(np.uint64) + (0 if total is None else total)
        weights += weight
        for name in x:
            plain[name] += weight * delta[name] * min(1.0, clip / norm)
        summed = [whole + weight * number for whole, number in zip(summed, said, strict=True)]
    content = total[CONTENT_START:].astype(np.uint32)
    decoded = masked_encoder.decode(content, n, x, clip, numbers=NUMBERS)
    assert decoded.weight == weights / WEIGHT_ONE
    bound = masked_encoder.quantisation_bound(clip, n, decoded.weight)
    for name in x:
        assert np.abs(decoded.arrays[name] - x[name] - plain[name] / weights).max() <= bound * 1.000001 + 1e-12
    assert decoded.weighed == tuple(summed)


def test_the_same_reply_under_the_same_key_gives_the_same_words() -> None:
    x, y = {"a": np.zeros(9)}, {"a": np.random.default_rng(4).standard_normal(9)}
    first, second, other = (masked_encoder.encode(x, y, 100, 5, 1, key) for key in (KEY, KEY, bytes(32)))
    assert first.digest == second.digest != other.digest
    assert "array" not in repr(first)


def test_what_is_beyond_the_range_is_clamped_and_counted() -> None:
    made = masked_encoder.encode({"a": np.zeros(4)}, {"a": np.array([9.0, -9, 0.1, 0])}, WEIGHT_ONE, 100, 1, KEY)
    assert (made.clipped, made.norm_clipped) == (2, False)
    assert int(made.words.max()) < masked_words.WORD_BOUND
    assert int(made.words[CONTENT_START:].min()) >= 1


@pytest.mark.parametrize(
    "y", [{"a": np.array([np.nan, 0])}, {"a": np.zeros(3)}, {"b": np.zeros(2)}, {"a": np.zeros(2, np.float32)}]
)
def test_a_reply_of_another_shape_is_refused(y: dict[str, np.ndarray]) -> None:
    with pytest.raises(ComityError) as caught:
        masked_encoder.encode({"a": np.zeros(2)}, y, 1, 1, 1, KEY)
    assert caught.value.code is ErrorCode.REPLY_SHAPE


@QUIET
@given(words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9), fits=st.booleans(), n=st.integers(0, 60))
def test_any_words_decode_or_are_refused(words: list[int], fits: bool, n: int) -> None:
    whole = 1 + NUMBERS * masked_encoder.NUMBERS.places + 4
    content = np.resize(np.array(words, np.uint32), whole if fits else len(words))
    for decode in (
        lambda: masked_encoder.decode(content, n, {"a": np.zeros(4)}, 1.0, numbers=NUMBERS),
        lambda: masked_encoder.decode_integers(content, n, 4),
    ):
        code = None
        try:
            decode()
        except ComityError as error:
            code = error.code
        assert code in (None, ErrorCode.SUM_MISMATCH, ErrorCode.PARTICIPANTS_TOO_FEW)


@pytest.mark.parametrize("value", [1 << 25, -(1 << 25), -(1 << 63), (1 << 63) - 1])
def test_integers_beyond_the_bound_are_refused(value: int) -> None:
    with pytest.raises(ComityError) as caught:
        masked_encoder.encode_integers(np.array([value], np.int64))
    assert caught.value.code is ErrorCode.TOO_LARGE


# ---- files


def blob(words: np.ndarray, kind: BlobKind = BlobKind.UPLOAD) -> int:
    with tempfile.TemporaryFile() as file:
        masked_blobs.write_blob(file.fileno(), kind, words)
        return os.dup(file.fileno())


def test_files_are_added_block_by_block() -> None:
    rng = np.random.default_rng(1)
    size = (1 << 18) + 3
    parts = [rng.integers(0, 1 << 32, size, dtype=np.uint32) for _ in range(3)]
    fds = [blob(part) for part in parts]
    with tempfile.TemporaryFile() as total:
        masked_blobs.add_blobs(fds, size, total.fileno())
        found = masked_blobs.read_blob(total.fileno(), BlobKind.AGGREGATE, size)
        with pytest.raises(ComityError):
            masked_blobs.read_blob(total.fileno(), BlobKind.UPLOAD, size)
    assert np.array_equal(found, np.sum(parts, axis=0, dtype=np.uint32))
    for fd in fds:
        os.close(fd)


@QUIET
@given(data=st.binary(max_size=300), cut=st.integers(0, 200), flip=st.integers(0, 63))
def test_files_of_strangers_are_refused(data: bytes, cut: int, flip: int) -> None:
    good = blob(np.arange(20, dtype=np.uint32))
    whole = bytearray(os.pread(good, 1000, 0))
    os.close(good)
    flipped = bytes([*whole[:flip], whole[flip] ^ 1, *whole[flip + 1 :]])
    for hostile in (data, bytes(whole[: cut % len(whole)]), bytes(whole) + b"\x00", flipped, b""):
        with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as total:
            file.write(hostile)
            file.flush()
            with pytest.raises(ComityError) as caught:
                masked_blobs.add_blobs([file.fileno()], 20, total.fileno())
            assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID
            assert os.fstat(total.fileno()).st_size == 0


def test_bounds_of_a_vector() -> None:
    for words in (0, CONTENT_START, masked_words.WORDS_MAX + 1):
        with pytest.raises(ComityError):
            masked_blobs.blob_bytes(words)
    assert CHECK_WORDS < CONTENT_START
