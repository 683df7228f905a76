"""The four attacks of research/crypto.md 2.7 on collective keys: each works on the weak variant and fails on ours."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.bfv import digests, encoder, residues, ring
from comity_crypto.secagg.bfv import scheme as bfv
from comity_crypto.secagg.bfv.digests import DIGEST_VALUES, Digest
from comity_crypto.secagg.bfv.masks import PairSeed, mask_chunk
from comity_crypto.secagg.bfv.params import AGG_Q16, CHECK_SLOTS
from comity_crypto.secagg.lead_key.messages import AggregateNotice
from comity_crypto.secagg.threshold import keys, shares

N, T = AGG_Q16.ring_degree, AGG_Q16.plain_modulus
PRIMES = AGG_Q16.data_primes
QUORUM = (1, 3)
HASH = "a" * 64


@dataclass(frozen=True)
class Collective:
    public: bytes
    secrets: list[ring.Ints]
    shares: list[ring.Ints]

    def encrypt(self, slots: np.ndarray) -> list[bytes]:
        encrypter = bfv.Encrypter(AGG_Q16, self.public)
        return [encrypter.encrypt(chunk) for chunk in slots]

    def open(self, chunks: list[bytes], quorum: tuple[int, int] = QUORUM) -> np.ndarray:
        """What the quorum's shares open, whatever it is: holders that check nothing."""
        makers = [shares.Sharer(AGG_Q16, self.shares[point - 1], point, quorum, 2, 3) for point in quorum]
        given = [maker.share(chunks, os.urandom(32), 0) for maker in makers]
        rows = zip(chunks, *given, strict=True)
        return np.stack([throwaway().decrypt(shares.fuse(AGG_Q16, chunk, each)) for chunk, *each in rows])


@cache
def throwaway() -> bfv.Decrypter:
    return bfv.Decrypter(AGG_Q16, bfv.make_key(AGG_Q16)[1])


def collective() -> Collective:
    """Three holders, of whom two open."""
    crs = keys.common_string("c" * 64, {f"org-{i}": os.urandom(32) for i in range(3)})
    common = keys.common_poly(AGG_Q16, crs, 0)
    parts = [keys.draw_part(AGG_Q16, os.urandom(32)) for _ in range(3)]
    public = keys.collective_key(AGG_Q16, common, [keys.public_share(AGG_Q16, common, part) for part in parts])
    dealt = [keys.deal(AGG_Q16, part.secret, 2, 3, os.urandom(32)) for part in parts]
    gathered = [keys.gather(AGG_Q16, [row[place] for row in dealt]) for place in range(3)]
    return Collective(public, [part.secret for part in parts], gathered)


@pytest.fixture(scope="module")
def key() -> Collective:
    return collective()


def update(seed: int, values: int = 18_000) -> np.ndarray:
    """Two chunks; the second one's padding is known to everybody."""
    rng = np.random.default_rng(seed)
    x = {"w": np.zeros(values)}
    return encoder.encode(x, {"w": rng.standard_normal(values)}, 60_000, 1000.0, 8.0, bytes(32)).slots


def masked(me: int, slots: np.ndarray, seeds: dict[tuple[int, int], bytes]) -> np.ndarray:
    pairs = [PairSeed(me < other, seeds[min(me, other), max(me, other)]) for other in range(3) if other != me]
    return np.stack([mask_chunk(chunk, index, pairs, AGG_Q16) for index, chunk in enumerate(slots)])


def fresh_seeds() -> dict[tuple[int, int], bytes]:
    return {pair: os.urandom(32) for pair in itertools.combinations(range(3), 2)}


def added(uploads: list[list[bytes]]) -> list[bytes]:
    return [bfv.Adder(AGG_Q16).add(column) for column in zip(*uploads, strict=True)]


def negated(chunk: bytes) -> bytes:
    values = residues.unpack_chunk(chunk, AGG_Q16).copy()
    for limb, prime in enumerate(PRIMES):
        values[:, limb] = (np.uint64(prime) - values[:, limb]) % np.uint64(prime)
    return residues.pack(values)


def solved(matrix: list[list[int]], right: list[int], prime: int) -> list[int]:
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


