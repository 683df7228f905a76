"""What we need of the installed flwr beyond its public API, and what we replace in it: a version that differs shows."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower import capture, compat
from comity_agents.flower.capture import Recorder
from comity_agents.flower.records import BlobArray, content_of, records_of, same_content

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array(3.5),
    np.zeros((0, 4)),
    np.arange(5, dtype=">i4"),
    np.arange(10)[::2],
    np.array([True, False]),
    np.array([1 + 2j]),
]


def through(records: RecordDict) -> RecordDict:
    return records_of(*memory.write_parts(content_of(records).parts()))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_identity_and_message_id_are_where_we_set_them():
    compat.set_identity(7, 9)
    message = Message(RecordDict(), dst_node_id=3, message_type="train")
    compat.set_message_id(message, "id")
    reply = Message(RecordDict(), reply_to=message)
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.message_id) == (7, 9, "id")
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == ("id", 9)


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_our_faster_array_has_the_same_bytes(array):
    assert compat.npy_bytes(array) == Array(array).data


@pytest.mark.parametrize("array", ARRAYS, ids=str)
def test_arrays_come_back_equal_writable_and_their_own(array):
    sent = RecordDict({"a": ArrayRecord([array])})
    (got,) = through(sent)["a"].to_numpy_ndarrays()
    assert got.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(got, array)
    assert got.flags.writeable


def test_a_large_array_is_mapped_and_changing_it_changes_nothing_else():
    sent = RecordDict({"a": ArrayRecord([np.zeros(1 << 19, np.float32)])})
    got = through(sent)["a"]["0"]
    first, second = got.numpy(), got.numpy()
    assert not first.flags.owndata
    first += 1
    assert second.sum() == 0
    assert got.numpy().sum() == 0
    assert got.data == sent["a"]["0"].data
    assert np.array_equal(copy.deepcopy(got).numpy(), second)
    assert through(RecordDict({"a": ArrayRecord({"x": got})}))["a"]["x"].numpy().sum() == 0


def test_an_app_may_replace_the_bytes_of_an_array():
    got = through(RecordDict({"a": ArrayRecord([np.zeros(3)])}))["a"]["0"]
    assert isinstance(got, BlobArray)
    got.data = Array(np.ones(3)).data
    assert got.numpy().sum() == 3
    assert content_of(RecordDict({"a": ArrayRecord({"0": got})})).arrays[0].sum() == 3


def test_all_records_survive_and_no_descriptor_is_left():
    sent = RecordDict(
        {
            "a": ArrayRecord([np.ones(3)]),
            "m": MetricRecord({"loss": 0.5, "n": 3, "list": [1.0, float("inf")]}),
            "c": ConfigRecord({"text": "ä", "raw": b"\x00", "flags": [True], "raws": [b"1", b"2"]}),
        }
    )
    before = open_descriptors()
    got = through(sent)
    assert dict(got["m"]) == dict(sent["m"])
    assert dict(got["c"]) == dict(sent["c"])
    assert list(got) == list(sent)
    del got
    assert open_descriptors() == before


def test_an_array_that_lies_about_itself_is_refused():
    good = Array(np.ones(4))
    for array in (
        Array("float64", (5,), "numpy.ndarray", good.data),
        Array("float64", (4,), "numpy.ndarray", good.data[:-1]),
        Array("float64", (4,), "numpy.ndarray", b"nothing"),
    ):
        with pytest.raises(ComityError) as caught:
            content_of(RecordDict({"a": ArrayRecord({"0": array})}))
        assert caught.value.code is ErrorCode.REPLY_SHAPE


def test_contents_are_the_same_only_with_the_same_arrays_and_values():
    arrays = ArrayRecord([np.ones(2)])
    one = RecordDict({"a": arrays, "c": ConfigRecord({"r": 1})})
    assert same_content(one, RecordDict({"a": arrays, "c": ConfigRecord({"r": 1})}))
    assert not same_content(one, RecordDict({"a": arrays, "c": ConfigRecord({"r": 2})}))
    assert not same_content(one, RecordDict({"a": arrays, "c": ConfigRecord({"r": True})}))
    assert not same_content(one, RecordDict({"a": ArrayRecord([np.ones(2)]), "c": ConfigRecord({"r": 1})}))
    assert not same_content(one, RecordDict({"a": arrays}))


def test_the_nodes_side_imports_no_flwr():
    code = "import sys, comity_agents.flower.workers, comity_agents.flower.codec, comity_agents.flower.bundle; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('flwr' in sys.modules)"], capture_output=True, check=True
    )
    assert done.stdout.strip() == b"False"


def test_every_strategy_that_starts_its_own_way_is_recorded(monkeypatch):
    class Result:
        arrays = ArrayRecord([np.ones(2)])

        def __init__(self):
            self.evaluate_metrics_serverapp = {1: MetricRecord({"accuracy": 0.5, "bad": float("nan")})}

    monkeypatch.setattr(FedAvg.__mro__[1], "start", FedAvg.start)
    monkeypatch.setattr(FedAvg.__mro__[1], "__init_subclass__", FedAvg.__init_subclass__, raising=False)
    told = []
    recorder = Recorder(told.append)
    capture.install(recorder)

    class Own(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3):
            self.aggregate_evaluate(1, [])
            return Result()

    Own().start(None, None)
    Own().start(None, None, num_rounds=1)
    assert recorder.source == "strategy"
    assert recorder.arrays is Result.arrays
    assert [(row["phase"], row["round"]) for row in recorder.rows()] == [(1, 1), (2, 1)]
    assert recorder.rows()[0]["server"] == {"accuracy": 0.5, "bad": None}
    assert [row["stage"] for row in told] == ["server", "server"]
