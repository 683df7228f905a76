"""What each role of a secure sum does in one round, without the network: for `bench_secagg`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from comity_crypto.sealing import sealed_size
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.blobs import blob_bytes
from comity_crypto.secagg.bfv.digests import sum_digests
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.bfv.params import AGG_I32, AGG_Q16, Parameters
from comity_crypto.secagg.bfv.workers import BfvWorkers, memory_file
from comity_crypto.secagg.frame.blobs import BlobKind, file_digest
from comity_crypto.secagg.frame.replies import WEIGHT_ONE, Bounds
from comity_crypto.secagg.masked import blobs as masked_blobs
from comity_crypto.secagg.masked import encoder as masked_encoder
from comity_crypto.secagg.masked import words as masked_words
from comity_crypto.secagg.masked.words import Mask
from comity_crypto.secagg.threshold.messages import default_threshold
from comity_crypto.secagg.threshold.workers import KeyWorkers, QuorumOf, share_piece_bytes

CLIP_NORM = 2.0
# From here on one party's upload stands for the others', too: time and disk stay bounded.
ALL_REAL_MAX = 100_000
# There, and where it does not take long, that one contributes several times: one measurement alone says little.
REPEATS, REPEATED_MAX = 3, 1_000_000
_FLOAT_BYTES = 4


class Watching(Protocol):
    """Measures jobs by name."""

    def sync(self, name: str, job: Any) -> Any:
        """Measure a function."""

    async def wait(self, name: str, job: Any) -> Any:
        """Measure what the pool does."""


class Given:
    """The numbers of one setting: x, and each party's reply, drawn when it is asked for."""

    def __init__(self, size: int, parties: int) -> None:
        self.size, self.parties = size, parties
        self.real = parties if size <= ALL_REAL_MAX else 1
        self.repeats = REPEATS if self.real == 1 and size <= REPEATED_MAX else 1
        self.x = {"w": np.random.default_rng(1).standard_normal(size, np.float32)}
        self.bounds = Bounds.default(CLIP_NORM, size)

    def reply(self, me: int) -> dict[str, Any]:
        """Return y: a step of norm 1 away from x."""
        step = np.random.default_rng(100 + me).standard_normal(self.size, np.float32)
        step /= np.float32(np.sqrt(self.size))
        step += self.x["w"]
        return {"w": step}

    def check(self, arrays: Any, level: float) -> dict[str, float]:
        """Return the largest error against the mean in the clear, which must be within the bound of quantisation."""
        mean = np.mean([self.reply(me)["w"].astype(np.float64) for me in range(self.parties)], axis=0)
        error = float(np.abs(arrays["w"] - mean).max())
        bound = level + 2 * float(np.spacing(np.float32(np.abs(self.x["w"]).max())))
        if error > bound:
            raise AssertionError(f"a mean is off by {error}, beyond {bound}")
        return {"max_error": error, "error_bound": bound}


def pairs_of(me: int, parties: int) -> list[tuple[bool, bytes]]:
    """Return (adds, seed) of every pair of one party; both sides of a pair get the same seed."""
    others = (other for other in range(parties) if other != me)
    return [(me < other, bytes([1 + min(me, other), 1 + max(me, other)]) * 16) for other in others]


async def measure(watch: Watching, profile: str, size: int, parties: int) -> dict[str, Any]:
    """Let every role of a profile work once, or each contributor once; returns facts of the row."""
    given = Given(size, parties)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if profile == "plain":
            return plain(watch, given)
        if profile == "masked":
            return masked(watch, given, folder)
        if profile == "tenseal-ckks-shared-key":
            return one_key_ckks(watch, given)
        async with BfvWorkers(1) as pool:
            if profile == "lead-key":
                return await lead_key(watch, pool, given, folder)
            return await threshold(watch, pool, given, folder, AGG_I32 if profile.endswith("i32") else AGG_Q16)


