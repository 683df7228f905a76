"""The example app, unmodified, from end to end: ServerApp and three workers in sandboxes, wired to each other."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from comity_agents import memory
from comity_agents.flower.bundle import build_app, unpack
from comity_agents.flower.codec import read_blob
from comity_agents.flower.workers import (
    Ask,
    ClientWorker,
    Finished,
    HostSettings,
    Progress,
    ServerAppProcess,
    node_number,
)
from comity_agents.sandbox import best_isolation

APP = Path(__file__).parents[3] / "examples" / "hospitals" / "app"
HOSPITALS = ("north", "south", "west")


@pytest.fixture
def hospitals(tmp_path):
    """Three CSV files of one data set: uneven, and not identically distributed."""
    data = load_breast_cancer()
    noise = np.random.default_rng(3).normal(0, 3, len(data.target))
    order = np.argsort(data.data[:, 0] + noise)
    paths = {}
    for name, rows in zip(HOSPITALS, (order[:260], order[260:430], order[430:]), strict=True):
        paths[name] = tmp_path / f"{name}.csv"
        with paths[name].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*(feature.replace(" ", "_") for feature in data.feature_names), "diagnosis"])
            writer.writerows([*data.data[row], data.target[row]] for row in rows)
    return paths


class Rig:
    """The wiring that a node does, without the node: asks go to the workers, replies back."""

    def __init__(self, folder: Path, hospitals: dict[str, Path], run: str = "run-7") -> None:
        bundle = build_app(APP)
        unpack(bundle.data, folder / "app")
        self._folder, self._run = folder, run
        self.nodes = {node_number("agreement", name): name for name in hospitals}
        self.workers = {
            node: ClientWorker(
                self._settings(name, (hospitals[name],)),
                node_id=node,
                node_config={"dataset.patients": str(hospitals[name])},
            )
            for node, name in self.nodes.items()
        }
        self.server = ServerAppProcess(self._settings("server"), node_ids=tuple(self.nodes), results_min=3)
        self.asked: list[tuple[int, tuple[int, ...], str, str]] = []
        self.progress: list[Progress] = []
        self.replies: dict[tuple[int, int], bytes] = {}

    def _settings(self, name: str, readonly: tuple[Path, ...] = ()) -> HostSettings:
        scratch = self._folder / f"scratch-{name}"
        scratch.mkdir(exist_ok=True)
        log = self._folder / f"{name}.log"
        return HostSettings(self._run, self._folder / "app", scratch, log, best_isolation(), readonly=readonly)

    async def run(self, kill_before: int | None = None) -> tuple[Finished, bytes]:
        """Run to the end; kills one worker before question `kill_before`. Returns the end and the model's blob."""
        self.asked.clear()
        await asyncio.gather(self.server.start(), *(worker.start() for worker in self.workers.values()))
        async for event in self.server.events():
            if isinstance(event, Progress):
                self.progress.append(event)
            elif isinstance(event, Ask):
                with memory.mapped(event.fd, event.size) as view:
                    self.asked.append((event.seq, event.dst, event.type, hashlib.sha256(view).hexdigest()))
                if event.seq == kill_before:
                    await next(iter(self.workers.values())).close()
                await asyncio.gather(*(self._answer(event, node) for node in event.dst))
                event.close()
            else:
                assert isinstance(event, Finished), event
                assert event.fd is not None
                with memory.mapped(event.fd, event.size) as view:
                    model = bytes(view)
                os.close(event.fd)
                return event, model
        raise AssertionError("the run has no end")

    async def _answer(self, ask: Ask, node: int) -> None:
        known = self.replies.get((ask.seq, node))
        if known is None:
            header = {"id": f"{ask.seq}-{node}", "type": ask.type, "group": ask.group, "seq": ask.seq}
            reply = await self.workers[node].call(header, ask.fd, ask.size, 30, 1 << 20)
            with reply.mapped() as view:
                self.replies[ask.seq, node] = bytes(view)
            fd, size = reply.fd, reply.size
            await self.server.send_reply(ask.seq, node, fd, size)
            reply.close()
            return
        fd, size = memory.write_parts([known])
        await self.server.send_reply(ask.seq, node, fd, size)
        os.close(fd)

    async def close(self) -> None:
        await asyncio.gather(self.server.close(), *(worker.close() for worker in self.workers.values()))


@pytest.fixture
async def rig_for(tmp_path, hospitals):
    made = []

    def make(name: str = "rig") -> Rig:
        folder = tmp_path / name
        folder.mkdir()
        made.append(Rig(folder, hospitals))
        return made[-1]

    yield make
    for rig in made:
        await rig.close()


async def test_ten_rounds_give_an_accurate_model_with_accuracy_per_round(rig_for):
    rig = rig_for()
    finished, model = await rig.run()
    assert finished.source == "strategy"
    assert finished.questions == 20
    assert [row.round for row in finished.rounds] == list(range(1, 11))
    accuracies = [row.evaluate["accuracy"] for row in finished.rounds]
    assert accuracies[-1] >= 0.95
    assert accuracies[-1] > accuracies[0]
    live = [event.metrics["accuracy"] for event in rig.progress if event.stage == "evaluate"]
    assert live == accuracies
    assert read_blob(model).shapes() == [("arrays", "0", "float32", (30,)), ("arrays", "1", "float32", (1,))]
    assert {ask[1] for ask in rig.asked} == {tuple(sorted(rig.nodes))}


async def test_a_run_started_again_asks_the_same_and_a_killed_worker_changes_nothing(rig_for):
    plain = rig_for("plain")
    first, model = await plain.run()
    questions = list(plain.asked)
    # The ServerApp starts again from the top and gets the recorded replies.
    again, same = await plain.run()
    assert plain.asked == questions
    assert same == model
    assert again.rounds == first.rounds
    # Another rig, with a worker killed in the middle.
    other = rig_for("other")
    _, third = await other.run(kill_before=7)
    assert other.asked == questions
    assert third == model
