"""The jobs of `threshold` on the pool of worker processes (`bfv.workers`, `jobs`).

1. A share's noise comes from 32 bytes that are drawn here for each call, and given to no second one.
2. What a stranger sent is refused by name of its place in the caller's order: `holder`, from 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity_crypto.secagg.bfv.blobs import check_blob, write_header
from comity_crypto.secagg.bfv.channel import SLOT_BYTES
from comity_crypto.secagg.bfv.params import LIMBS, Parameters
from comity_crypto.secagg.bfv.workers import BfvWorkers, SecretKey, memory_file
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.frame.events import BlobReady
from comity_crypto.secagg.threshold.shares import SEED_BYTES


@dataclass(frozen=True)
class QuorumOf:
    """Who shares: the points of the quorum, this holder's own, and the key's shape."""

    point: int
    quorum: tuple[int, ...]
    threshold: int
    holders: int


@dataclass(frozen=True)
class Drawn:
    """A holder's parts of a batch: the secret, and an open file with the public shares, which the taker closes."""

    secret: SecretKey
    public: int = field(repr=False)


class KeyWorkers:
    """See the head of this module; the pool stays its owner's."""

    def __init__(self, pool: BfvWorkers, parameters: Parameters) -> None:
        self._pool = pool
        self._parameters = parameters

    async def draw(self, crs: bytes, keys: int) -> Drawn:
        """Draw a part of every key of a batch."""
        drawn = Drawn(SecretKey(), memory_file("public"))
        try:
            await self._run({"job": "draw", "crs": crs.hex(), "keys": keys}, [drawn.public, drawn.secret.fd])
        except BaseException:  # also a cancelled caller leaves no secret part
            drawn.secret.erase()
            os.close(drawn.public)
            raise
        return drawn

    async def combine(self, crs: bytes, keys: int, public: Sequence[int], target: int) -> tuple[str, ...]:
        """Add all holders' public shares into `target`; returns the ids. Raises `CIPHERTEXT_INVALID` (`holder`)."""
        reply = await self._run({"job": "combine", "crs": crs.hex(), "keys": keys}, [*public, target])
        return tuple(reply["keys"])

    async def deal(self, keys: int, threshold: int, secret: SecretKey, targets: Sequence[int]) -> None:
        """Share every key's part among the holders, one file for each."""
        await self._run({"job": "deal", "keys": keys, "threshold": threshold}, [secret.fd, *targets])

    async def gather(self, keys: int, challenge: bytes, dealt: Sequence[int], target: int) -> list[tuple[int, ...]]:
        """Add all dealers' points into `target`; returns values by dealer. Raises `CIPHERTEXT_INVALID` (`holder`)."""
        request = {"job": "gather", "keys": keys, "challenge": challenge.hex()}
        reply = await self._run(request, [*dealt, target])
        return [tuple(values) for values in reply["values"]]

    async def share(self, chunks: int, of: QuorumOf, held: int, aggregate: int, fd: int) -> BlobReady:
        """Make a share of the aggregate into the file `fd`; `held` is this holder's share of the key.

        Raises:
            ComityError: `CIPHERTEXT_INVALID` if the aggregate is none.
        """
        check_blob(aggregate, self._parameters, BlobKind.AGGREGATE, chunks)
        write_header(fd, self._parameters, BlobKind.SHARE, chunks)
        request = {
            "job": "share",
            "seed": os.urandom(SEED_BYTES).hex(),
            "point": of.point,
            "quorum": list(of.quorum),
            "threshold": of.threshold,
            "holders": of.holders,
        }
        await self._pool.split(self._parameters, request, [held, aggregate, fd], chunks)
        return BlobReady(*await self._pool.digest_of(fd))

    async def fuse(self, chunks: int, aggregate: int, shares: Sequence[int]) -> NDArray[np.uint64]:
        """Return the slots that the shares open, shape (chunks, N). Raises `CIPHERTEXT_INVALID`."""
        check_blob(aggregate, self._parameters, BlobKind.AGGREGATE, chunks)
        for fd in shares:
            check_blob(fd, self._parameters, BlobKind.SHARE, chunks)
        out = memory_file("sums")
        try:
            os.ftruncate(out, chunks * self._parameters.ring_degree * SLOT_BYTES)
            await self._pool.split(self._parameters, {"job": "fuse"}, [aggregate, *shares, out], chunks)
            with os.fdopen(os.dup(out), "rb") as file:
                slots: NDArray[np.uint64] = np.fromfile(file, np.uint64)
        finally:
            os.close(out)
        return slots.reshape(chunks, self._parameters.ring_degree)

    async def _run(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return await self._pool.run(self._parameters, request, fds)


def share_piece_bytes(parameters: Parameters) -> int:
    """Return the size of one key's share as a holder keeps it."""
    return parameters.poly_bytes(LIMBS)
