"""Attacks on weaker orderings (design section 5): each works on the weak variant and fails on ours."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest

from comity_crypto.secagg.bfv import digests, encoder, residues
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.masks import PairSeed, mask_chunk
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.lead_key.messages import AggregateNotice

N = AGG_Q16.ring_degree
T = AGG_Q16.plain_modulus


@pytest.fixture(scope="module")
def key() -> tuple[bytes, bytes]:
    return bfv.make_key(AGG_Q16)


def update(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = {"w": np.zeros(1000)}
    return encoder.encode(x, {"w": rng.standard_normal(1000)}, 60_000, 100.0, 8.0, bytes(32)).slots[0]


def masked(me: int, slots: np.ndarray, seeds: dict[tuple[int, int], bytes]) -> np.ndarray:
    pairs = [PairSeed(me < other, seeds[min(me, other), max(me, other)]) for other in range(3) if other != me]
    return mask_chunk(slots, 0, pairs, AGG_Q16)


def solve(matrix: list[list[int]], right: list[int], prime: int) -> list[int]:
    """Gauss-Jordan modulo a prime."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(len(rows)):
        pivot = next(index for index in range(column, len(rows)) if rows[index][column] % prime)
        rows[column], rows[pivot] = rows[pivot], rows[column]
        inverse = pow(rows[column][column], -1, prime)
        rows[column] = [value * inverse % prime for value in rows[column]]
        for index in range(len(rows)):
            if index != column:
                factor = rows[index][column]
                rows[index] = [(a - factor * b) % prime for a, b in zip(rows[index], rows[column], strict=True)]
    return [row[-1] for row in rows]


def forge(victim: bytes, wanted: digests.Digest, challenge: bytes) -> bytes:
    """Patch seven coefficients of each polynomial of the victim's upload until its digest is the aggregate's."""
    changed = residues.unpack_chunk(victim, AGG_Q16).copy()
    now = digests.linear_digest(AGG_Q16, challenge, [victim])
    coefficients = digests._coefficients(challenge, 0, AGG_Q16)[: digests.COLUMNS].astype(np.int64)
    matrix = coefficients.T.tolist()
    for poly in range(2):
        for limb, prime in enumerate(AGG_Q16.data_primes):
            start = (poly * 2 + limb) * digests.COLUMNS
            gap = [(wanted[start + i] - now[start + i]) % prime for i in range(digests.COLUMNS)]
            for place, delta in enumerate(solve(matrix, gap, prime)):
                changed[poly, limb, place] = (int(changed[poly, limb, place]) + delta) % prime
    return residues.pack(changed)


def test_a_challenge_that_is_known_early_lets_a_forged_aggregate_pass_and_ours_does_not(
    key: tuple[bytes, bytes],
) -> None:
    encrypter = bfv.Encrypter(AGG_Q16, key[0])
    uploads = [encrypter.encrypt(update(seed)) for seed in range(3)]
    early = os.urandom(32)
    wanted = digests.sum_digests(AGG_Q16, [digests.linear_digest(AGG_Q16, early, [item]) for item in uploads])
    forged = forge(uploads[0], wanted, early)
    assert digests.linear_digest(AGG_Q16, early, [forged]) == wanted, "the weak variant accepts it"

    h = "a" * 64
    notice = AggregateNotice(h, h, h, hashlib.sha256(forged).hexdigest(), len(forged))
    ours = [digests.linear_digest(AGG_Q16, notice.challenge, [item]) for item in uploads]
    assert digests.linear_digest(AGG_Q16, notice.challenge, [forged]) != digests.sum_digests(AGG_Q16, ours)


