"""What a secure sum costs: `bench_secagg.py [--params 100000 1000000] [--parties 3 10] [--workers 1]`.

Prints one JSON row per setting. Times are wall seconds with the given number of worker processes; `encode_s`,
`encrypt_s` and `digest_s` are for one contributor, the others for the whole session. `max_error` is against the plain
weighted mean, beside `error_bound`, which quantisation allows. The row `ckks-one-key` is the baseline that other
systems use: CKKS [60, 40, 60] under one key that all clients share, without masks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.digests import sum_digests
from comity_crypto.secagg.bfv.masks import PairSeed
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.replies import WEIGHT_ONE, Bounds, weight_of

CLIP_NORM = 2.0


class Watch:
    """Collects wall seconds by name; a name that comes again keeps its median."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def sync(self, name: str, job: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = job()
        self._times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    async def wait(self, name: str, job: Awaitable[Any]) -> Any:
        start = time.perf_counter()
        result = await job
        self._times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    def row(self) -> dict[str, float]:
        return {name: round(float(np.median(times)), 4) for name, times in self._times.items()}


async def lead_key(workers: BfvWorkers, size: int, parties: int, folder: Path) -> dict[str, Any]:
    """One round without the network: encode, mask, encrypt, add, digest, check, decrypt, decode."""
    rng, watch = np.random.default_rng(1), Watch()
    x = {"w": rng.standard_normal(size).astype(np.float32)}
    replies = [(x["w"] + rng.standard_normal(size) / np.sqrt(size)).astype(np.float32) for _ in range(parties)]
    bounds = Bounds.default(CLIP_NORM, size)
    weights = [weight_of(400 + 50 * index, 1000, 1000) for index in range(parties)]
    seeds = {(a, b): os.urandom(32) for b in range(parties) for a in range(b)}
    key = await watch.wait("key_s", workers.make_key(AGG_Q16))
    await workers.warm(AGG_Q16, key.public)
    files = [os.open(folder / str(index), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for index in range(parties + 1)]
    try:
        for me in range(parties):
            encoded = watch.sync(
                "encode_s",
                lambda me=me: encoder.encode(
                    x, {"w": replies[me]}, weights[me], bounds.clip_norm, bounds.value_range, bytes([me]) * 32
                ),
            )
            pairs = [
                PairSeed(me < other, seeds[min(me, other), max(me, other)]) for other in range(parties) if other != me
            ]
            blob = await watch.wait("encrypt_s", workers.encrypt(AGG_Q16, key.public, encoded.slots, pairs, files[me]))
        chunks, challenge = len(encoded.slots), os.urandom(32)
        total = await watch.wait("add_s", workers.add(AGG_Q16, chunks, files[:-1], files[-1]))
        digests = [
            await watch.wait("digest_s", workers.digest(AGG_Q16, BlobKind.UPLOAD, chunks, challenge, fd))
            for fd in files[:-1]
        ]
        checked = await watch.wait(
            "check_s", workers.check_and_digest(AGG_Q16, chunks, challenge, total.digest, files[-1])
        )
        assert checked == sum_digests(AGG_Q16, digests)
        sums = await watch.wait("decrypt_s", workers.decrypt(AGG_Q16, chunks, key.secret, files[-1]))
        out = watch.sync("decode_s", lambda: encoder.decode(sums, parties, x, bounds.value_range))
    finally:
        for fd in files:
            os.close(fd)
        key.secret.erase()
    deltas = sum(w * (reply.astype(np.float64) - x["w"]) for w, reply in zip(weights, replies, strict=True))
    error = float(np.abs(out.arrays["w"] - (x["w"] + deltas / sum(weights))).max())
    bound = parties * bounds.value_range / encoder.LEVELS * WEIGHT_ONE / sum(weights)
    bound += float(np.spacing(np.abs(x["w"]).max()))  # the result is rounded to float32
    return {**watch.row(), "upload_bytes": blob.size_bytes, "max_error": error, "error_bound": bound}


def one_key_ckks(size: int, parties: int) -> dict[str, Any]:
    """The baseline: one context for everybody, vectors of one chunk each (longer ones make TenSEAL write to stdout)."""
    import tenseal

    watch, slots = Watch(), 4096
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 60], n_threads=1)
    context.global_scale = 2**40
    values = np.random.default_rng(1).standard_normal(size)
    parts = [values[start : start + slots] for start in range(0, size, slots)]
    upload = watch.sync("encrypt_s", lambda: [tenseal.ckks_vector(context, part).serialize() for part in parts])

    def add() -> list[Any]:
        totals = [tenseal.ckks_vector_from(context, part) for part in upload]
        for _ in range(parties - 1):
            for total, part in zip(totals, upload, strict=True):
                total.add_(tenseal.ckks_vector_from(context, part))
        return totals

    totals = watch.sync("add_s", add)
    watch.sync("decrypt_s", lambda: [total.decrypt() for total in totals])
    return {**watch.row(), "upload_bytes": sum(map(len, upload))}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--parties", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    async with BfvWorkers(given.workers) as workers:
        await workers.warm(AGG_Q16)
        for size in given.params:
            for parties in given.parties:
                setting = {"params": size, "parties": parties, "workers": given.workers}
                with tempfile.TemporaryDirectory() as folder:
                    row = await lead_key(workers, size, parties, Path(folder))
                print(json.dumps({"profile": "lead-key", **setting, **row}), flush=True)
                print(json.dumps({"profile": "ckks-one-key", **setting, **one_key_ckks(size, parties)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
