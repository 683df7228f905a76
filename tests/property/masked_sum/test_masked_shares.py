"""Shamir's shares: every quorum, nothing below it, and hostile shares."""

from __future__ import annotations

import contextlib
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.masked import shamir

QUIET = settings(max_examples=40, deadline=None)


@QUIET
@given(secret=st.binary(min_size=32, max_size=32), n=st.integers(2, 50), data=st.data())
def test_every_quorum_gives_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(2, n))
    shares = shamir.split(secret, threshold, range(1, n + 1), os.urandom)
    some = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert shamir.combine({place: shares[place] for place in some}, threshold) == secret


def test_every_quorum_of_a_small_roster() -> None:
    shares = shamir.split(bytes(range(32)), 3, range(1, 6), os.urandom)
    for some in itertools.combinations(shares, 3):
        assert shamir.combine({place: shares[place] for place in some}, 3) == bytes(range(32))


@QUIET
@given(other=st.binary(min_size=32, max_size=32))
def test_one_share_less_fits_every_secret(other: bytes) -> None:
    """For any secret there is a last share that makes the others give it: without that share they say nothing."""
    shares = shamir.split(os.urandom(32), 3, (1, 2, 3), os.urandom)
    known = {0: int.from_bytes(other, "big"), 1: shamir.check_share(shares[1]), 2: shamir.check_share(shares[2])}
    value = 0
    for place, share in known.items():
        factor = share
        for each in known:
            if each != place:
                factor = factor * (3 - each) * pow(place - each, -1, shamir.PRIME) % shamir.PRIME
        value = (value + factor) % shamir.PRIME
    forged = {**shares, 3: value.to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.combine(forged, 3) == other


@QUIET
@given(place=st.integers(1, 4), bit=st.integers(0, 520))
def test_a_changed_share_gives_no_secret_or_another(place: int, bit: int) -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, 3, range(1, 5), os.urandom)
    share = (int.from_bytes(shares[place], "big") ^ (1 << bit)) % (1 << 521)
    shares[place] = share.to_bytes(shamir.SHARE_BYTES, "big")
    chosen = dict(list(shares.items())[:3])
    found = None
    with contextlib.suppress(ComityError):
        found = shamir.combine(chosen, 3)
    assert (found == secret) == (place not in chosen)


@pytest.mark.parametrize(
    "share",
    [b"", bytes(65), bytes(67), b"\xff" * 66, shamir.PRIME.to_bytes(66, "big"), (shamir.PRIME + 5).to_bytes(66, "big")],
)
def test_bytes_that_are_no_share_are_refused(share: bytes) -> None:
    shares = shamir.split(bytes(32), 2, (1, 2, 3), os.urandom)
    with pytest.raises(ComityError) as caught:
        shamir.combine({**shares, 2: share}, 2)
    assert caught.value.code is ErrorCode.BAD_SHARE


@pytest.mark.parametrize(
    ("threshold", "points"), [(1, (1, 2)), (3, (1, 2)), (2, (0, 1)), (2, (1, 1, 2)), (2, (1, 51)), (2, ())]
)
def test_shares_that_cannot_be_are_not_made(threshold: int, points: tuple[int, ...]) -> None:
    with pytest.raises(ComityError):
        shamir.split(bytes(32), threshold, points, os.urandom)


def test_too_few_shares_or_a_broken_source_say_so() -> None:
    shares = shamir.split(bytes(32), 3, range(1, 5), os.urandom)
    for wrong in ({1: shares[1], 2: shares[2]}, {}):
        with pytest.raises(ComityError):
            shamir.combine(wrong, 3)
    with pytest.raises(ComityError):
        shamir.combine({0: shares[1], 2: shares[2], 3: shares[3]}, 3)
    with pytest.raises(ComityError):
        shamir.split(bytes(32), 3, range(1, 5), lambda size: b"\xff" * size)
