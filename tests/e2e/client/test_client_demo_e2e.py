"""`comity demo` as a person starts it: the whole story, a second run in the same folder, and Ctrl-C in the middle."""

from __future__ import annotations

import json
import os
import re
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
from harness.collector import Collector, Span, collecting

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
def collector() -> Iterator[Collector]:
    """Takes the traces of all processes; in earnest each party would have its own."""
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def told(folder: Path, collector: Collector) -> dict[str, Any]:
    """The summary of one run."""
    done = subprocess.run(
        # `make demo` runs the default, `threshold`; the story is the same, and the ceremony is not told here.
        [str(COMITY), "demo", "--json", "--folder", str(folder), "--aggregation", "lead-key"],
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
        env={**os.environ, **collector.environment},
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


# docs/observability.md: who makes which span, and below which one; Temporal's own are named by its library.
ORGS = frozenset(HOSPITALS)
OPERATOR = frozenset({""})
LEAD = frozenset({"hospital-a"})
TREE = {
    "propose": (LEAD, {""}),
    "take proposal.submit": (OPERATOR, {"propose"}),
    "engine open": (OPERATOR, {"take proposal.submit"}),
    "StartWorkflow:Negotiation": (OPERATOR, {"engine open"}),
    "RunWorkflow:Negotiation": (OPERATOR, {"StartWorkflow:Negotiation"}),
    "take offer": (ORGS, {"take proposal.submit"}),
    "decide proposal": (ORGS, {"take offer"}),
    "take proposal.answer": (OPERATOR, {"take offer"}),
    "take agreement.sign": (ORGS, {"take proposal.answer"}),
    "take agreement.signature": (OPERATOR, {"take agreement.sign"}),
    "take agreement.final": (ORGS, {"take agreement.signature"}),
    "engine run": (OPERATOR, {"take agreement.signature"}),
    "StartWorkflow:Run": (OPERATOR, {"engine run"}),
    "RunActivity:supervise_run": (OPERATOR, {"StartActivity:supervise_run"}),
    "take run.prepare": (ORGS, {"take agreement.signature"}),
    "take run.ready": (OPERATOR, {"take run.prepare"}),
    "take run.start": (LEAD, {"take run.ready"}),
    "round": (LEAD, {"take run.start"}),
    "relay order": (OPERATOR, {"round", "take run.start"}),
    "take order": (ORGS - LEAD, {"relay order"}),
    "order": (ORGS, {"round", "take order", "take run.start"}),
    "decide dispatch": (ORGS, {"order"}),
    "decide egress": (ORGS, {"order"}),
    "relay reply": (OPERATOR, {"order", "take order"}),
    "take reply": (LEAD, {"relay reply"}),
    "receipts": (ORGS, {"order"}),
    "take receipts": (OPERATOR, {"receipts"}),
    "take run.finished": (OPERATOR, {"take run.start"}),
    "take result": (ORGS - LEAD, {"relay result"}),
}
NAMES = {
    "comity.org": r"hospital-[abc]",
    "comity.proposal": r"[a-z]+-[0-9a-f-]{20,40}",
    "comity.agreement": r"[0-9a-f]{64}",
    "comity.run": r"[a-z]+-[0-9a-f-]{20,40}",
    "temporalWorkflowID": r"(negotiation|run)/[a-z]+-[0-9a-f-]{20,40}(/[0-9]+)?",
    "temporalRunID": r"[0-9a-f-]{36}",
    "temporalActivityID": r"[0-9a-f-]{1,36}",
}


def test_one_trace_follows_a_proposal_through_every_process(told: dict[str, Any], collector: Collector) -> None:
    by_trace: dict[str, list[Span]] = {}
    for span in collector.spans:
        by_trace.setdefault(span.trace, []).append(span)
    assert len(by_trace) == 2, "the proposal that became a run, and the one that was denied"
    spans = max(by_trace.values(), key=len)
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        assert not span.parent or span.parent in by_id, f"{span.name} hangs on nothing"
    for name, (where, above) in TREE.items():
        found = [span for span in spans if span.name == name]
        assert {span.at for span in found} == where, name
        assert {by_id[span.parent].name if span.parent else "" for span in found} <= above, name
    for trace in by_trace.values():
        assert [span.name for span in trace if not span.parent] == ["propose"]


def test_traces_hold_ids_and_nothing_else(told: dict[str, Any], collector: Collector) -> None:
    for span in collector.spans:
        assert span.events == 0, span
        assert re.fullmatch(r"[A-Z_]*", span.status), span
        for name, value in span.attributes.items():
            assert name in NAMES, span
            assert re.fullmatch(NAMES[name], str(value)), (name, value)
    runs = {span.attributes["comity.run"] for span in collector.spans if span.name == "take order"}
    assert len(runs) == 1


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
