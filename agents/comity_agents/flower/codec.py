"""The content of a message as one blob: u32 header length | JSON header | buffers, each at a multiple of 64 bytes.

Rules:
1. This module imports neither flwr nor the app: the node reads, clips, masks and replaces contents with it.
2. Bytes are hostile: counts, names, dtypes, shapes and lengths are checked before any array is made of them; the
   lengths must fill the blob exactly, so that no byte of it goes unexplained.
3. The same content always gives the same bytes (records in their own order, JSON without spaces, padding of zeros).
4. Arrays are views of the blob: nothing is copied; a view lives as long as somebody holds it.

Header: `{"v":1,"records":[RECORD,…]}` or `{"v":1,"error":[code,reason]}`, where RECORD is
`[name,"array",[[key,dtype,shape,stype,length],…]]` or `[name,"metric"|"config",[[key,value],…]]`. Arrays of stype
`numpy.ndarray` are raw, little-endian, C order; those of any other stype are opaque bytes. A `bytes` value is
`{"b":length}`, its bytes a buffer; a float that JSON lacks is `{"f":"nan"}`.
Buffers stand in the order in which the header names them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_agents.memory import Buffer, write_parts

ALIGNMENT_BYTES = 64
HEADER_BYTES_MAX = 16 << 20
RECORDS_MAX = 1_000
ITEMS_MAX = 100_000
VALUES_MAX = 1_000_000
NAME_CHARS_MAX = 1_000
DIMENSIONS_MAX = 32
NUMPY_STYPE = "numpy.ndarray"
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1

_LENGTH = struct.Struct("<I")
_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

Scalar = bool | int | float | str | bytes
Value = Scalar | list[Any]

# The name that PLAN gives to the writer of blobs.
write_blob = write_parts


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """One named array of a record. `data` is raw (stype `numpy.ndarray`) or opaque bytes; mostly a view of a blob."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: Buffer

    def numpy(self) -> NDArray[Any]:
        """Return the array as a read-only view, without a copy. Raises `REPLY_SHAPE` if the bytes are opaque."""
        if self.stype != NUMPY_STYPE:
            raise ComityError(ErrorCode.REPLY_SHAPE, "an array is serialised in a way that only the app can read")
        array = np.frombuffer(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)
        array.flags.writeable = False
        return array


@dataclass(frozen=True, slots=True)
class Record:
    """One record: `kind` is array, metric or config; `items` are entries (array) or (key, value) pairs."""

    name: str
    kind: str
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a message holds, without flwr: records in order, or an error as (code, reason)."""

    records: tuple[Record, ...] = ()
    error: tuple[int, str] | None = None

    @property
    def entries(self) -> list[ArrayEntry]:
        """All arrays of all records, in order."""
        return [entry for record in self.records if record.kind == "array" for entry in record.items]

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All arrays as read-only views, in order. Raises `REPLY_SHAPE` if one is opaque."""
        return [entry.numpy() for entry in self.entries]

    @property
    def metrics(self) -> dict[str, dict[str, Value]]:
        """Metric records by name."""
        return {record.name: dict(record.items) for record in self.records if record.kind == "metric"}

    @property
    def configs(self) -> dict[str, dict[str, Value]]:
        """Config records by name."""
        return {record.name: dict(record.items) for record in self.records if record.kind == "config"}

    def shapes(self) -> list[tuple[str, str, str, tuple[int, ...]]]:
        """(record, key, dtype, shape) of every array, in order: what a reply is compared with its order by."""
        return [
            (record.name, entry.key, entry.dtype, entry.shape)
            for record in self.records
            if record.kind == "array"
            for entry in record.items
        ]

    def replace_arrays(self, arrays: Sequence[NDArray[Any]]) -> list[Buffer]:
        """Return the parts of this content with its arrays replaced, in order, by `arrays` (own dtype and shape).

        Raises:
            ComityError: `REPLY_SHAPE` if the number of arrays differs or one has a dtype outside the list.
        """
        return self.with_arrays(arrays).parts()

    def with_arrays(self, arrays: Sequence[NDArray[Any]]) -> Content:
        """As `replace_arrays`, as a content."""
        if len(arrays) != len(self.entries):
            raise ComityError(ErrorCode.REPLY_SHAPE, "other number of arrays", has=len(arrays), needs=len(self.entries))
        fresh = iter(arrays)
        records = [
            replace(record, items=tuple(array_entry(entry.key, next(fresh)) for entry in record.items))
            if record.kind == "array"
            else record
            for record in self.records
        ]
        return Content(tuple(records), self.error)

    def with_metrics(self, metrics: dict[str, dict[str, Value]]) -> Content:
        """Return this content with the metric records named in `metrics` replaced; those not named stay."""
        records = [
            replace(record, items=tuple(metrics[record.name].items()))
            if record.kind == "metric" and record.name in metrics
            else record
            for record in self.records
        ]
        return Content(tuple(records), self.error)

    def parts(self) -> list[Buffer]:
        """Return the blob's parts, to be written or sealed one behind the other; array data is not copied.

        Raises:
            ComityError: `TOO_LARGE` if the header passes `HEADER_BYTES_MAX`; `MALFORMED` for a value without a form.
        """
        buffers: list[Buffer] = []
        document: dict[str, Any] = {"v": 1}
        if self.error is not None:
            document["error"] = [self.error[0], self.error[1]]
        else:
            document["records"] = [_record_json(record, buffers) for record in self.records]
        text = json.dumps(document, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > HEADER_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "content header", size_bytes=len(text), limit_bytes=HEADER_BYTES_MAX)
        parts: list[Buffer] = [_LENGTH.pack(len(text)) + text]
        position = _LENGTH.size + len(text)
        for buffer in buffers:
            parts += [bytes(-position % ALIGNMENT_BYTES), buffer]
            position += -position % ALIGNMENT_BYTES + memoryview(buffer).nbytes
        return parts