def plain(watch: Watching, given: Given) -> dict[str, Any]:
    """One key for a reply, as sealed blobs have: AES-256-GCM over the bytes; the coordinator relays."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    for me in range(given.real):
        reply = given.reply(me)["w"].tobytes()
        box = watch.sync("encrypt", lambda reply=reply: cipher.encrypt(nonce, reply, None))
    replies = watch.sync("open", lambda: [cipher.decrypt(nonce, box, None) for _ in range(given.parties)])

    def mean() -> Any:
        total = np.zeros(given.size)
        for each in replies:
            total += np.frombuffer(each, np.float32)
        return total / given.parties

    watch.sync("decode", mean)
    upload = sealed_size(given.size * _FLOAT_BYTES)
    return {"parameters": "float32", "upload_bytes": upload, "contributors_real": given.real}


def opened(folder: Path, name: str) -> int:
    """Return an empty file on disk, by descriptor."""
    return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)


def masked(watch: Watching, given: Given, folder: Path) -> dict[str, Any]:
    """Words under masks: the own one, the round's, and one for each pair."""
    n, bounds, files, tag = given.parties, given.bounds, list[int](), bytes([9]) * 32
    own = [[Mask(True, bytes([40 + kind, me + 1]) * 16) for kind in range(2)] for me in range(n)]

    def contribute(me: int, fd: int) -> int:
        encoded = masked_encoder.encode(
            given.x, reply, WEIGHT_ONE, bounds.clip_norm, bounds.value_range, bytes([me]) * 32
        )
        masks = [*own[me], *(Mask(adds, seed) for adds, seed in pairs_of(me, n))]
        words = masked_words.protect(encoded.words, tag, masks)
        masked_blobs.write_blob(fd, BlobKind.UPLOAD, words)
        file_digest(fd)
        return int(words.size)

    for me in range(given.real):
        reply, fd = given.reply(me), opened(folder, str(me))
        for _ in range(given.repeats):
            words = watch.sync("encrypt", lambda me=me, fd=fd: contribute(me, fd))
        files.append(fd)
    target = opened(folder, "sum")
    watch.sync("add", lambda: masked_blobs.add_blobs(files * (n // given.real), words, target))
    facts: dict[str, Any] = {"parameters": "uint32", "upload_bytes": masked_blobs.blob_bytes(words)}
    total = watch.sync("open", lambda: masked_blobs.read_blob(target, BlobKind.AGGREGATE, words))
    inverse = [mask.inverse for each in own for mask in each]
    if given.real == n:
        content = watch.sync("decode", lambda: masked_words.unmask(total, tag, inverse, n))
        out = watch.sync("mean", lambda: masked_encoder.decode(content, n, given.x, bounds.value_range))
        facts |= given.check(out.arrays, masked_encoder.quantisation_bound(bounds.value_range, n, n))
    else:
        watch.sync("decode", lambda: masked_words.apply(total, inverse))
    return {**facts, "contributors_real": given.real}


async def upload_all(
    watch: Watching, pool: BfvWorkers, given: Given, folder: Path, public: bytes, parameters: Parameters
) -> tuple[list[int], int, bytes]:
    """Every real party's upload, and their sum; returns uploads, aggregate and challenge."""
    files, n, bounds = list[int](), given.parties, given.bounds
    for me in range(given.real):
        reply = given.reply(me)

        def encode(me: int = me, reply: Any = reply) -> encoder.Encoded:
            if parameters is AGG_I32:
                return encoder.encode_integers(np.arange(given.size, dtype=np.int64) % 1_000)
            return encoder.encode(given.x, reply, WEIGHT_ONE, bounds.clip_norm, bounds.value_range, bytes([me]) * 32)

        fd, pairs = opened(folder, str(me)), [PairSeed(adds, seed) for adds, seed in pairs_of(me, n)]
        for _ in range(given.repeats):
            encoded = watch.sync("encode", encode)
            await watch.wait("encrypt", pool.encrypt(parameters, public, encoded.slots, pairs, fd))
        files.append(fd)
    chunks, target, challenge = len(encoded.slots), opened(folder, "sum"), os.urandom(32)
    uploads = files * (n // given.real)
    done = await watch.wait("add", pool.add(parameters, chunks, uploads, target))
    found = []
    for fd in files:
        for _ in range(given.repeats):
            own = await watch.wait("digest", pool.digest(parameters, BlobKind.UPLOAD, chunks, challenge, fd))
        found.append(own)
    checked = await watch.wait("check", pool.check_and_digest(parameters, chunks, challenge, done.digest, target))
    if checked != sum_digests(parameters, found * (n // given.real)):
        raise AssertionError("the digests of the uploads are not the sum's")
    return uploads, target, challenge


def decoded(watch: Watching, given: Given, parameters: Parameters, slots: Any) -> dict[str, Any]:
    """Decode what was opened, if every party's upload is in it."""
    if given.real != given.parties:
        return {}
    n, bounds = given.parties, given.bounds
    if parameters is AGG_I32:
        sums = watch.sync("decode", lambda: encoder.decode_integers(slots, n, given.size))
        if not np.array_equal(sums, n * (np.arange(given.size) % 1_000)):
            raise AssertionError("a sum of integers is not exact")
        return {"max_error": 0.0}
    out = watch.sync("decode", lambda: encoder.decode(slots, n, given.x, bounds.value_range))
    return given.check(out.arrays, bounds.value_range / encoder.LEVELS)


async def lead_key(watch: Watching, pool: BfvWorkers, given: Given, folder: Path) -> dict[str, Any]:
    """A sum under the lead's own key."""
    key = await watch.wait("key", pool.make_key(AGG_Q16))
    await pool.warm(AGG_Q16, key.public)
    chunks = encoder.Layout.of(given.x).chunks
    _, target, _ = await upload_all(watch, pool, given, folder, key.public, AGG_Q16)
    slots = await watch.wait("fuse", pool.decrypt(AGG_Q16, chunks, key.secret, target))
    key.secret.erase()
    facts = {"parameters": AGG_Q16.name, "upload_bytes": blob_bytes(AGG_Q16, chunks), "contributors_real": given.real}
    return {**facts, **decoded(watch, given, AGG_Q16, slots)}


async def threshold(
    watch: Watching, pool: BfvWorkers, given: Given, folder: Path, parameters: Parameters
) -> dict[str, Any]:
    """A sum under a key that all parties made, opened by a quorum."""
    n, work, crs, challenge = given.parties, KeyWorkers(pool, parameters), os.urandom(32), os.urandom(32)
    quorum = default_threshold(n)
    await pool.warm(parameters)
    drawn = [await watch.wait("draw", work.draw(crs, 1)) for _ in range(n)]
    made = memory_file("keys")
    await watch.wait("combine", work.combine(crs, 1, [each.public for each in drawn], made))
    public = os.pread(made, parameters.key_bytes, 0)
    held = [each.secret.fd for each in drawn]
    if quorum < n:
        dealt = [[memory_file("dealt") for _ in range(n)] for _ in range(n)]
        for each, targets in zip(drawn, dealt, strict=True):
            await watch.wait("deal", work.deal(1, quorum, each.secret, targets))
        held = [memory_file("share") for _ in range(n)]
        for place, target in enumerate(held):
            await watch.wait("gather", work.gather(1, challenge, [row[place] for row in dealt], target))
    await pool.warm(parameters, public)
    _, aggregate, _ = await upload_all(watch, pool, given, folder, public, parameters)
    layout = encoder.Layout.of(given.x)
    chunks = parameters.chunks_for(given.size if parameters is AGG_I32 else layout.payload_slots)
    points, shares = tuple(range(1, quorum + 1)), list[int]()
    for point in points:
        shares.append(opened(folder, f"share-{point}"))
        job = work.share(chunks, QuorumOf(point, points, quorum, n), held[point - 1], aggregate, shares[-1])
        await watch.wait("share", job)
    slots = await watch.wait("fuse", work.fuse(chunks, aggregate, shares))
    facts = {
        "parameters": parameters.name,
        "upload_bytes": blob_bytes(parameters, chunks),
        "share_bytes": sealed_size(blob_bytes(parameters, chunks, BlobKind.SHARE)),
        "quorum": quorum,
        "key_share_mb": round(share_piece_bytes(parameters) / 1e6, 3),
        "contributors_real": given.real,
    }
    return {**facts, **decoded(watch, given, parameters, slots)}


def one_key_ckks(watch: Watching, given: Given) -> dict[str, Any]:
    """The field's practice; vectors of one chunk each (longer ones make TenSEAL write to stdout)."""
    import tenseal

    slots = 4096
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40], n_threads=1)
    context.global_scale = 2**40
    values = given.reply(0)["w"].astype(np.float64)
    parts = [values[start : start + slots] for start in range(0, given.size, slots)]
    upload = watch.sync("encrypt", lambda: [tenseal.ckks_vector(context, part).serialize() for part in parts])

    def add(part: bytes) -> Any:
        total = tenseal.ckks_vector_from(context, part)
        for _ in range(given.parties - 1):
            total.add_(tenseal.ckks_vector_from(context, part))
        return total.serialize()

    totals = watch.sync("add", lambda: [add(part) for part in upload])
    watch.sync("fuse", lambda: [tenseal.ckks_vector_from(context, part).decrypt() for part in totals])
    size = sum(map(len, upload))
    return {"parameters": "ckks [60, 40, 40] N 8192", "upload_bytes": size, "contributors_real": 1}
