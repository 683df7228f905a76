"""A small fuzzer of bytes and of documents, with a seed: the same changes at every run.

Bytes: flipped bits, cuts, additions, pieces of another sample, repeated and exchanged pieces, numbers that programs
stumble over. Documents: fields taken away, added, exchanged, and put in place of one another by values of every kind.
"""

from __future__ import annotations

import copy
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# One read takes milliseconds; what takes this much processor time hangs.
HANG_S = 5.0
EXTRA_BYTES_MAX = 64
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 50, 51, 2**31, 2**53, 2**64, -(2**70), 0.5, 1e308, "", "0", "a", "org-00", "A" * 64,
    "f" * 64, "\x00", "\ud7ff\U0010ffff", "=" * 44, "A" * 44, "x" * 5_000, [], [[]], [None], ["org-00"] * 51,
    {}, {"": 0}, {"org-00": "f" * 64}, {f"org-{n:02d}": "f" * 64 for n in range(51)}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def mutated(chance: random.Random, samples: Sequence[bytes]) -> bytes:
    """Return one of the samples after one to three changes."""
    out = bytearray(chance.choice(samples))
    for _ in range(chance.choice((1, 1, 2, 3))):
        _CHANGES[chance.randrange(len(_CHANGES))](chance, out, samples)
    return bytes(out)


def mutated_document(chance: random.Random, samples: Sequence[Any]) -> Any:
    """Return one of the documents after one to three changes."""
    out = copy.deepcopy(chance.choice(samples))
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = list(_places(out))
        if not places:
            return _value(chance)
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, name = chance.choice(list(_places(chance.choice(samples))) or [(holder, key)])
                holder[key] = copy.deepcopy(other[name])
            case 2 if isinstance(holder, dict):
                holder[chance.choice(("", "session", "members", "org-07", str(key) + "x"))] = _value(chance)
            case 3 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key]) for _ in range(chance.choice((1, 2, 60))))
            case 4 if isinstance(holder[key], str) and holder[key]:
                text = bytearray(holder[key].encode())
                text[chance.randrange(len(text))] = chance.choice(b"0aAzZ=+/-_ \x00~")
                holder[key] = text.decode(errors="replace")[: chance.choice((len(text), len(text) - 1))]
            case _:
                holder[key] = _value(chance)
    return out


@contextmanager
def no_hang() -> Iterator[None]:
    """Fail what takes too much processor time. Python code alone is stopped; native code by the test's own limit."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError("a reader hangs")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(_VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a document as (its holder, key or index)."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in pairs:
        yield value, key
        yield from _places(item)


Change = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def _piece(chance: random.Random, data: bytes | bytearray) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + chance.choice((1, 2, 4, 8, 16, 32, 48, 64, 200)))


def _flip(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    for _ in range(min(len(out), chance.choice((1, 1, 2, 8)))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)


def _cut(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    del out[chance.randrange(len(out) + 1) :]


def _drop(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    start, end = _piece(chance, out)
    del out[start:end]


def _extend(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    size = chance.randrange(1, EXTRA_BYTES_MAX)
    out += chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))


def _splice(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    other = chance.choice(samples)
    start, end = _piece(chance, other)
    at = chance.randrange(len(out) + 1)
    out[at : at + chance.choice((0, end - start))] = other[start:end]


def _repeat(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    start, end = _piece(chance, out)
    out[end:end] = out[start:end] * chance.choice((1, 2, 20))


def _exchange(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    start, end = _piece(chance, out)
    out[start:end] = out[start:end][::-1]


def _number(chance: random.Random, out: bytearray, samples: Sequence[bytes]) -> None:
    size = chance.choice((1, 2, 4, 8))
    value = (chance.choice(_NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, chance.choice(("big", "little")))
    start = chance.choice((chance.randrange(len(out) + 1), chance.randrange(min(64, len(out)) + 1)))
    out[start : start + size] = value


_CHANGES: tuple[Change, ...] = (_flip, _flip, _cut, _drop, _extend, _splice, _repeat, _exchange, _number, _number)
