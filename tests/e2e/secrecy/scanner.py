"""Finds any 16-byte window of secrets in heaps of bytes, at any offset of either.

Every window of 16 bytes, wherever it lies, covers one whole 8-byte word of the heap that starts at a multiple of 8. So
all 8-byte pieces of the secrets (at every offset) go into a table, every aligned word of the heap is looked up in it,
and around each hit the nine possible windows are compared with the secrets themselves: nothing is sampled.

Windows that hold fewer than `DISTINCT_MIN` different bytes (zeros, padding) tell nothing and are passed over, as are
words of fewer than `WORD_DISTINCT_MIN`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 16
WORD = 8
DISTINCT_MIN = 7
WORD_DISTINCT_MIN = 4
FINDINGS_MAX = 20
_TABLE_BITS = 27
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_BLOCK_WORDS = 1 << 22
_BLOCK_HITS = 1 << 18
# As text would carry a secret: a part is enough, since whoever leaks an array in base64 leaks its beginning, too.
_FORM_BYTES_MAX = 1 << 15


@dataclass(frozen=True, slots=True)
class Finding:
    """One window of a secret in a heap."""

    heap: str
    secret: str
    window: bytes

    def __str__(self) -> str:
        return f"{self.secret} in {self.heap}: {self.window!r}"


class Scanner:
    """Knows the secrets: each with a name, as bytes; also their base64 and hexadecimal forms."""

    def __init__(self, secrets: Iterable[tuple[str, bytes]]) -> None:
        self._names: list[str] = []
        self._starts: list[int] = []
        pieces, position = [], 0
        gap = os.urandom(WINDOW)  # what is found must lie within one secret
        for name, data in secrets:
            for form, told in _forms(data):
                self._names.append(f"{name}{form}")
                self._starts.append(position)
                pieces += [told, gap]
                position += len(told) + WINDOW
        self._all = b"".join(pieces)
        words = _words_at_every_offset(self._all)
        self._words = np.sort(words[_distinct(words) >= WORD_DISTINCT_MIN])
        self._word_table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._word_table[_slot(self._words)] = True
        self._windows_known = np.sort(_mixed(words[:-WORD], words[WORD:]))

    @property
    def words(self) -> int:
        """Number of 8-byte pieces that are looked for."""
        return len(self._words)

    def scan(self, heap: str, data: bytes | memoryview) -> list[Finding]:
        """Return what is found in `data`, at most `FINDINGS_MAX`."""
        found: dict[bytes, Finding] = {}
        words = np.frombuffer(data, np.uint64, count=len(data) // WORD)
        for start in range(0, len(words), _BLOCK_WORDS):
            block = words[start : start + _BLOCK_WORDS]
            maybe = np.flatnonzero(self._word_table[_slot(block)])
            hits = maybe[_among(block[maybe], self._words)]
            for window, name in self._windows(data, (hits + start) * WORD):
                found.setdefault(window, Finding(heap, name, window))
                if len(found) >= FINDINGS_MAX:
                    return list(found.values())
        return list(found.values())

    def _windows(self, data: bytes | memoryview, hits: np.ndarray) -> Iterator[tuple[bytes, str]]:
        """Yield every window around the hits (offsets in bytes) that is one of a secret's."""
        heap = np.frombuffer(data, np.uint8)
        for shift in range(WORD + 1):
            for some in np.array_split(hits, 1 + len(hits) // _BLOCK_HITS):
                begins = some - WORD + shift
                begins = begins[(begins >= 0) & (begins <= len(heap) - WINDOW)]
                windows = heap[begins[:, None] + np.arange(WINDOW)]
                halves = windows.view(np.uint64)
                for window in windows[_among(_mixed(halves[:, 0], halves[:, 1]), self._windows_known)]:
                    text = window.tobytes()
                    if len(set(text)) >= DISTINCT_MIN and (place := self._all.find(text)) >= 0:
                        yield text, self._names[int(np.searchsorted(self._starts, place, side="right")) - 1]


def _forms(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The secret itself, and as text would carry it: a window of base64 depends on where its three bytes begin."""
    yield "", data
    data = data[:_FORM_BYTES_MAX]
    yield " (hex)", data.hex().encode()
    for skip in range(3):
        yield " (base64)", base64.b64encode(data[skip:])


def _words_at_every_offset(data: bytes) -> np.ndarray:
    """Return the 8 bytes at offset 0, at offset 1, and so on."""
    found = np.empty(len(data) - WORD + 1, np.uint64)
    for shift in range(WORD):
        words = np.frombuffer(data, np.uint64, count=(len(data) - shift) // WORD, offset=shift)
        found[shift::WORD] = words
    return found


def _among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell for each value whether it is in `known`, which is sorted."""
    order = np.argsort(values)  # looked up in order, neighbours share the cache
    ordered = values[order]
    found = np.empty(len(values), np.bool_)
    found[order] = known[np.minimum(np.searchsorted(known, ordered), len(known) - 1)] == ordered
    return found


def _mixed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (low * _SPREAD) ^ (high + _SPREAD)


def _distinct(words: np.ndarray) -> np.ndarray:
    columns = np.ascontiguousarray(words.view(np.uint8).reshape(-1, WORD).T)
    count = np.ones(len(words), np.uint8)
    for place in range(1, WORD):
        fresh = np.ones(len(words), np.bool_)
        for before in range(place):
            fresh &= columns[place] != columns[before]
        count += fresh
    return count


def _slot(words: np.ndarray) -> np.ndarray:
    return (words * _SPREAD) >> np.uint64(64 - _TABLE_BITS)