def patched(victim: list[bytes], wanted: Digest, challenge: bytes) -> list[bytes]:
    """Change seven coefficients of each polynomial of the last chunk until the digest is the aggregate's."""
    last = len(victim) - 1
    changed = residues.unpack_chunk(victim[last], AGG_Q16).copy()
    now = digests.linear_digest(AGG_Q16, challenge, victim)
    matrix = digests._coefficients(challenge, last, AGG_Q16)[: digests.COLUMNS].astype(np.int64).T.tolist()
    for place in range(DIGEST_VALUES // digests.COLUMNS):
        poly, limb = divmod(place, len(PRIMES))
        prime, start = PRIMES[limb], place * digests.COLUMNS
        gap = [(wanted[start + i] - now[start + i]) % prime for i in range(digests.COLUMNS)]
        for index, delta in enumerate(solved(matrix, gap, prime)):
            changed[poly, limb, index] = (int(changed[poly, limb, index]) + delta) % prime
    return [*victim[:last], residues.pack(changed)]


def test_a_coordinator_that_knows_the_challenge_early_isolates_a_victim_and_ours_refuses(key: Collective) -> None:
    plain = [update(seed) for seed in range(3)]
    uploads = [key.encrypt(item) for item in plain]
    early = os.urandom(32)
    wanted = digests.sum_digests(AGG_Q16, [digests.linear_digest(AGG_Q16, early, item) for item in uploads])
    forged = patched(uploads[0], wanted, early)
    assert digests.linear_digest(AGG_Q16, early, forged) == wanted, "the weak variant's holders accept and share"
    assert np.array_equal(key.open(forged)[0], plain[0][0]), "and the victim's first chunk lies open"

    blob = b"".join(forged)
    notice = AggregateNotice(HASH, HASH, HASH, hashlib.sha256(blob).hexdigest(), len(blob))
    expected = digests.sum_digests(
        AGG_Q16, [digests.linear_digest(AGG_Q16, notice.challenge, item) for item in uploads]
    )
    assert digests.linear_digest(AGG_Q16, notice.challenge, forged) != expected
    again = patched(uploads[0], expected, notice.challenge)  # fitted to this hash, it has another one
    other = AggregateNotice(HASH, HASH, HASH, hashlib.sha256(b"".join(again)).hexdigest(), len(blob))
    expected = digests.sum_digests(AGG_Q16, [digests.linear_digest(AGG_Q16, other.challenge, item) for item in uploads])
    assert digests.linear_digest(AGG_Q16, other.challenge, again) != expected


@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "masked"])
@pytest.mark.parametrize("fresh", [False, True], ids=["same-key", "fresh-key"])
def test_a_colluder_that_sends_minus_an_old_upload_isolates_a_victim_only_bare_and_under_the_same_key(
    key: Collective, hidden: bool, fresh: bool
) -> None:
    plain = [update(seed) for seed in range(2)]

    def uploads(used: Collective) -> list[list[bytes]]:
        seeds = fresh_seeds()
        return [used.encrypt(masked(me, item, seeds) if hidden else item) for me, item in enumerate(plain)]

    now = collective() if fresh else key
    last_round, this_round = uploads(key), uploads(now)
    copied = [negated(chunk) for chunk in last_round[1]]
    share = float(np.mean(now.open(added([*this_round, copied])) == plain[0]))
    assert share < 0.001 if hidden or fresh else share == 1.0


@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "masked"])
def test_a_coordinator_with_two_sets_gets_two_sums_where_nobody_signs_the_set(key: Collective, hidden: bool) -> None:
    """Holders that check the sum of the set they were shown, unsigned; the second holder is the coordinator's."""
    plain, seeds = [update(seed, 1_000) for seed in range(3)], fresh_seeds()
    uploads = [key.encrypt(masked(me, item, seeds) if hidden else item) for me, item in enumerate(plain)]
    opened, challenge = [], os.urandom(32)
    for shown, quorum in ((uploads, (1, 2)), (uploads[1:], (2, 3))):
        aggregate = added(shown)
        wanted = digests.sum_digests(AGG_Q16, [digests.linear_digest(AGG_Q16, challenge, each) for each in shown])
        assert digests.linear_digest(AGG_Q16, challenge, aggregate) == wanted, "an honest holder's check passes"
        opened.append(key.open(aggregate, quorum).astype(np.int64))
    share = float(np.mean((opened[0] - opened[1]) % T == plain[0]))
    # Signatures over the set stop it before an upload; should they not, masks make noise of the sum without the victim.
    assert share < 0.001 if hidden else share == 1.0