def array_entry(key: str, array: NDArray[Any]) -> ArrayEntry:
    """Return the entry of a numpy array; copies only if it is not little-endian in C order. Raises `REPLY_SHAPE`."""
    name = array.dtype.newbyteorder("=").name
    if name not in _DTYPES:
        raise ComityError(ErrorCode.REPLY_SHAPE, "an array has a dtype that is not carried", dtype=name[:40])
    plain = np.ascontiguousarray(array, dtype=np.dtype(name).newbyteorder("<"))
    data = memoryview(plain.reshape(-1).view(np.uint8)) if plain.size else memoryview(b"")
    return ArrayEntry(key, name, tuple(int(size) for size in array.shape), NUMPY_STYPE, data)


def read_blob(view: Buffer) -> Content:
    """Read a blob from an untrusted sender; arrays are views of `view`.

    Raises:
        ComityError: `REPLY_SHAPE` if the bytes are not exactly one content.
    """
    whole = memoryview(view).toreadonly().cast("B")
    try:
        return _read(whole)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, struct.error) as error:
        raise ComityError(ErrorCode.REPLY_SHAPE, "the content is not in the agreed form") from error


class _Cursor:
    """Walks over the buffers of a blob in the order in which the header names them."""

    def __init__(self, whole: memoryview, position: int) -> None:
        self._whole = whole
        self._position = position
        self.values_left = VALUES_MAX

    def take(self, length: Any) -> memoryview:
        if type(length) is not int or length < 0:
            raise ValueError("length")
        start = self._position + -self._position % ALIGNMENT_BYTES
        if start + length > len(self._whole) or any(self._whole[self._position : start]):
            raise ValueError("buffer beyond the blob, or padding that is not zero")
        self._position = start + length
        return self._whole[start : start + length]

    def at_end(self) -> bool:
        return self._position == len(self._whole)

    def count(self, values: int) -> None:
        self.values_left -= values
        if self.values_left < 0:
            raise ValueError("too many values")


def _read(whole: memoryview) -> Content:
    (length,) = _LENGTH.unpack_from(whole)
    if length > min(HEADER_BYTES_MAX, len(whole) - _LENGTH.size):
        raise ValueError("header length")
    header = bytes(whole[_LENGTH.size : _LENGTH.size + length])
    try:
        canonical.check_nesting(header)
    except ComityError as error:
        raise ValueError("nesting") from error
    document = json.loads(str(header, "utf-8"), parse_constant=_refuse)
    cursor = _Cursor(whole, _LENGTH.size + length)
    if document.pop("v") != 1 or len(document) != 1:
        raise ValueError("version or fields")
    if "error" in document:
        code, reason = document["error"]
        content = Content(error=(_integer(code), _name(reason, 100 * NAME_CHARS_MAX)))
    else:
        records = document["records"]
        if len(records) > RECORDS_MAX:
            raise ValueError("records")
        content = Content(tuple(_record(*record, cursor=cursor) for record in records))
        _distinct([record.name for record in content.records])
    if not cursor.at_end():
        raise ValueError("bytes behind the last buffer")
    return content


