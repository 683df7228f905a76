"""Shares of collective keys at rest: one file a key, mode 0600, used once, then overwritten and removed.

Rules:
1. Files are complete and synced before the journal names them, and erased after the journal has let go of them.
2. `take` records who uses a key before it returns anything of it. What a dead process took is erased by `sweep`, at the
   start of the next one: its sessions cannot go on, and nobody may use the key again.
3. Overwriting is what a file can promise; on media that remap blocks the key's short life (a round, then no use) and
   the masks inside the ciphertexts are what protects an old round.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.threshold.batch import KeyBatch
from comity_crypto.secagg.threshold.messages import ThresholdOffer
from comity_crypto.secagg.threshold.workers import share_piece_bytes
from comity_node.journal import Journal
from comity_node.training.profiles import threshold_store

_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class HeldKey:
    """What a session gets of a key: the packed public key, and this holder's packed share, which repr does not show."""

    batch: KeyBatch
    public: bytes = field(repr=False)
    share: bytes = field(repr=False)


class KeyKeeping:
    """See the head of this module. `folder` is the node's, of mode 0700."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self._journal = journal
        self._folder = folder

    async def put(self, batch: KeyBatch, public: Sequence[bytes], shares: Sequence[bytes]) -> None:
        """Keep a batch: by key, the packed public key and this holder's share.

        Raises:
            ComityError: `INTERNAL` (not whole), `CONFLICT` (a key is known already), `JOURNAL_UNWRITABLE`.
        """
        if not len(batch.keys) == len(public) == len(shares):
            raise ComityError(ErrorCode.INTERNAL, "a batch is kept whole")
        for key_id in batch.keys:
            if await self._journal.run(partial(threshold_store.find_key, key_id=key_id)) is not None:
                raise ComityError(ErrorCode.CONFLICT, "a key of another ceremony has this id")
        names = tuple(f"key-{key_id}" for key_id in batch.keys)
        contents = [shown + share for shown, share in zip(public, shares, strict=True)]
        await asyncio.to_thread(self._write, names, contents)
        try:
            await self._journal.run(lambda conn: threshold_store.put_batch(conn, batch, names))
        except BaseException:  # also a cancelled caller leaves no key files
            await asyncio.to_thread(self._erase, names)
            raise

    async def fresh(self, run: str) -> list[tuple[KeyBatch, str]]:
        """Return the keys that no session has taken, each with its batch."""
        rows = await self._journal.run(lambda conn: threshold_store.fresh_keys(conn, run))
        return [(row.made, row.key_id) for row in rows]

    async def take(self, offer: ThresholdOffer) -> HeldKey:
        """Give an offer's key to its session, once.

        Raises:
            ComityError: `NOT_FOUND`, `ROSTER_MISMATCH` (the offer is not of the key's ceremony), `ORDER_REPLAYED`,
                `PAYLOAD_MISSING` (the file is gone or another one).
        """
        found = await self._journal.run(lambda conn: threshold_store.find_key(conn, offer.key_id))
        if found is None:
            raise ComityError(ErrorCode.NOT_FOUND, "this organisation has no share of the round's key")
        batch = found.made
        batch.check_offer(offer)
        row = await self._journal.run(lambda conn: threshold_store.take_key(conn, offer.key_id, offer.digest))
        parameters = batch.plan.parameter_set
        size_bytes = parameters.key_bytes + share_piece_bytes(parameters)
        data = await asyncio.to_thread(self._read, str(row.file), size_bytes)
        return HeldKey(batch, data[: parameters.key_bytes], data[parameters.key_bytes :])

    async def erase(self, key_id: str) -> None:
        """Erase a key; may be called again."""
        name = await self._journal.run(lambda conn: threshold_store.drop_file(conn, key_id))
        if name is not None:
            await asyncio.to_thread(self._erase, (name,))

    async def sweep(self) -> int:
        """Erase what sessions of an earlier process took, and files that no journal names; returns how many."""
        taken = await self._journal.run(threshold_store.taken_files)
        for key_id, _ in taken:
            await self.erase(key_id)
        known = await self._journal.run(threshold_store.known_files)
        strays = [path.name for path in self._folder.glob("key-*") if path.name not in known]
        await asyncio.to_thread(self._erase, tuple(strays))
        return len(taken) + len(strays)

    async def forget(self, run: str) -> None:
        """Erase everything of a run that is over, and its rows."""
        names = await self._journal.run(lambda conn: threshold_store.files_of(conn, run))
        await asyncio.to_thread(self._erase, tuple(names))
        await self._journal.run(lambda conn: threshold_store.forget(conn, run))

    def _write(self, names: Sequence[str], contents: Sequence[bytes]) -> None:
        for name, data in zip(names, contents, strict=True):
            path = self._folder / name
            path.unlink(missing_ok=True)  # of a ceremony that the journal never heard of
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def _read(self, name: str, size_bytes: int) -> bytes:
        try:
            data = (self._folder / name).read_bytes()
        except OSError as error:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "the share of a round's key is gone") from error
        if len(data) != size_bytes:
            raise ComityError(ErrorCode.PAYLOAD_MISSING, "the share of a round's key is not whole")
        return data

    def _erase(self, names: Sequence[str]) -> None:
        for name in names:
            path = self._folder / name
            if not path.exists():
                continue
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