def coefficients(slots: np.ndarray) -> ring.Ints:
    """Return the coefficients of the plaintext polynomial behind N slots: SEAL's batching, backwards."""
    bits, places, position = N.bit_length() - 1, np.empty(N, np.int64), 1
    for index in range(N // 2):
        for row, number in enumerate(((position - 1) >> 1, (2 * N - position - 1) >> 1)):
            places[index + row * N // 2] = int(f"{number:0{bits}b}"[::-1], 2)
        position = position * 3 % (2 * N)
    values = np.empty(N, np.int64)
    values[places] = slots.astype(np.int64)
    found = ring.transform(N, T).inverse(values[None])[0]
    return np.where(found > T // 2, found - T, found)


@pytest.mark.parametrize("hidden", [False, True], ids=["bare", "masked"])
def test_a_malformed_chunk_gives_the_collective_key_away_and_masks_make_it_useless(
    key: Collective, hidden: bool
) -> None:
    plain, seeds = [update(0, 8_000), update(1, 8_000)], fresh_seeds()
    plain = [np.concatenate([item, np.zeros((1, N), np.uint64)]) for item in plain]  # a chunk that all know
    slots = [masked(me, item, seeds) if hidden else item for me, item in enumerate(plain)]
    uploads = [key.encrypt(item) for item in slots]
    evil = np.zeros((2, 2, N), np.uint64)
    delta = PRIMES[0] * PRIMES[1] // T
    for limb, prime in enumerate(PRIMES):
        evil[1, limb, 0] = delta % prime
    # The colluder's own streams are the rest of the masks: it takes them off what it opens.
    rest = masked(2, np.zeros((2, N), np.uint64), seeds) if hidden else np.zeros((2, N), np.uint64)
    zeros = key.encrypt(np.zeros((1, N), np.uint64))
    opened = key.open(added([*uploads, [*zeros, residues.pack(evil)]]))
    recovered = coefficients((opened[1] + rest[1]) % np.uint64(T))
    assert int(np.abs(recovered).max()) <= 3
    for limb, prime in enumerate(PRIMES):
        transformed = ring.transform(N, prime).forward((recovered % prime)[None])[0]
        total = sum(secret[limb] for secret in key.secrets) % prime
        assert np.array_equal(transformed, total), "this is the collective secret key"

    stolen = np.stack([ring.transform(N, prime).forward((recovered % prime)[None])[0] for prime in PRIMES])
    thief = shares.Sharer(AGG_Q16, stolen, 1, (1,), 1, 1)
    victim = uploads[0][0]
    seen = throwaway().decrypt(shares.fuse(AGG_Q16, victim, thief.share([victim], os.urandom(32), 0)))
    match = float(np.mean(seen == plain[0][0]))
    assert match < 0.001 if hidden else match == 1.0
    assert not hidden or not bool((seen[:CHECK_SLOTS] == 1).any())
    assert bool((opened[1][:CHECK_SLOTS] != 2).any()), "and the check slots of the round do not show the contributors"


def test_an_upload_under_another_key_spoils_the_sum_and_the_check_slots_show_it(key: Collective) -> None:
    plain = [update(seed, 1_000) for seed in range(3)]
    honest = [key.encrypt(item) for item in plain]
    x = {"w": np.zeros(1_000)}
    decoded = encoder.decode(key.open(added(honest)), 3, x, 8.0)
    assert decoded.weight > 0
    foreign = collective().encrypt(plain[2])
    with pytest.raises(ComityError) as caught:
        encoder.decode(key.open(added([*honest[:2], foreign])), 3, x, 8.0)
    assert caught.value.code is ErrorCode.SUM_MISMATCH


def test_a_full_quorum_reads_nothing_in_a_single_masked_upload(key: Collective) -> None:
    slots = update(0, 1_000)
    upload = key.encrypt(masked(0, slots, fresh_seeds()))
    assert float(np.mean(key.open(upload) == slots)) < 0.001