def _record(name: Any, kind: Any, items: Any, *, cursor: _Cursor) -> Record:
    if not isinstance(items, list) or len(items) > ITEMS_MAX:
        raise ValueError("items")
    cursor.count(len(items))
    if kind == "array":
        entries = tuple(_entry(*item, cursor=cursor) for item in items)
        _distinct([entry.key for entry in entries])
        return Record(_name(name), "array", entries)
    if kind not in {"metric", "config"}:
        raise ValueError("kind")
    pairs = tuple((_name(key), _value(value, kind, cursor)) for key, value in items)
    _distinct([key for key, _ in pairs])
    return Record(_name(name), kind, pairs)


def _entry(key: Any, dtype: Any, shape: Any, stype: Any, length: Any, *, cursor: _Cursor) -> ArrayEntry:
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise ValueError("shape")
    sizes = tuple(_integer(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError("shape")
    data = cursor.take(length)
    if stype == NUMPY_STYPE:
        if dtype not in _DTYPES or math.prod(sizes) * np.dtype(dtype).itemsize != len(data):
            raise ValueError("dtype, or length that is not shape times item size")
        if dtype == "bool" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
            raise ValueError("bool that is neither 0 nor 1")
    return ArrayEntry(_name(key), _name(dtype), sizes, _name(stype), data)


def _value(value: Any, kind: str, cursor: _Cursor) -> Value:
    if not isinstance(value, list):
        return _scalar(value, kind, cursor)
    cursor.count(len(value))
    scalars = [_scalar(item, kind, cursor) for item in value]
    if len({type(item) for item in scalars}) > 1:
        raise ValueError("a list of several types")
    return scalars


def _scalar(value: Any, kind: str, cursor: _Cursor) -> Scalar:
    if isinstance(value, dict):
        ((tag, inner),) = value.items()
        if tag == "f":
            return _NOT_FINITE[inner]
        if tag == "b" and kind == "config":
            return bytes(cursor.take(inner))
        raise ValueError("tag")
    if isinstance(value, float):
        return value
    if isinstance(value, bool | str):
        if kind != "config":
            raise ValueError("a metric is a number")
        return _name(value, len(value)) if isinstance(value, str) else value
    return _integer(value)


def _integer(value: Any) -> int:
    if type(value) is not int or not INTEGER_MIN <= value <= INTEGER_MAX:
        raise ValueError("integer")
    return value


def _name(value: Any, chars_max: int = NAME_CHARS_MAX) -> str:
    if not isinstance(value, str) or len(value) > chars_max:
        raise ValueError("name")
    value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    return value


def _distinct(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("a name twice")


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _record_json(record: Record, buffers: list[Buffer]) -> list[Any]:
    if record.kind == "array":
        rows = []
        for entry in record.items:
            buffers.append(entry.data)
            rows.append([entry.key, entry.dtype, list(entry.shape), entry.stype, memoryview(entry.data).nbytes])
        return [record.name, record.kind, rows]
    return [record.name, record.kind, [[key, _value_json(value, buffers)] for key, value in record.items]]


def _value_json(value: Any, buffers: list[Buffer]) -> Any:
    if isinstance(value, list):
        return [_value_json(item, buffers) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        buffers.append(value)
        return {"b": memoryview(value).nbytes}
    if isinstance(value, float) and not math.isfinite(value):
        return {"f": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, bool | str | float):
        # numpy scalars are subclasses of float; JSON wants the plain one.
        return float(value) if isinstance(value, float) else value
    if isinstance(value, int) and INTEGER_MIN <= value <= INTEGER_MAX:
        return int(value)
    raise ComityError(ErrorCode.REPLY_SHAPE, "a value has no form in a content")
