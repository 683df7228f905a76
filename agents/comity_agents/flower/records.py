"""flwr's records <-> `codec.Content`, without copying arrays. Imported only in the processes of an app.

Flower serialises arrays as `.npy` bytes. On the way out only the raw part of them is sent; on the way in an array is a
`BlobArray`: `numpy()` maps the blob privately (copy on write), so that the app gets an array that is its own and
writable, and memory is taken only for pages that it changes.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import weakref
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import NUMPY_STYPE, ArrayEntry, Content, Record, array_entry, read_blob

# Below this a copy is cheaper than a mapping, and mappings (each holds a descriptor) stay few.
_MAP_BYTES_MIN = 1 << 20


class BlobSource:
    """A received blob, mapped once for reading; its descriptor is closed when the last array of it is gone."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)
        self.view = memory.map_blob(fd, size_bytes)
        self._address = _address(self.view)

    def offset_of(self, data: memoryview) -> int:
        """Where in the blob a view of it begins, in bytes."""
        return _address(data) - self._address


class BlobArray(Array):  # type: ignore[misc]  # flwr is not typed for us
    """A Flower array whose bytes stay in the blob until somebody asks for them."""

    def __init__(self, entry: ArrayEntry, source: BlobSource) -> None:
        self.__dict__.update(dtype=entry.dtype, shape=entry.shape, stype=entry.stype)
        self.__dict__.update(_entry=entry, _source=source)

    @property
    def entry(self) -> ArrayEntry | None:
        """The blob's entry, or None once the app has set `data` itself."""
        found: ArrayEntry | None = self.__dict__["_entry"]
        return found

    @property
    def data(self) -> bytes:
        """The `.npy` form, made on each access: apps that read arrays the usual way never need it."""
        if self.entry is None:
            own: bytes = self.__dict__["_data"]
            return own
        buffer = io.BytesIO()
        np.save(buffer, self.entry.numpy(), allow_pickle=False)
        return buffer.getvalue()

    @data.setter
    def data(self, value: bytes) -> None:
        self.__dict__.update(_data=value, _entry=None, _source=None)

    def numpy(self) -> NDArray[Any]:
        """Return a writable array of its own."""
        if self.entry is None:
            plain: NDArray[Any] = super().numpy()
            return plain
        array = self.entry.numpy()
        if array.nbytes < _MAP_BYTES_MIN:
            return array.copy()
        try:
            return _private(self.__dict__["_source"], self.entry, array)
        except OSError:  # no descriptor or address space left for one more mapping
            return array.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return (self.dtype, self.shape, self.stype, self.data) == (other.dtype, other.shape, other.stype, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def content_of(records: Any) -> Content:
    """Return the content of a `RecordDict`; arrays are views of what it holds.

    Raises:
        ComityError: `REPLY_SHAPE` if a record, array or value has no form in a content.
    """
    kinds = ((ArrayRecord, "array"), (MetricRecord, "metric"), (ConfigRecord, "config"))
    made = []
    for name, record in records.items():
        kind = next((kind for cls, kind in kinds if isinstance(record, cls)), None)
        if kind == "array":
            made.append(Record(name, kind, tuple(_entry(key, array) for key, array in record.items())))
        elif kind is not None:
            made.append(Record(name, kind, tuple(record.items())))
        else:
            raise ComityError(ErrorCode.REPLY_SHAPE, "a record is neither array, metric nor config")
    return Content(tuple(made))


def records_of(fd: int, size_bytes: int) -> Any:
    """Return the `RecordDict` of a received blob, whose descriptor is taken over. Raises `REPLY_SHAPE`."""
    source = BlobSource(fd, size_bytes)
    content = read_blob(source.view)
    if content.error is not None:
        raise ComityError(ErrorCode.REPLY_SHAPE, "an error where a content belongs")
    records = RecordDict()
    for record in content.records:
        if record.kind == "array":
            arrays = ArrayRecord()
            for entry in record.items:
                arrays[entry.key] = _array(entry, source)
            records[record.name] = arrays
        else:
            records[record.name] = (MetricRecord if record.kind == "metric" else ConfigRecord)(dict(record.items))
    return records


def same_content(one: Any, other: Any) -> bool:
    """Whether two `RecordDict` are the same to a receiver: the very same array objects, equal values."""
    if one is other:
        return True
    if list(one.keys()) != list(other.keys()):
        return False
    return all(_same_record(one[name], other[name]) for name in one)


def _same_record(one: Any, other: Any) -> bool:
    if type(one) is not type(other) or list(one.keys()) != list(other.keys()):
        return False
    if isinstance(one, ArrayRecord):
        return all(one[key] is other[key] for key in one)
    return all(type(one[key]) is type(other[key]) and one[key] == other[key] for key in one)


def _array(entry: ArrayEntry, source: BlobSource) -> Any:
    if entry.stype == NUMPY_STYPE:
        return BlobArray(entry, source)
    return Array(dtype=entry.dtype, shape=entry.shape, stype=entry.stype, data=bytes(entry.data))


def _entry(key: str, array: Any) -> ArrayEntry:
    if isinstance(array, BlobArray) and array.entry is not None:
        return ArrayEntry(key, array.dtype, array.shape, array.stype, array.entry.data)
    if array.stype != NUMPY_STYPE:
        return ArrayEntry(key, array.dtype, tuple(array.shape), array.stype, array.data)
    try:
        entry = _npy_entry(key, array)
    except (ValueError, OSError, EOFError) as error:
        raise ComityError(ErrorCode.REPLY_SHAPE, "an array is not what it says") from error
    if entry.shape != tuple(array.shape):
        raise ComityError(ErrorCode.REPLY_SHAPE, "an array has another shape than it says")
    return entry


def _npy_entry(key: str, array: Any) -> ArrayEntry:
    """Take the raw part out of `.npy` bytes as a view; other orders and byte orders are converted by a copy."""
    stream = io.BytesIO(array.data)
    if np.lib.format.read_magic(stream) == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        raw = memoryview(array.data)[stream.tell() :]
        if not fortran and dtype.isnative and not dtype.hasobject and math.prod(shape) * dtype.itemsize == len(raw):
            return array_entry(key, np.frombuffer(raw, dtype).reshape(shape))
    stream.seek(0)
    return array_entry(key, np.load(stream, allow_pickle=False))


def _private(source: BlobSource, entry: ArrayEntry, array: NDArray[Any]) -> NDArray[Any]:
    offset = source.offset_of(memoryview(entry.data))
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    region = mmap.mmap(
        source.fd,
        offset - start + array.nbytes,
        flags=mmap.MAP_PRIVATE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
        offset=start,
    )
    own: NDArray[Any] = np.frombuffer(region, array.dtype, array.size, offset - start).reshape(array.shape)
    return own


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data) if len(view) else 0
