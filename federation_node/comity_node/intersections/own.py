"""This organisation's own side of one run: its set, its key, and its set under its key.

Rules:
1. Key and padding come from the node's secret and the run: nothing secret is stored, and what is made again after a
   restart is the same.
2. The column is read from the run's copy of the granted data, so that a run sees one state of it.
3. Points are kept until the run is closed; they are ours, and nobody can read them without the key.
"""

from __future__ import annotations

import asyncio
import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.psi.identifiers import OwnSet, own_set, scalar
from comity_crypto.psi.matching import own_rows, sorted_places
from comity_crypto.psi.messages import POINT_BYTES, ascending, points_of

_FIELD_CHARS_MAX = 1 << 20


class Cipher(Protocol):
    """The arithmetic (`comity_crypto.psi.workers.PsiWorkers`)."""

    async def mask(self, key: bytes, elements: bytes) -> bytes:
        """Return own elements as points under `key`, in their order."""
        ...

    async def remask(self, key: bytes, points: bytes) -> bytes:
        """Return points under `key` too, in their order."""
        ...


class OwnSide:
    """See the head of this module. One for each run; may be shared by tasks."""

    def __init__(
        self, keys: OrgKeys, cipher: Cipher, copy: Path, column: str, rules: tuple[str, ...], place: bytes, run: str
    ) -> None:
        """`copy` is the run's copy of the own dataset, `place` the run's domain, `rules` the step's `normalise`."""
        self._cipher = cipher
        self._path = copy
        self._column = column
        self._rules = rules
        self._place = place
        self._key = scalar(keys.secret(b"psi/key/" + run.encode()))
        self._padding = keys.secret(b"psi/padding/" + run.encode())
        self._turn = asyncio.Lock()
        self._known: tuple[OwnSet, bytes, array[int]] | None = None

    @property
    def distinct(self) -> int:
        """Number of different identifiers of the set that was masked last, 0 before."""
        return 0 if self._known is None else self._known[0].distinct

    async def masked(self) -> tuple[OwnSet, bytes]:
        """Return the own set, and its points under the own key, ascending.

        Raises:
            ComityError: `DATASET_COLUMNS`, `MALFORMED`, `TOO_LARGE`, as `PsiWorkers.mask`.
        """
        own, points, _ = await self._all()
        return own, points

    async def doubled(self, points: bytes) -> bytes:
        """Return the other side's points under our key too, in their order. Raises as `PsiWorkers.remask`."""
        return await self._cipher.remask(self._key, points)

    async def rows(self, places: tuple[int, ...]) -> list[tuple[int, str]]:
        """Return number and identifier of the own records behind matching places of the masked set."""
        own, _, order = await self._all()
        return await asyncio.to_thread(self._rows, places, own, order)

    async def _all(self) -> tuple[OwnSet, bytes, array[int]]:
        async with self._turn:
            if self._known is None:
                own = await asyncio.to_thread(self._read)
                masked = await self._cipher.mask(self._key, own.elements)
                order = await asyncio.to_thread(sorted_places, masked)
                points = await asyncio.to_thread(_in_order, masked, order)
                self._known = own, points, order
            return self._known

    def _read(self) -> OwnSet:
        return own_set(self._identifiers(), self._rules, self._place, self._padding)

    def _rows(self, places: tuple[int, ...], own: OwnSet, order: array[int]) -> list[tuple[int, str]]:
        wanted = set(own_rows(places, order, own))
        return [(row, text) for row, text in enumerate(self._identifiers()) if row in wanted]

    def _identifiers(self) -> Iterator[str]:
        if self._path.suffix == ".npz":
            return _of_npz(self._path, self._column)
        return _of_csv(self._path, self._column)


def _in_order(masked: bytes, order: array[int]) -> bytes:
    points = points_of(masked)
    return b"".join(points[place] for place in order)


def ascending_points(points: bytes) -> bytes:
    """Return points in ascending order, as they cross."""
    assert len(points) % POINT_BYTES == 0
    return ascending(points_of(points))


def _of_csv(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(_FIELD_CHARS_MAX)
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        place = next(rows).index(column)  # the node wrote this copy, with the columns that were granted
        for row in rows:
            yield row[place]


def _of_npz(path: Path, column: str) -> Iterator[str]:
    with np.load(path, allow_pickle=False) as arrays:
        values = arrays[column]
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        # 7.0 and 7 would be two identifiers here and one elsewhere; bytes have no declared alphabet.
        raise ComityError(ErrorCode.DATASET_COLUMNS, "a key column holds text or whole numbers", column=column)
    return (str(value) for value in values)
