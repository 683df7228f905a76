"""BFV, packed residues, blobs and linear digests against TenSEAL itself and against strangers' bytes."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tenseal

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import blobs, digests, in_place, params, residues, seal_format
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, Parameters
from comity_crypto.secagg.bfv.workers import memory_file
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.body import CONTRIBUTORS_MAX

SETS = list(params.PARAMETER_SETS.values())
RNG = np.random.default_rng(11)
PRIMES = np.array(AGG_Q16.data_primes, np.uint64)[:, None]


def slots(parameters: Parameters) -> np.ndarray:
    return RNG.integers(0, parameters.plain_modulus, parameters.ring_degree).astype(np.uint64)


@pytest.fixture(scope="module")
def key() -> tuple[bytes, bytes]:
    return bfv.make_key(AGG_Q16)


@pytest.fixture
def fd() -> Iterator[int]:
    found = memory_file("blob")
    yield found
    os.close(found)


@pytest.mark.parametrize("parameters", SETS, ids=lambda item: item.name)
def test_parameters_are_pinned_and_are_tenseals(parameters: Parameters) -> None:
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV, 8192, plain_modulus=parameters.plain_modulus, coeff_mod_bit_sizes=[50, 50, 50]
    )
    found = seal_format.context_parameters(context.serialize(False, False, False, False))
    assert seal_format.unwrap(found, len(parameters.parms_bytes)) == parameters.parms_bytes
    assert params.computed_digest(parameters) == parameters.digest
    for number in (*parameters.primes, parameters.plain_modulus):
        assert number % (2 * 8192) == 1
        assert all(number % divisor for divisor in range(3, 1000, 2))
    assert CONTRIBUTORS_MAX * 65535 < 1 << 22
    bfv.self_test(parameters)
    with pytest.raises(ComityError):
        params.parameter_set(parameters.name, "0" * 64)


@pytest.mark.parametrize("parameters", SETS, ids=lambda item: item.name)
@pytest.mark.parametrize("n", [1, 3, 50])
def test_sums_are_exact_up_to_the_largest_roster(parameters: Parameters, n: int) -> None:
    public, secret = bfv.make_key(parameters)
    encrypter = bfv.Encrypter(parameters, public)
    plain = [slots(parameters) for _ in range(n)]
    total = bfv.Adder(parameters).add([encrypter.encrypt(item) for item in plain])
    wanted = sum(item.astype(object) for item in plain) % parameters.plain_modulus
    assert bfv.Decrypter(parameters, secret).decrypt(total).astype(object).tolist() == list(wanted)


def wrong_values(parameters: Parameters, vector: Any) -> residues.Residues:
    return np.zeros((2, 2, parameters.ring_degree), np.uint64)


@pytest.mark.parametrize("way", ["in place", "no memory", "other layout", "wrong values", "element by element"])
def test_every_way_of_reading_a_vector_reads_the_same(
    key: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    packed = bfv.Encrypter(AGG_Q16, key[0]).encrypt(slots(AGG_Q16))
    wanted = residues.pack(sum(residues.unpack_chunk(packed, AGG_Q16) for _ in range(2)) % PRIMES)
    monkeypatch.setattr(bfv, "_in_place", {})
    if way == "no memory":
        monkeypatch.setattr(in_place, "_MEMORY", "/proc/self/no-such-file")
    elif way == "other layout":
        monkeypatch.setattr(in_place, "_CIPHERTEXT", struct.Struct("<32sB7xQQQQd16xQQQ"))
    elif way == "wrong values":
        monkeypatch.setattr(in_place, "read", wrong_values)
    elif way == "element by element":
        monkeypatch.setattr(in_place, "_MEMORY", "/proc/self/no-such-file")
        monkeypatch.setattr(seal_format, "has_zstd", lambda: False)
    for _ in range(3):  # the first one tells whether memory can be trusted
        assert bfv.Adder(AGG_Q16).add([packed, packed]) == wanted
    assert bfv._in_place == {AGG_Q16.name: way == "in place"}
    public, secret = bfv.make_key(AGG_Q16)
    values = slots(AGG_Q16)
    assert np.array_equal(
        bfv.Decrypter(AGG_Q16, secret).decrypt(bfv.Encrypter(AGG_Q16, public).encrypt(values)), values
    )


def test_neither_the_adder_nor_the_encrypter_can_decrypt(key: tuple[bytes, bytes]) -> None:
    assert bfv.Adder(AGG_Q16)._context.has_public_key() is False
    assert bfv.Adder(AGG_Q16)._context.has_secret_key() is False
    encrypter = bfv.Encrypter(AGG_Q16, key[0])
    assert encrypter._context.has_secret_key() is False
    vector = tenseal.bfv_vector(encrypter._context, [1] * AGG_Q16.ring_degree)
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()


def test_another_key_gives_noise(key: tuple[bytes, bytes]) -> None:
    values = slots(AGG_Q16)
    packed = bfv.Encrypter(AGG_Q16, key[0]).encrypt(values)
    other = bfv.Decrypter(AGG_Q16, bfv.make_key(AGG_Q16)[1])
    assert np.mean(other.decrypt(packed) == values) < 0.01
    assert repr(other) == "Decrypter(agg-q16)"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 10,
        b"\xff" * AGG_Q16.chunk_bytes,
        b"\0" * (AGG_Q16.chunk_bytes - 1),
        b"\0" * (AGG_Q16.chunk_bytes + 1),
    ],
    ids=["empty", "short", "residues", "cut", "long"],
)
def test_strangers_chunks_are_refused(key: tuple[bytes, bytes], data: bytes) -> None:
    for job in (lambda: bfv.Adder(AGG_Q16).add([data]), lambda: bfv.Decrypter(AGG_Q16, key[1]).decrypt(data)):
        with pytest.raises(ComityError) as caught:
            job()
        assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


def test_the_first_residue_at_its_prime_is_refused() -> None:
    values = np.zeros((2, 2, 8192), np.uint64)
    for limb, prime in enumerate(AGG_Q16.data_primes):
        values[1, limb, 8191] = prime - 1
        assert residues.unpack_chunk(residues.pack(values), AGG_Q16)[1, limb, 8191] == prime - 1
        values[1, limb, 8191] = prime
        with pytest.raises(ComityError):
            residues.unpack_chunk(residues.pack(values), AGG_Q16)
        values[1, limb, 8191] = 0


@pytest.mark.parametrize("key_bytes", [b"", b"\xff" * AGG_Q16.key_bytes, b"\0" * (AGG_Q16.key_bytes + 1)])
def test_strangers_keys_are_refused(key_bytes: bytes) -> None:
    with pytest.raises(ComityError) as caught:
        bfv.Encrypter(AGG_Q16, key_bytes)
    assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


def test_packing_is_exact_and_tight() -> None:
    values = np.zeros((2, 2, 8192), np.uint64)
    for limb, prime in enumerate(AGG_Q16.data_primes):
        values[:, limb] = RNG.integers(0, prime, (2, 8192))
    packed = residues.pack(values)
    assert len(packed) == AGG_Q16.chunk_bytes == 4 * 8192 * 50 // 8
    assert np.array_equal(residues.unpack_chunk(packed, AGG_Q16), values)
    number = int.from_bytes(packed[:25], "little")
    assert [number >> (50 * place) & ((1 << 50) - 1) for place in range(4)] == values.ravel()[:4].tolist()


@pytest.mark.parametrize("place", [0, 16, 48, 52, 63, "longer", "shorter", "other set", "other kind"])
def test_strangers_blobs_are_refused(fd: int, place: int | str) -> None:
    blobs.write_header(fd, AGG_Q16, BlobKind.UPLOAD, 2)
    blobs.check_blob(fd, AGG_Q16, BlobKind.UPLOAD, 2)
    wanted, kind = AGG_Q16, BlobKind.UPLOAD
    if isinstance(place, int):
        os.pwrite(fd, bytes([os.pread(fd, 1, place)[0] ^ 1]), place)
    elif place in ("longer", "shorter"):
        os.ftruncate(fd, os.fstat(fd).st_size + (1 if place == "longer" else -1))
    elif place == "other set":
        wanted = AGG_I32
    else:
        kind = BlobKind.AGGREGATE
    with pytest.raises(ComityError) as caught:
        blobs.check_blob(fd, wanted, kind, 2)
    assert caught.value.code is ErrorCode.CIPHERTEXT_INVALID


def test_chunks_of_a_blob_are_bounded_and_found_again(fd: int) -> None:
    blobs.write_header(fd, AGG_Q16, BlobKind.UPLOAD, 3)
    data = os.urandom(AGG_Q16.chunk_bytes)
    blobs.write_chunk(fd, AGG_Q16, 2, data)
    assert blobs.read_chunk(fd, AGG_Q16, 2) == data
    with pytest.raises(ComityError):
        blobs.read_chunk(fd, AGG_Q16, 3)
    whole = os.pread(fd, os.fstat(fd).st_size, 0)
    assert file_digest(fd) == (hashlib.sha256(whole).hexdigest(), len(whole))
    for chunks in (0, params.CHUNKS_MAX + 1):
        with pytest.raises(ComityError):
            blobs.blob_bytes(AGG_Q16, chunks)


def test_digests_add_split_and_catch_one_changed_residue(key: tuple[bytes, bytes]) -> None:
    encrypter, challenge = bfv.Encrypter(AGG_Q16, key[0]), os.urandom(32)
    uploads = [[encrypter.encrypt(slots(AGG_Q16)) for _ in range(2)] for _ in range(3)]
    aggregate = [bfv.Adder(AGG_Q16).add(chunk) for chunk in zip(*uploads, strict=True)]
    each = [digests.linear_digest(AGG_Q16, challenge, upload) for upload in uploads]
    total = digests.linear_digest(AGG_Q16, challenge, aggregate)
    assert digests.sum_digests(AGG_Q16, each) == total
    parts = [digests.linear_digest(AGG_Q16, challenge, [aggregate[i]], i) for i in range(2)]
    assert digests.sum_digests(AGG_Q16, parts) == total
    changed = residues.unpack_chunk(aggregate[1], AGG_Q16).copy()
    changed[1, 0, 77] = (int(changed[1, 0, 77]) + 1) % AGG_Q16.primes[0]
    assert digests.linear_digest(AGG_Q16, challenge, [aggregate[0], residues.pack(changed)]) != total
    assert digests.linear_digest(AGG_Q16, challenge, aggregate[::-1]) != total


def test_a_digest_is_the_inner_product_that_the_module_says() -> None:
    challenge = bytes(range(32))
    values = np.zeros((2, 2, 8192), np.uint64)
    for limb, prime in enumerate(AGG_Q16.data_primes):
        values[:, limb] = prime - 1  # the largest residues: the doubles must still be exact
    coefficients = digests._coefficients(challenge, 5, AGG_Q16).astype(np.int64).astype(object)
    wanted = []
    for poly in range(2):
        for limb, prime in enumerate(AGG_Q16.data_primes):
            wanted += [int(item) % prime for item in values[poly, limb].astype(object) @ coefficients]
    assert digests.linear_digest(AGG_Q16, challenge, [residues.pack(values)], 5) == tuple(wanted)
    digests.check_digest(AGG_Q16, tuple(wanted))
    for bad in (tuple(wanted[1:]), (AGG_Q16.primes[0], *wanted[1:]), (-1, *wanted[1:])):
        with pytest.raises(ComityError):
            digests.check_digest(AGG_Q16, bad)


def test_a_linear_digest_is_exact_where_residues_are_largest() -> None:
    tops = np.array([prime - 1 for prime in AGG_Q16.data_primes], np.uint64)
    rows = np.broadcast_to(tops[None, :, None], (2, 2, AGG_Q16.ring_degree)).copy()
    rows[1, :, ::3] = 0
    found = digests.linear_digest(AGG_Q16, bytes(32), [residues.pack(rows)], 6)
    weights = digests._coefficients(bytes(32), 6, AGG_Q16).astype(np.int64).astype(object)
    products = [rows[poly, limb].astype(object) @ weights for poly in range(2) for limb in range(2)]
    primes = [prime for _ in range(2) for prime in AGG_Q16.data_primes]
    assert list(found) == [int(value) % prime for row, prime in zip(products, primes, strict=True) for value in row]
