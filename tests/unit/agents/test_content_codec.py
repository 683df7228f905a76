"""Contents as blobs, without flwr: round trips, views, replacement, and hostile headers."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents.flower.codec import ArrayEntry, Content, Record, array_entry, read_blob


def blob(content: Content) -> bytes:
    return b"".join(bytes(part) for part in content.parts())


def raw(document: object, tail: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    head = struct.pack("<I", len(text)) + text
    return head + (bytes(-len(head) % 64) + tail if tail else b"")


def one_array(dtype: str, shape: list[int], length: object, tail: bytes = b"") -> bytes:
    return raw({"v": 1, "records": [["r", "array", [["a", dtype, shape, "numpy.ndarray", length]]]]}, tail)


def example() -> Content:
    arrays = (array_entry("w", np.arange(6, dtype=np.float32).reshape(2, 3)), array_entry("b", np.zeros((), np.int64)))
    return Content(
        (
            Record("arrays", "array", arrays),
            Record("metrics", "metric", (("loss", 0.25), ("nan", math.nan), ("big", 2**63), ("list", [1, 2]))),
            Record("config", "config", (("b", b"\x00\xff"), ("bs", [b"", b"xy"]), ("t", "ä"), ("yes", True))),
        )
    )


def test_a_content_comes_back_as_it_was_with_arrays_as_views():
    data = blob(example())
    content = read_blob(data)
    assert content.shapes() == [("arrays", "w", "float32", (2, 3)), ("arrays", "b", "int64", ())]
    first = content.arrays[0]
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not first.flags.writeable
    assert not first.flags.owndata
    assert np.frombuffer(data, np.uint8).ctypes.data <= first.ctypes.data  # a view of the blob itself
    metrics = content.metrics["metrics"]
    assert math.isnan(metrics.pop("nan"))
    assert metrics == {"loss": 0.25, "big": 2**63, "list": [1, 2]}
    assert content.configs["config"] == {"b": b"\x00\xff", "bs": [b"", b"xy"], "t": "ä", "yes": True}
    assert blob(content) == data


def test_buffers_stand_at_multiples_of_64():
    arrays = tuple(array_entry(str(n), np.ones(n, np.uint8)) for n in range(1, 70, 7))
    data = blob(Content((Record("arrays", "array", arrays),)))
    base = np.frombuffer(data, np.uint8).ctypes.data
    assert {(array.ctypes.data - base) % 64 for array in read_blob(data).arrays} == {0}


def test_other_byte_orders_and_layouts_are_carried_as_little_endian_c_order():
    for array in (
        np.arange(4, dtype=">f8").reshape(2, 2),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(9)[::2],
    ):
        entry = array_entry("a", array)
        (back,) = read_blob(blob(Content((Record("r", "array", (entry,)),)))).arrays
        assert back.tolist() == array.tolist()


def test_arrays_are_replaced_in_order_and_the_rest_stays():
    content = read_blob(blob(example()))
    fresh = b"".join(bytes(part) for part in content.replace_arrays([np.ones((2, 3), np.float32), np.array(7)]))
    again = read_blob(fresh)
    assert again.arrays[0].sum() == 6
    assert int(again.arrays[1]) == 7
    assert again.configs == content.configs
    with pytest.raises(ComityError) as caught:
        content.replace_arrays([np.ones(1)])
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_metrics_are_replaced_by_name():
    content = example().with_metrics({"metrics": {"loss": 1}})
    assert content.metrics == {"metrics": {"loss": 1}}


def test_opaque_arrays_pass_but_are_not_read():
    entry = ArrayEntry("a", "torch.float8", (3,), "torch.pickle", b"anything")
    content = read_blob(blob(Content((Record("r", "array", (entry,)),))))
    assert bytes(content.entries[0].data) == b"anything"
    with pytest.raises(ComityError) as caught:
        _ = content.arrays
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_objects_and_texts_are_not_carried_as_arrays():
    for array in (np.array(["text"]), np.array([object()])):
        with pytest.raises(ComityError) as caught:
            array_entry("a", array)
        assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_an_error_comes_back():
    assert read_blob(blob(Content(error=(2, "it raised")))).error == (2, "it raised")


ROW = ["a", "float32", [2], "numpy.ndarray", 8]
HOSTILE = {
    "empty": b"",
    "short": b"\x01",
    "length beyond the end": struct.pack("<I", 100) + b"{}",
    "not JSON": raw(b"\xff"),
    "not an object": raw([]),
    "other version": raw({"v": 2, "records": []}),
    "more fields": raw({"v": 1, "records": [], "more": 1}),
    "bytes behind": raw({"v": 1, "records": []}) + b"x",
    "array beyond the end": raw({"v": 1, "records": [["r", "array", [ROW]]]}, b"1234"),
    "bytes behind the last array": raw({"v": 1, "records": [["r", "array", [ROW]]]}, b"123456789"),
    "shape times size is not the length": one_array("float32", [3], 8, b"12345678"),
    "shape that overflows": one_array("float32", [2**63, 2**63], 8, b"12345678"),
    "negative shape": one_array("float32", [-1, -2], 8, b"12345678"),
    "too many dimensions": one_array("float32", [1] * 33, 4, b"1234"),
    "dtype of objects": one_array("object", [1], 8, b"12345678"),
    "dtype that is no text": raw({"v": 1, "records": [["r", "array", [["a", ["f4"], [1], "x", 8]]]]}, b"12345678"),
    "negative length": one_array("float32", [0], -4),
    "length that is a truth value": one_array("uint8", [1], True, b"1"),
    "bool of two": one_array("bool", [1], 1, b"\x02"),
    "record twice": raw({"v": 1, "records": [["r", "metric", []], ["r", "metric", []]]}),
    "key twice": raw({"v": 1, "records": [["r", "metric", [["a", 1], ["a", 2]]]]}),
    "unknown kind": raw({"v": 1, "records": [["r", "code", []]]}),
    "text among metrics": raw({"v": 1, "records": [["r", "metric", [["a", "text"]]]]}),
    "truth value among metrics": raw({"v": 1, "records": [["r", "metric", [["a", True]]]]}),
    "bytes among metrics": raw({"v": 1, "records": [["r", "metric", [["a", {"b": 0}]]]]}),
    "list of two types": raw({"v": 1, "records": [["r", "config", [["a", [1, "x"]]]]]}),
    "list in a list": raw({"v": 1, "records": [["r", "config", [["a", [[1]]]]]]}),
    "null": raw({"v": 1, "records": [["r", "config", [["a", None]]]]}),
    "integer beyond 64 bits": raw({"v": 1, "records": [["r", "config", [["a", 2**64]]]]}),
    "unknown tag": raw({"v": 1, "records": [["r", "config", [["a", {"x": 1}]]]]}),
    "name too long": raw({"v": 1, "records": [["r" * 1001, "config", []]]}),
    "lone surrogate": raw(b'{"v":1,"records":[["\\ud800","config",[]]]}'),
    "records that are no list": raw({"v": 1, "records": 5}),
    "too many records": raw({"v": 1, "records": [[str(n), "metric", []] for n in range(1001)]}),
    "nested without end": raw(b'{"v":1,"records":' + b"[" * 50_000),
    "a number that JSON lacks": raw(b'{"v":1,"records":[["r","metric",[["a",NaN]]]]}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_blob_is_refused(name):
    with pytest.raises(ComityError) as caught:
        read_blob(HOSTILE[name])
    assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_padding_that_is_not_zero_is_refused():
    data = bytearray(blob(Content((Record("r", "array", (array_entry("a", np.ones(4)),)),))))
    length = struct.unpack_from("<I", data)[0] + 4
    assert length % 64
    data[length] = 1
    with pytest.raises(ComityError):
        read_blob(data)
