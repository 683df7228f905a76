"""Changed bytes by the thousand: chunks, shares, dealt points and digests are refused, or read back as they were."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import residues
from comity_crypto.secagg.bfv.digests import check_digest
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, KEY_LIMBS, LIMBS, POLYS, Parameters
from comity_crypto.secagg.threshold import keys

READERS: dict[str, tuple[int, Callable[[bytes, Parameters], bytes]]] = {
    "chunk": (AGG_Q16.chunk_bytes, lambda data, of: residues.pack(residues.unpack_chunk(data, of))),
    "share": (AGG_Q16.poly_bytes(LIMBS), lambda data, of: residues.pack_poly(residues.unpack_poly(data, of, LIMBS))),
    "public": (
        AGG_Q16.poly_bytes(KEY_LIMBS),
        lambda data, of: residues.pack_poly(residues.unpack_poly(data, of, KEY_LIMBS)),
    ),
    "dealt": (keys.dealt_bytes(AGG_Q16), lambda data, of: keys.pack_dealt(keys.unpack_dealt(of, data))),
}


def changed(rng: random.Random, data: bytes) -> bytes:
    """Cut, lengthen, repeat, overwrite or fill."""
    out = bytearray(data)
    match rng.randrange(5):
        case 0:
            del out[rng.randrange(len(out)) :]
        case 1:
            out += rng.randbytes(rng.randrange(1, 64))
        case 2:
            out *= 2
        case 3:
            start = rng.randrange(len(out))
            out[start : start + 7] = b"\xff" * len(out[start : start + 7])
        case _:
            for _ in range(rng.randrange(1, 9)):
                out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def tried(name: str, parameters: Parameters, times: int, seed: int) -> tuple[int, int]:
    """Return how many were refused, and how many were read as bytes that mean themselves."""
    rng, (size, read), codes, alike = random.Random(seed), READERS[name], list[ErrorCode](), 0
    good = bytes(size)
    assert read(good, parameters) == good
    for _ in range(times):
        data = changed(rng, good)
        try:
            assert read(data, parameters) == data
            alike += 1
        except ComityError as error:
            codes.append(error.code)
    assert set(codes) <= {ErrorCode.CIPHERTEXT_INVALID}
    return len(codes), alike


@pytest.mark.parametrize("name", sorted(READERS))
def test_bytes_of_strangers_are_refused_or_read_alike(name: str) -> None:
    refused, alike = tried(name, AGG_Q16, 250, 1)
    assert refused > 100
    assert alike > 10


@pytest.mark.slow
@pytest.mark.parametrize("parameters", [AGG_Q16, AGG_I32], ids=lambda item: item.name)
@pytest.mark.parametrize("name", sorted(READERS))
def test_bytes_of_strangers_are_refused_by_the_thousand(name: str, parameters: Parameters) -> None:
    assert sum(tried(name, parameters, 3_000, 2)) == 3_000


def test_digests_beyond_their_primes_are_refused() -> None:
    rng = np.random.default_rng(3)
    for _ in range(1_000):
        values = [int(each) for each in rng.integers(0, 1 << 40, POLYS * LIMBS * 7)]
        check_digest(AGG_Q16, tuple(values))
        values[int(rng.integers(len(values)))] = int(rng.choice([-1, 1 << 50, 1 << 62]))
        with pytest.raises(ComityError):
            check_digest(AGG_Q16, tuple(values))
        with pytest.raises(ComityError):
            check_digest(AGG_Q16, tuple(values[1:]))
