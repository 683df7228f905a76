"""Payloads: what is sealed comes back bit for bit, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.wire.errors import ComityError
from comity_crypto.keys import OrgKeys
from comity_node.training import blobs
from comity_node.training.led import RoundCounter

KEYS = OrgKeys.generate()
SIZES = st.sampled_from([1, 63, 262_000, 262_144, 300_000, 524_272, 524_273, 1_100_000])


async def chunks_of(sealed, folder):
    data = sealed.inline if sealed.inline is not None else (folder / sealed.file).read_bytes()
    for start in range(0, len(data), 512 * 1024):
        yield data[start : start + 512 * 1024]


async def round_trip(folder, data, salt, context, other):
    blob = blobs.from_bytes(data)
    sealed = await blobs.seal(blob, folder, {"hospital-a": KEYS.public.sealing}, context, salt=salt, fsync=False)
    keep = folder / "kept"
    chunks, length = chunks_of(sealed, folder), len(salt)
    opened, found = await blobs.open_stream(
        KEYS, "hospital-a", sealed.ref, other, chunks, size_max=2 << 20, salt_bytes=length, keep=keep
    )
    again, _ = await blobs.open_sealed(
        KEYS, "hospital-a", sealed, context, folder, size_max=2 << 20, salt_bytes=len(salt)
    )
    kept = keep.read_bytes()
    result = (blobs.to_bytes(opened), found, blobs.to_bytes(again), kept, sealed)
    for each in (blob, opened, again):
        each.close()
    return result


@given(SIZES, st.sampled_from([b"", b"s" * 32]))
def test_a_content_comes_back_bit_for_bit(size, salt):
    data = bytes(range(256)) * (size // 256 + 1)
    with tempfile.TemporaryDirectory() as name:
        opened, found, again, kept, sealed = asyncio.run(round_trip(Path(name), data[:size], salt, b"c", b"c"))
        assert opened == again == data[:size]
        assert found == salt
        assert kept == (sealed.inline or (Path(name) / sealed.file).read_bytes())
        assert (sealed.inline is None) == (sealed.ref.size > 256 * 1024)


def test_another_context_opens_nothing_and_keeps_nothing():
    with tempfile.TemporaryDirectory() as name:
        with pytest.raises(ComityError):
            asyncio.run(round_trip(Path(name), b"x" * 400_000, b"", b"c", b"d"))
        assert not (Path(name) / "kept").exists()


@given(
    st.lists(
        st.tuples(st.sampled_from(["train", "evaluate"]), st.sets(st.sampled_from("abc"), min_size=1)), max_size=30
    )
)
def test_nobody_trains_twice_in_a_round_and_rounds_never_fall(asked):
    counter, seen, last = RoundCounter(), set(), 0
    for word, receivers in asked:
        number = counter.next(word, receivers)
        assert number in (last, last + 1)
        if word == "train":
            assert not {(number, org) for org in receivers} & seen
            seen |= {(number, org) for org in receivers}
        last = number
