"""Every alert, run by Prometheus' own `promtool` on series as our processes expose them: it fires when it should, not a
minute earlier, and with the labels of which its summary speaks.

Rules:
1. A case is the series (one value a minute, in promtool's notation), the last minute without the alert, and the first
   one with it; 0 if there is none.
2. A counter with labels does not exist before it has counted something (`_`): its first count must be seen as well.
3. Without `promtool` the cases are skipped, and say so; that each alert has one is asked in any case.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

PROMETHEUS = Path(__file__).resolve().parents[3] / "deploy" / "prometheus"
RULES = {
    rule["alert"]: (path, rule)
    for path in sorted(PROMETHEUS.glob("*.rules.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
}
COORDINATOR, NODE = "comity_coordinator_", "comity_node_"
INSTANCE = 'instance="one"'


@dataclass(frozen=True, slots=True)
class Case:
    """One story of `alert`."""

    alert: str
    series: dict[str, str]
    silent_at: int
    fires_at: int = 0


def gauges(alert: str, silent_at: int, fires_at: int = 0, /, **series: str) -> Case:
    """Return the story of gauges and of counters without labels, of the part that the alert is for."""
    prefix = NODE if RULES[alert][0].name.startswith("node") else COORDINATOR
    return Case(
        alert, {f"{prefix}{name}{{{INSTANCE}}}": values for name, values in series.items()}, silent_at, fires_at
    )


def counted(alert: str, name: str, label: str) -> list[Case]:
    """Return stories of a counter with a label: a first count, one more, one after restarts, and one of long ago."""
    series = f"{name}_total{{{label},{INSTANCE}}}"
    return [
        Case(alert, {series: "_x21 1x60"}, 20, 21),
        Case(alert, {series: "1x20 2x60"}, 20, 21),
        Case(alert, {series: "3x15 _x5 1x60"}, 20, 21),
        Case(alert, {series: "3x5 _x84 1x60"}, 89, 90),
        Case(alert, {series: "5x200"}, 150),
    ]


SLOW = {"0.5": "0+10x60", "1.0": "0+10x60", "2.5": "0+100x60", "+Inf": "0+100x60"}
CASES = [
    Case("ComityCoordinatorDown", {f'up{{job="comity-coordinator",{INSTANCE}}}': "1x9 0x20"}, 11, 12),
    gauges("ComityCheckpointOld", 11, 12, ledger_checkpoint_age_seconds="0x9 301x20", ledger_pending="4x60"),
    gauges("ComityCheckpointOld", 50, ledger_checkpoint_age_seconds="0+60x60", ledger_pending="0x60"),
    gauges("ComitySequencerLag", 11, 12, ledger_sequencer_lag_seconds="3x9 31x20"),
    gauges("ComityCosignaturesLate", 14, 15, ledger_cosignature_lag_seconds="0x9 301x20"),
    gauges("ComityCosignaturesLate", 60, ledger_cosignature_lag_seconds="0x9 301x3 0x60"),
    Case("ComityNodeGone", {f'{COORDINATOR}node_connected{{org="b",{INSTANCE}}}': "1x9 0x40"}, 24, 25),
    Case(  # of two replicas one has the stream, and it may change
        "ComityNodeGone",
        {
            f'{COORDINATOR}node_connected{{org="b",instance="one"}}': "1x20 0x40",
            f'{COORDINATOR}node_connected{{org="b",instance="two"}}': "0x20 1x40",
        },
        60,
    ),
    *(
        each
        for why in ("conflict", "lost", "taken")
        for each in counted("ComityRetriesSpent", f"{COORDINATOR}database_failures", f'why="{why}"')
    ),
    Case("ComityRetriesSpent", {f'{COORDINATOR}database_failures_total{{why="other",{INSTANCE}}}': "_x10 1+1x60"}, 60),
    Case(
        "ComityDatabaseSlow",
        {
            f'{COORDINATOR}database_transaction_seconds_bucket{{le="{bound}",{INSTANCE}}}': values
            for bound, values in SLOW.items()
        },
        10,
        11,
    ),
    Case("ComityOutboxGrows", {f'{COORDINATOR}outbox_messages{{org="b",{INSTANCE}}}': "9x9 10001x40"}, 24, 25),
    gauges(
        "ComityCoordinatorPayloadDisk",
        14,
        15,
        payload_bytes="10x9 86x40",
        payload_limit_bytes="100x60",
        payload_disk_free_bytes="5e9x60",
    ),
    gauges(
        "ComityCoordinatorPayloadDisk",
        14,
        15,
        payload_bytes="10x60",
        payload_limit_bytes="100x60",
        payload_disk_free_bytes="5e9x9 1e9x40",
    ),
    gauges("ComityWorkflowEngineAway", 11, 12, temporal_connected="1x9 0x40"),
    Case(
        "ComityWorkflowTasksFail",
        {f'{COORDINATOR}temporal_failures_total{{what="activity",{INSTANCE}}}': "_x10 6x40"},
        9,
        10,
    ),
    Case(
        "ComityWorkflowTasksFail",
        {f'{COORDINATOR}temporal_failures_total{{what="activity",{INSTANCE}}}': "_x10 5x40"},
        40,
    ),
    Case(
        "ComityWorkflowTasksFail",
        {f'{COORDINATOR}temporal_failures_total{{what="activity",{INSTANCE}}}': "0x9 8x40"},
        9,
        10,
    ),
    gauges("ComityCoordinatorNotRead", 9, 10, scrape_errors_total="0x9 1x40"),
    Case("ComityNodeDown", {f'up{{job="comity-node",{INSTANCE}}}': "1x9 0x20"}, 11, 12),
    gauges("ComityNodeOffline", 19, 20, connected="1x9 0x40"),
    gauges("ComityIncident", 9, 10, incidents_open="0x9 1x40"),
    *counted("ComityPolicyDeniedByError", f"{NODE}policy_errors", 'code="POLICY_TIMEOUT"'),
    gauges("ComityPolicyCircuitOpen", 10, 11, policy_circuit_open="0x9 1x40"),
    gauges(
        "ComityNodePayloadDisk",
        14,
        15,
        payload_bytes="10x9 86x40",
        payload_limit_bytes="100x60",
        payload_disk_free_bytes="5e9x60",
    ),
    gauges("ComityMessagesUntaken", 9, 10, messages_untaken="0x9 1x40"),
    gauges("ComityMessagesUntaken", 40, messages_untaken="3x9 1x40"),
    gauges("ComityReviewsWait", 249, 250, reviews_open="0x9 2x300"),
    *(
        Case(
            "ComityGrantExhausted",
            {f'{NODE}orders_total{{outcome="refused",code="{code}",{INSTANCE}}}': f"{before} {after}x40"},
            69,
            at,
        )
        for code, at in (("GRANT_EXHAUSTED", 70), ("POLICY_DENIED", 0))
        for before, after in (("_x70", 1), ("2x69", 3))
    ),
    gauges("ComityReceiptsWait", 24, 25, receipts_unsent="0x9 501x40"),
    gauges("ComityNodeOutboxGrows", 24, 25, outbox_messages="0x9 1001x40", connected="1x60"),
    gauges("ComityNodeOutboxGrows", 40, outbox_messages="0x9 1001x40", connected="0x60"),
    gauges("ComityNodeNotRead", 9, 10, scrape_errors_total="0x9 1x40"),
]


def test_each_alert_has_a_case() -> None:
    assert set(RULES) == {each.alert for each in CASES if each.fires_at}


@pytest.mark.parametrize("alert", RULES)
def test_it_fires_when_it_should(alert: str, tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed here")
    path, rule = RULES[alert]
    spoken = sorted(set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])))
    state = f'count by ({", ".join(spoken)}) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    tests = []
    for each in (each for each in CASES if each.alert == alert):
        told = {name: value for series in each.series for name, value in re.findall(r'(\w+)="([^"]*)"', series)}
        shown = {"labels": "{" + ",".join(f'{name}="{told[name]}"' for name in spoken) + "}", "value": 1}
        wanted = [{"expr": state, "eval_time": f"{each.silent_at}m", "exp_samples": []}]
        if each.fires_at:
            wanted.append({"expr": state, "eval_time": f"{each.fires_at}m", "exp_samples": [shown]})
        series = [{"series": name, "values": values} for name, values in each.series.items()]
        tests.append({"interval": "1m", "input_series": series, "promql_expr_test": wanted})
    story = tmp_path / "story.yml"
    story.write_text(json.dumps({"rule_files": [str(path)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(story)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
