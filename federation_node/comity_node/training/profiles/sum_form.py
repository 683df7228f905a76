"""From an app's reply to what is summed, and from sums to one reply: pure, the same at every party and at the lead.

Rules (secure-aggregation.md sections 3 and 6):
1. An order to train is answered by arrays with the order's names, shapes and dtypes, and numbers; any other order by
   numbers alone. Texts and configuration records stay at their owner: they have no place in a sum.
2. Numbers are metrics that an app names freely. Parties cannot know each other's names beforehand, so each sum has the
   same `METRICS_MAX` places, filled in the order of the sorted names, and a fingerprint of the names beside them: its
   mean is the own fingerprint only if all parties had the same.
3. A number is a fixed point of 80 bits (2^-40 fine, up to 2^39), so that its weighted mean is exact. How it travels,
   so that nothing but the total shows, is the number format's matter (`frame.limbs`).
4. The weight is the number under `num-examples`, at most the measured cohort and `weight_max`; a reply without it
   weighs as much as possible. What is clamped is counted.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import Content, Record, array_entry
from comity_crypto.secagg.bfv import encoder
from comity_crypto.secagg.bfv.encoder import Encoded, Layout
from comity_crypto.secagg.bfv.params import AGG_I32
from comity_crypto.secagg.frame import replies
from comity_crypto.secagg.frame.replies import NUMBER_BITS, Bounds, Decoded
from comity_crypto.secagg.masked.encoder import EncodedWords, words_for
from comity_crypto.secagg.masked.words import CONTENT_START
from comity_policies.terms import Terms

WEIGHT = "num-examples"
METRICS_MAX = 48
SHAPE_BYTES_MAX = 128 << 10
# What holds where the terms do not speak (secure-aggregation.md section 3 has the default of `range`).
CLIP_NORM_DEFAULT = 10.0
WEIGHT_MAX_DEFAULT = 1_000

_POINT_BITS = 40
_OFFSET = 1 << (NUMBER_BITS - 1)
_TOP = (1 << NUMBER_BITS) - 1
# The places, and the fingerprint of the names.
_NUMBERS = METRICS_MAX + 1

Arrays = dict[str, NDArray[Any]]
# The number formats of the profiles: `encoder`, `masked_encoder`.
Encode = Callable[..., Encoded] | Callable[..., EncodedWords]
Decode = Callable[..., Decoded]


@dataclass(frozen=True, slots=True)
class Plan:
    """What terms and order fix for one sum, the same for every party. `integers`: how many, if it is of integers."""

    arrays: bool
    bounds: Bounds
    weight_max: int
    layout: Layout
    integers: int | None = None

    @property
    def chunks(self) -> int:
        """Number of chunks: of `agg-q16`, for integers of `agg-i32`. Raises `TOO_LARGE`."""
        return self.layout.chunks if self.integers is None else AGG_I32.chunks_for(self.integers)

    @property
    def words(self) -> int:
        """Number of words under `masked`. Raises `TOO_LARGE`."""
        return words_for(self.layout) if self.integers is None else CONTENT_START + self.integers


@dataclass(frozen=True, slots=True)
class Shape:
    """Names of a reply without any value: array records, and numbers as (record, key, length or None)."""

    arrays: tuple[str, ...]
    metrics: tuple[tuple[str, str, int | None], ...]

    def to_bytes(self) -> bytes:
        """Return the canonical form. Raises `REPLY_SHAPE` if the names are too long."""
        data = canonical.canonical({"arrays": list(self.arrays), "metrics": [list(each) for each in self.metrics]})
        if len(data) > SHAPE_BYTES_MAX:
            raise ComityError(ErrorCode.REPLY_SHAPE, "the names of records and metrics are too long")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Shape:
        """Read a stranger's shape. Raises `REPLY_SHAPE`."""
        try:
            value = canonical.parse(data, max_bytes=SHAPE_BYTES_MAX)
            arrays = tuple(_text(each) for each in value["arrays"])
            metrics = tuple((_text(a), _text(b), None if n is None else int(n)) for a, b, n in value["metrics"])
        except (ComityError, ValueError, TypeError, KeyError) as error:
            raise ComityError(ErrorCode.REPLY_SHAPE, "not the shape of a reply") from error
        found = cls(arrays, metrics)
        ordered = metrics == tuple(sorted(set(metrics), key=_key))
        if found.places > METRICS_MAX or not ordered:
            raise ComityError(ErrorCode.REPLY_SHAPE, "not the shape of a reply")
        return found

    @property
    def places(self) -> int:
        """How many places its numbers take."""
        return sum(1 if length is None else max(0, length) for _, _, length in self.metrics)

    @property
    def fingerprint(self) -> int:
        """64 bits of the SHA-256 of the names."""
        return int.from_bytes(hashlib.sha256(b"comity/shape/v1\x00" + self.to_bytes()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Formed:
    """A reply, ready to be masked: `clipped` counts what was clamped, `names` are those of the numbers that leave."""

    encoded: Encoded | EncodedWords
    shape: Shape
    clipped: int
    names: tuple[str, ...]


def plan(asked: Content, word: str, terms: Terms) -> Plan:
    """Return what order and terms fix. Raises `REPLY_SHAPE` (an array is not of floating point), `TOO_LARGE`."""
    x = _asked_arrays(asked, word)
    layout = Layout.of(x, _NUMBERS)
    clip = float(terms.get("clip_norm", CLIP_NORM_DEFAULT))
    bounds = Bounds.default(clip, layout.values)
    if "range" in terms:
        bounds = Bounds(clip, float(terms["range"]))
    return Plan(word == "train", bounds, int(terms.get("weight_max", WEIGHT_MAX_DEFAULT)), layout)


def form(
    fixed: Plan,
    asked: Content,
    reply: Content,
    word: str,
    cohort: int,
    rounding_key: bytes,
    encode: Encode = encoder.encode,
) -> Formed:
    """Encode one reply. Raises `APP_FAILED`, `REPLY_SHAPE` (records, names, shapes, dtypes, not finite, too many)."""
    if reply.error is not None:
        raise ComityError(ErrorCode.APP_FAILED, "the app answered with an error; its text stays here")
    x = _asked_arrays(asked, word)
    shape = _shape_of(reply, x, asked)
    y = _arrays(reply) if fixed.arrays else {}
    weight, capped = _weight(reply, cohort, fixed.weight_max)
    points, clamped = _points(reply, shape)
    clip, reach = fixed.bounds.clip_norm, fixed.bounds.value_range
    encoded = encode(x, y, weight, clip, reach, rounding_key, numbers=[*points, shape.fingerprint])
    names = tuple(sorted({key for record in reply.metrics.values() for key in record}))
    return Formed(encoded, shape, encoded.clipped + clamped + int(encoded.norm_clipped) + int(capped), names)


def decode(
    sums: NDArray[Any], contributors: int, asked: Content, word: str, fixed: Plan, decoded: Decode = encoder.decode
) -> Decoded:
    """Decode decrypted slots against the order's arrays. Raises `SUM_MISMATCH`."""
    x = _asked_arrays(asked, word)
    return decoded(sums, contributors, x, fixed.bounds.value_range, numbers=_NUMBERS)


def mean_error(value_range: float, levels: int, weights: Sequence[float], spread: float) -> float:
    """Return how far a coordinate of the opened mean may be from the weighted mean that `plain` gives.

    Each contribution is rounded by less than one level, each weight by at most 2^-17 before it multiplies. Clipping and
    what the arrays' own dtype rounds, come on top.

    Args:
        value_range: the term `range`, or its default. levels: of the number format, to one side.
        weights: of the contributors, above 0, at most 1.
        spread: the largest distance of one contribution's coordinate from the mean.
    """
    rounded = len(weights) * 2.0**-17
    return (len(weights) * value_range / levels + rounded * spread) / (sum(weights) - rounded)


def unform(decoded: Decoded, shape: Shape, asked: Content, word: str, contributors: int, weight_max: int) -> Content:
    """Return the one reply that stands for all: the weighted means under the names of `shape`, and an equal weight.

    Raises:
        ComityError: `REPLY_SHAPE` if the parties' replies had different names.
    """
    total = round(decoded.weight * replies.WEIGHT_ONE)
    *summed, names = decoded.weighed
    if names != shape.fingerprint * total:
        raise ComityError(ErrorCode.REPLY_SHAPE, "the parties' replies have different records or metrics")
    records = _array_records(decoded, shape, asked, word)
    examples = max(1, round(decoded.weight * weight_max / contributors))
    rows: dict[str, list[tuple[str, Any]]] = {}
    place = 0
    for record, key, length in shape.metrics:
        items = rows.setdefault(record, [])
        if key == WEIGHT and length is None:
            items.append((key, examples))
            place += 1
            continue
        means = [_mean(summed[place + index], total) for index in range(1 if length is None else length)]
        items.append((key, means[0] if length is None else means))
        place += len(means)
    records += [Record(name, "metric", tuple(items)) for name, items in rows.items()]
    return Content(tuple(records))


def _asked_arrays(asked: Content, word: str) -> Arrays:
    return _arrays(asked) if word == "train" else {}


def _arrays(content: Content) -> Arrays:
    """Return arrays by key, or by record and key where there are several records. Raises `REPLY_SHAPE`."""
    records = [record for record in content.records if record.kind == "array"]
    one = len(records) == 1
    return {
        entry.key if one else f"{record.name}\x00{entry.key}": entry.numpy()
        for record in records
        for entry in record.items
    }


def _shape_of(reply: Content, x: Arrays, asked: Content) -> Shape:
    arrays = tuple(record.name for record in reply.records if record.kind == "array")
    wanted = tuple(record.name for record in asked.records if record.kind == "array")
    if not x and any(record.items for record in reply.records if record.kind == "array"):
        raise ComityError(ErrorCode.REPLY_SHAPE, "under encryption only an order to train is answered by arrays")
    if x and len(arrays) != 1 and sorted(arrays) != sorted(wanted):
        raise ComityError(ErrorCode.REPLY_SHAPE, "the reply's array records are not the order's")
    metrics = [
        (name, key, len(value) if isinstance(value, list) else None)
        for name, record in reply.metrics.items()
        for key, value in record.items()
    ]
    shape = Shape(arrays if x else (), tuple(sorted(metrics, key=_key)))
    if shape.places > METRICS_MAX:
        raise ComityError(ErrorCode.REPLY_SHAPE, "too many metrics for one secure sum", limit=METRICS_MAX)
    return shape


def _key(each: tuple[str, str, int | None]) -> tuple[str, str]:
    return each[0], each[1]


def _weight(reply: Content, cohort: int, weight_max: int) -> tuple[int, bool]:
    """Return w x 2^16 and whether the app's number was more than may count."""
    found = [record[WEIGHT] for record in reply.metrics.values() if WEIGHT in record]
    if not found:
        return replies.WEIGHT_ONE, False
    examples = found[0]
    if not isinstance(examples, int | float) or not math.isfinite(examples):
        raise ComityError(ErrorCode.REPLY_SHAPE, f"{WEIGHT} is not a number")
    # A node that granted no dataset has measured no cohort; then the app's word stands, up to the largest weight.
    known = cohort if cohort > 0 else weight_max
    return replies.weight_of(int(examples), known, weight_max), examples > min(known, weight_max)


def _numbers(reply: Content, shape: Shape) -> Iterator[tuple[str, Any]]:
    for record, key, length in shape.metrics:
        value = reply.metrics[record][key]
        for each in value if length is not None and isinstance(value, list) else [value]:
            yield key, each


def _points(reply: Content, shape: Shape) -> tuple[list[int], int]:
    """Return what fills the places, and how many numbers were clamped. Raises `REPLY_SHAPE`."""
    out, clamped = [0] * METRICS_MAX, 0
    for place, (key, value) in enumerate(_numbers(reply, shape)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ComityError(ErrorCode.REPLY_SHAPE, f"metric {key[:64]!r} is not a finite number")
        # The weight has its own slot; as a metric it would be averaged by itself.
        point = 0 if key == WEIGHT else round(Fraction(value) * (1 << _POINT_BITS)) + _OFFSET
        out[place] = min(max(point, 0), _TOP)
        clamped += out[place] != point
    return out, clamped


def _mean(whole: int, total: int) -> float:
    return float((Fraction(whole, total) - _OFFSET) / (1 << _POINT_BITS))


def _array_records(decoded: Decoded, shape: Shape, asked: Content, word: str) -> list[Record]:
    if word != "train":
        return []
    wanted = [record for record in asked.records if record.kind == "array"]
    if len(wanted) == 1 and len(shape.arrays) == 1:
        entries = tuple(array_entry(entry.key, decoded.arrays[entry.key]) for entry in wanted[0].items)
        return [Record(shape.arrays[0], "array", entries)]
    named = {record.name: record for record in wanted}
    return [
        Record(
            name,
            "array",
            tuple(array_entry(entry.key, decoded.arrays[f"{name}\x00{entry.key}"]) for entry in named[name].items),
        )
        for name in shape.arrays
    ]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value
