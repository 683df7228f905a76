"""Rounds' sums that were opened here stay as files of their owner alone, the newest of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content, Record, array_entry
from comity_node.training import seen_sums
from comity_node.training.blobs import Blob
from comity_node.training.ports import SeenSum
from comity_node.training.seen_sums import SeenSums


class Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def tell(self, run: str, kind: str, **body: Any) -> None:
        self.told.append((run, kind))


def seen(seq: int, word: str = "train") -> SeenSum:
    order = SimpleNamespace(run="run-1", seq=seq, round=seq + 1, message_type=word, lead="org-a")
    return SeenSum(cast(Any, order), "0" * 64, "1" * 64, ("org-a", "org-b"), ("org-a", "org-b", "org-c"), "2" * 64)


def mean(value: float) -> Blob:
    entry = array_entry("w", np.full(3, value, np.float32))
    return Blob(*memory.write_parts(Content((Record("arrays", "array", (entry,)),)).parts()))


async def test_the_newest_sums_of_a_run_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_sums, "KEPT_MAX", 3)
    events, settings = Events(), SimpleNamespace(results_folder=tmp_path)
    node = SimpleNamespace(settings=settings, clock=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    sums = SeenSums(cast(Any, node), cast(Any, None), cast(Any, events))
    for seq in range(5):
        await sums.keep(seen(seq), mean(seq))
    assert [card["seq"] for card in await sums.list("run-1")] == [2, 3, 4]
    found = await sums.find("run-1", 5, "train")
    with np.load(found.folder / "model.npz") as arrays:
        assert arrays[arrays.files[0]].tolist() == [4.0, 4.0, 4.0]
    assert {path.stat().st_mode & 0o777 for path in found.folder.iterdir()} == {0o600}
    assert events.told == [("run-1", "sum")] * 5
    for round_number, word in ((1, "train"), (5, "evaluate")):
        with pytest.raises(ComityError) as caught:
            await sums.find("run-1", round_number, word)
        assert caught.value.code is ErrorCode.NOT_FOUND
    assert await sums.list("run-2") == []
    with pytest.raises(ComityError):
        await sums.list("../run-1")