def test_a_copied_upload_isolates_the_victim_without_masks_and_gives_noise_with_them(key: tuple[bytes, bytes]) -> None:
    encrypter, decrypter = bfv.Encrypter(AGG_Q16, key[0]), bfv.Decrypter(AGG_Q16, key[1])
    seeds = {(a, b): os.urandom(32) for b in range(3) for a in range(b)}
    for hidden in (False, True):
        slots = [masked(i, update(i), seeds) if hidden else update(i) for i in range(3)]
        uploads = [encrypter.encrypt(item) for item in slots]
        copied = residues.unpack_chunk(uploads[1], AGG_Q16).copy()  # the colluder sends minus the other's upload
        for limb, prime in enumerate(AGG_Q16.data_primes):
            copied[:, limb] = (np.uint64(prime) - copied[:, limb]) % np.uint64(prime)
        total = bfv.Adder(AGG_Q16).add([uploads[0], uploads[1], residues.pack(copied)])
        same = float(np.mean(decrypter.decrypt(total) == update(0)))
        assert same < 0.001 if hidden else same == 1.0


def test_two_sums_that_differ_by_one_party_give_that_partys_update(key: tuple[bytes, bytes]) -> None:
    """Why a release binds order, roster and integers: the weak variant; ours is in the session tests."""
    slots = [update(seed) for seed in range(4)]
    four, three = sum(slots[1:], slots[0]), sum(slots[1:3], slots[0])
    assert np.array_equal((four - three) % np.uint64(T), slots[3])


def test_dead_models_for_all_but_one_make_the_sum_that_ones_update() -> None:
    """Why all sign one order's digest: the weak variant; ours refuses in the session tests, masked's and this one's."""
    live, dead = np.random.default_rng(5).standard_normal(1_000), np.zeros(1_000)
    x, seeds = {"w": np.zeros(1_000)}, {(a, b): os.urandom(32) for b in range(3) for a in range(b)}
    total = np.zeros(N, np.uint64)
    for me, step in enumerate((live, dead, dead)):
        encoded = encoder.encode(x, {"w": step}, 60_000, 100.0, 8.0, bytes([me]) * 32)
        total = (total + masked(me, encoded.slots[0], seeds)) % np.uint64(T)
    decoded = encoder.decode(total[None], 3, x, 8.0).arrays["w"]
    assert np.abs(decoded * 3 - live).max() < 0.01, "masks cancel, and the sum is the victim's"


def test_a_replayed_roster_with_its_seeds_shows_how_an_update_changed() -> None:
    """The weak variant masks two rounds by the same seeds; ours draws them after each roster, for one session."""
    first, second, seeds = update(0), update(1), {(a, b): os.urandom(32) for b in range(3) for a in range(b)}
    fresh = {pair: os.urandom(32) for pair in seeds}
    change = (second + np.uint64(T) - first) % np.uint64(T)
    for again, learnt in ((seeds, 1.0), (fresh, 0.0)):
        seen = (masked(0, second, again) + np.uint64(T) - masked(0, first, seeds)) % np.uint64(T)
        assert abs(float(np.mean(seen == change)) - learnt) < 0.001


def test_nobody_learns_a_value_from_a_malformed_chunk_when_masks_are_on(key: tuple[bytes, bytes]) -> None:
    """(0, floor(q/t)) in a chunk turns the decryption into the secret key's; the masked slots stay uniform."""
    seeds = {(a, b): os.urandom(32) for b in range(3) for a in range(b)}
    slots = update(0)
    noise = masked(0, slots, seeds)
    assert np.mean(noise == slots) < 0.001
    assert abs(float(noise.astype(np.float64).mean()) / T - 0.5) < 0.02
    evil = np.zeros((2, 2, N), np.uint64)
    delta = AGG_Q16.primes[0] * AGG_Q16.primes[1] // T
    for limb, prime in enumerate(AGG_Q16.data_primes):
        evil[1, limb, 0] = delta % prime
    honest = bfv.Encrypter(AGG_Q16, key[0]).encrypt(noise)
    opened = bfv.Decrypter(AGG_Q16, key[1]).decrypt(bfv.Adder(AGG_Q16).add([honest, residues.pack(evil)]))
    check = (opened[: encoder.CHECK_SLOTS] == 1).all()
    assert not check, "and the check slots of its chunk show it"
