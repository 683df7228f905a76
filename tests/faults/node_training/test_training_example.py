"""The example app, which trains and evaluates: metrics for the lead's people only, and the same model after a crash."""

from __future__ import annotations

import csv
import json
import os
import signal

import pytest

from comity_node.training import store

ROUNDS = 3
PAIR = ("hospital-a", "hospital-b")


@pytest.fixture
def patients(rig):
    """A part of the Breast Cancer Wisconsin data for each hospital; returns the columns."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    for number, org in enumerate(PAIR):
        path = rig.nodes[org].home / "wisconsin.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "diagnosis"])
            rows = zip(data.data[number::2], data.target[number::2], strict=True)
            writer.writerows([*values, target] for values, target in rows)
        rig.nodes[org].service.catalogue.add("patients", path, classification="pseudonymous", replace=True)
    return (*names, "diagnosis")


async def test_a_killed_lead_app_ends_with_the_same_model_and_metrics_stay_sealed(rig, patients, example):
    config = {"num-server-rounds": ROUNDS}
    ends = []
    for disturbed in (False, True):
        agreement = rig.agree(example, rounds=ROUNDS, config=config, columns=patients, parties=PAIR)
        run = rig.board.prepare(agreement)
        if disturbed:
            await rig.until(lambda: rig.spent("hospital-b", agreement).get("releases", 0) >= 4)  # noqa: B023
            os.killpg(rig.nodes["hospital-a"].service.runs.host(run)._process.pid, signal.SIGKILL)
        finished = await rig.finish(run)
        assert finished["state"] == "COMPLETED", finished
        assert finished["orders"] == dict.fromkeys(PAIR, 2 * ROUNDS)
        await rig.until((rig.result("hospital-b", run) / "card.json").exists)
        card = json.loads((rig.result("hospital-b", run) / "card.json").read_text())
        ends.append((card["metrics"], rig.result("hospital-b", run).joinpath("model.npz").read_bytes()))
    undisturbed, restarted = ends
    assert restarted == undisturbed
    assert [row["stage"] for row in undisturbed[0]].count("evaluate") == ROUNDS
    assert undisturbed[0][-1]["metrics"]
    accuracy = [row["metrics"].get("accuracy") for row in undisturbed[0] if row["stage"] == "evaluate"]
    assert accuracy[-1] > 0.85
    told = json.dumps(rig.board.durable)
    assert "accuracy" not in told
    kept = rig.nodes["hospital-a"].read(lambda conn: store.list_events(conn, run, 0, 500))
    assert sum(kind == "metrics" for _, _, kind, _ in kept) >= ROUNDS
