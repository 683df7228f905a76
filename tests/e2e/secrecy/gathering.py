"""What the secrets are, and where the coordinator might hold them: its files, its memory, its messages."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from harness.consortium import ORGS, Consortium
from harness.processes import playing

from comity_agents.flower.codec import Content, Record

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hospitals" / "app"
PAD_VALUES = 80_000  # 320 KB: more than travels in a message, so that payloads are uploaded, too
_SPY = f"""

# -- only in this copy of the app, for a test: a model large enough to be uploaded, and its secrets told to the log
_initial, _train, _evaluate = initial_arrays, train, evaluate


def _tell(name, data):
    print("secret", name, data.hex(), flush=True)


def initial_arrays():
    return [*_initial(), np.random.default_rng(5).normal(size={PAD_VALUES}).astype(np.float32)]


def train(arrays, features, labels, epochs, learning_rate, l2):
    moved, loss = _train(arrays[:2], features, labels, epochs, learning_rate, l2)
    result = [*moved, (arrays[2] + np.float32(loss) * np.cos(arrays[2])).astype(np.float32)]
    for array in [*arrays, *result]:
        _tell("array", np.ascontiguousarray(array).tobytes())
    _tell("train_loss", np.float64(loss).tobytes())
    return result, loss


def evaluate(arrays, features, labels):
    loss, accuracy = _evaluate(arrays[:2], features, labels)
    _tell("loss", np.float64(loss).tobytes())
    _tell("accuracy", np.float64(accuracy).tobytes())
    return loss, accuracy
"""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r)(.)(.)p \S+ \S+ (\d+)\s*(.*)")


def spying_app(folder: Path) -> Path:
    """Write the example's app, with ears, and return its folder."""
    app = folder / "app"
    shutil.copytree(EXAMPLE, app, ignore=shutil.ignore_patterns("__pycache__"))
    task = app / "hospitals" / "task.py"
    task.write_text(task.read_text() + _SPY)
    return app


def data_secrets(files: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Yield every row of the data as CSV, and as numbers of 8 and of 4 bytes, by rows and by columns."""
    for org, path in files.items():
        with path.open(newline="") as file:
            next(file)
            yield f"CSV of {org}", file.read().encode()
        with path.open(newline="") as file:
            rows = np.array([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
        for kind in (np.float64, np.float32):
            for order in ("C", "F"):
                yield f"{np.dtype(kind).name} rows of {org}", rows.astype(kind).tobytes(order)


def run_secrets(consortium: Consortium, run: str) -> Iterator[tuple[str, bytes]]:
    """Yield every array and metric that the app of a run saw or made, at any organisation and in any round."""
    seen = set()
    for org in ORGS:
        log = consortium.home(org) / "runs" / run / "client.log"
        metrics: dict[str, float] = {}
        for line in log.read_text().splitlines():
            words = line.split()
            if len(words) != 3 or words[0] != "secret" or words[2] in seen:
                continue
            data = bytes.fromhex(words[2])
            seen.add(words[2])
            if words[1] == "array":
                yield f"array of {run}", data
            else:
                metrics[words[1]] = float(np.frombuffer(data, np.float64)[0])
                yield from _metrics(f"metrics of {org}", metrics)
    assert seen, "the app told nothing"


def _metrics(name: str, metrics: dict[str, float]) -> Iterator[tuple[str, bytes]]:
    """The metrics as the codec, JSON and memory would have them; names alone are no secret, numbers are."""
    if len(metrics) > 1:
        yield name, np.array(list(metrics.values())).tobytes()
    for key, value in metrics.items():
        yield name, f'"{key}":{value!r}'.encode()
        yield name, f'"{key}": {value!r}'.encode()
        yield name, repr(value).encode()
    content = Content((Record("metrics", "metric", tuple(metrics.items())),))
    yield name, b"".join(bytes(part) for part in content.parts())[4:]


class Gatherer:
    """Takes copies of files and memory while a run goes on, to be scanned when its secrets are known."""

    def __init__(self, consortium: Consortium, folder: Path, edge: Path) -> None:
        self._consortium = consortium
        self._folder = folder
        self._edge = edge
        self._edge_begin = edge.stat().st_size if edge.exists() else 0
        self._number = 0
        folder.mkdir()

    def take(self) -> None:
        """Copy every file of the coordinator and of Temporal, and the memory of both."""
        self._number += 1
        place = self._folder / str(self._number)
        home = self._consortium.home("coordinator")
        for path in sorted(home.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # the spool's files come and go
                if path.is_file():
                    target = place / "files" / path.relative_to(home)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
        pid = self._consortium.pid("coordinator")
        temporal = playing(pid, "temporal")
        assert temporal is not None, "Temporal does not run"
        (place / "memory").mkdir(parents=True)
        for name, number in (("coordinator", pid), ("temporal", temporal)):
            dump(number, place / "memory" / name)

    def heaps(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield (kind, name, bytes) of everything that was gathered."""
        with self._edge.open("rb") as file:
            file.seek(self._edge_begin)
            yield "edge", "messages at the edge", file.read()
        for path in sorted(self._folder.rglob("*")):
            if path.is_file():
                kind = "memory" if path.parent.name == "memory" else "files"
                yield kind, str(path.relative_to(self._folder)), path.read_bytes()


def dump(pid: int, target: Path) -> int:
    """Write the readable private memory of a process, stopped meanwhile, to `target`; returns the bytes.

    Parts that are mapped from files and were never written are the files' content and left out.
    """
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.02)
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory, target.open("wb") as file:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                found = _MAPPING.match(line)
                if found is None or found[7] in ("[vvar]", "[vsyscall]"):
                    continue
                if found[6] != "0" and found[4] != "w":
                    continue
                begin, end = int(found[1], 16), int(found[2], 16)
                _copy(memory.fileno(), begin, end, file)
            return file.tell()
    finally:
        os.kill(pid, signal.SIGCONT)


def _copy(memory: int, begin: int, end: int, file: BinaryIO) -> None:
    """Copy what of a mapping is there: pages that were never touched are zeros and take no room."""
    while begin < end:
        try:
            data = os.pread(memory, min(end - begin, 1 << 24), begin)
        except OSError:
            return
        if not data:
            return
        if data.count(0) != len(data):
            file.write(data)
        begin += len(data)
