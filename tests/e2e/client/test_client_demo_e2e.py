"""`comity demo` as a person starts it: the whole story, a second run in the same folder, and Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comity_client.demo.cast import leftovers

pytestmark = pytest.mark.e2e
COMITY = Path(sys.executable).with_name("comity")
DEMO_TIMEOUT_S = 240
HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # A Unix socket's path is short; pytest's own folders are not always.
    with tempfile.TemporaryDirectory(prefix="cdt-", dir="/tmp") as place:
        yield Path(place) / "demo"


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """The summary of one run."""
    done = subprocess.run(
        # `make demo` runs the default, `threshold`; the story is the same, and the ceremony is not told here.
        [str(COMITY), "demo", "--json", "--folder", str(folder), "--aggregation", "lead-key"],
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"one JSON object and nothing else:\n{done.stdout}\n{done.stderr[-4000:]}"
    summary: dict[str, Any] = json.loads(lines[0])
    assert done.returncode == 0, json.dumps([each for each in summary["checks"] if not each["ok"]], indent=1)
    return summary


def test_every_check_held(told: dict[str, Any]) -> None:
    assert told["ok"]
    assert len(told["checks"]) == 11
    assert all(each["ok"] for each in told["checks"])
    assert told["kept"] is False


def test_the_denial_names_the_rule(told: dict[str, Any]) -> None:
    assert told["marketing"]["state"] == "TERMINATED"
    assert [(each["org"], each["rule"]) for each in told["marketing"]["reasons"]] == [
        ("hospital-b", "proposal.purpose")
    ]


def test_rounds_and_receipts_are_complete(told: dict[str, Any]) -> None:
    assert [each["round"] for each in told["rounds"]] == list(range(1, 11))
    assert told["rounds"][-1]["accuracy"] >= 0.9
    assert told["receipts"] == dict.fromkeys(HOSPITALS, 20)
    assert told["research"]["terms"]["purposes"] == ["research"]
    assert told["research"]["terms"]["aggregation"] == told["aggregation"]
    assert told["ledger"]["counts"]["receipt"] == 60
    assert told["ledger"]["forgery_caught"] is True


def test_the_model_is_worth_it(told: dict[str, Any]) -> None:
    found = told["comparison"]
    assert found["together"] > min(found["alone"].values())
    with np.load(told["model"]["file"], allow_pickle=False) as model:
        assert sorted(model[name].shape for name in model.files) == [(1,), (30,)]


def test_nothing_is_left_running_or_open(told: dict[str, Any], folder: Path) -> None:
    assert leftovers(folder) == []
    for path in (folder / "hospital-a" / "keys").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_no_token_is_in_any_log(told: dict[str, Any], folder: Path) -> None:
    secrets = [(folder / name / "api.token").read_text().strip() for name in (*HOSPITALS, "coordinator")]
    for log in (folder / "logs").iterdir():
        text = log.read_text()
        assert "comity-join-1." not in text
        assert not [each for each in secrets if each in text]


def test_ctrl_c_leaves_nothing_and_the_folder_is_taken_again(told: dict[str, Any], folder: Path) -> None:
    """The second run starts on the first one's folder; it is interrupted once processes are up."""
    started = subprocess.Popen(
        [str(COMITY), "demo", "--json", "--folder", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + DEMO_TIMEOUT_S
    while not (folder / "hospital-a" / "api.sock").exists() and time.monotonic() < until:
        assert started.poll() is None
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGINT)
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert json.loads(out)["interrupted"] is True
    assert leftovers(folder) == []
