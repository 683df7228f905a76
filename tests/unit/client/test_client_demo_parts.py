"""The demo's parts: the data set's division, the processes, the export, the example's comparison."""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comity_client.demo import export, patients
from comity_client.demo.cast import Cast, DemoError, free_port, leftovers, stop_kept

ROOT = Path(__file__).resolve().parents[3]
COMPARE = ROOT / "examples" / "hospitals" / "compare.py"
PATIENTS = 569


def rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, patients.Part]]:
    return patients.write(tmp_path_factory.mktemp("data"))


def test_every_patient_is_at_exactly_one_hospital(divided: tuple[Path, dict[str, patients.Part]]) -> None:
    original, parts = divided
    header, *all_rows = rows(original)
    assert len(all_rows) == PATIENTS
    assert header[-1] == "diagnosis"
    dealt = [row for part in parts.values() for row in rows(part.path)[1:]]
    assert sorted(dealt) == sorted(all_rows)
    assert all(rows(part.path)[0] == header for part in parts.values())


def test_the_parts_are_uneven_and_differ(divided: tuple[Path, dict[str, patients.Part]]) -> None:
    _, parts = divided
    assert [part.patients for part in parts.values()] == [300, 180, 89]
    shares = [part.malignant_percent for part in parts.values()]
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 50
    assert all(part.path.stat().st_mode & 0o777 == 0o600 for part in parts.values())


def test_the_comparison_judges_all_on_the_same_patients(divided: tuple[Path, dict[str, patients.Part]]) -> None:
    original, parts = divided
    command = [sys.executable, str(COMPARE), "--original", str(original)]
    for name, part in parts.items():
        command += ["--hospital", f"{name}={part.path}"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["test_patients"] == 113
    assert found["together"] is None
    assert set(found["alone"]) == set(patients.HOSPITALS)
    assert found["pooled"] > min(found["alone"].values())
    assert found["pooled"] >= 0.95
    done = subprocess.run(command[:-2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, "two hospitals can be compared as well"
    command[3] = str(parts["hospital-c"].path)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0, "another original is refused"


def test_processes_are_stopped_and_leave_nothing(tmp_path: Path) -> None:
    cast = Cast(tmp_path, [sys.executable, "-c", "import time,sys; print('up', flush=True); time.sleep(60)"])
    cast.start("one", str(tmp_path))
    cast.start("two", str(tmp_path))
    assert set(cast.pids()) == {"one", "two"}
    for name in cast.pids():  # a process that has not come to its first line may not show its command yet
        cast.until(name, lambda name=name: "up" in cast.log(name).read_text(), 10)
    assert set(leftovers(tmp_path)) == set(cast.pids().values())
    assert cast.stop() == []
    assert leftovers(tmp_path) == []


def test_a_process_that_will_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity_client.demo.cast.STOP_GRACE_S", 0.2)
    stubborn = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    cast = Cast(tmp_path, [sys.executable, "-c", stubborn])
    cast.start("one", str(tmp_path))
    cast.until("one", lambda: "up" in cast.log("one").read_text(), 10)
    assert cast.stop() == ["one"]
    assert leftovers(tmp_path) == []


def test_what_a_dead_process_said_last_is_told(tmp_path: Path) -> None:
    cast = Cast(tmp_path, [sys.executable, "-c", "import sys; print('no key here', file=sys.stderr); sys.exit(3)"])
    cast.start("hospital-b")
    with pytest.raises(DemoError) as caught:
        cast.until("hospital-b", lambda: False, 10)
    assert "hospital-b ended with status 3" in str(caught.value)
    assert str(cast.log("hospital-b")) in str(caught.value)
    assert "no key here" in str(caught.value)
    cast.stop()


def test_waiting_for_a_process_has_an_end(tmp_path: Path) -> None:
    cast = Cast(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])
    cast.start("one")
    begun = time.monotonic()
    with pytest.raises(DemoError, match="was not ready"):
        cast.until("one", lambda: False, 0.2)
    assert time.monotonic() - begun < 5
    cast.stop()


def test_secrets_travel_over_standard_input(tmp_path: Path) -> None:
    code = "import json,sys; print(json.dumps({'heard': sys.stdin.readline().strip(), 'arguments': sys.argv[1:]}))"
    cast = Cast(tmp_path, [sys.executable, "-c", code])
    assert cast.run("one", "join", "-", secret="token\n") == {"heard": "token", "arguments": ["join", "-"]}
    assert "token" not in cast.log("one").read_text()


def test_a_failing_command_is_told(tmp_path: Path) -> None:
    cast = Cast(tmp_path, [sys.executable, "-c", 'import sys; print(\'{"code": "REVOKED"}\'); sys.exit(2)'])
    with pytest.raises(DemoError, match="REVOKED"):
        cast.run("one")
    with pytest.raises(DemoError, match="no JSON"):
        Cast(tmp_path, [sys.executable, "-c", ""]).run("one")


def test_children_see_no_comity_setting_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMITY_HOME", "/elsewhere")
    code = "import json,os; print(json.dumps({k: v for k, v in os.environ.items() if 'COMITY' in k or 'FLWR' in k}))"
    found = Cast(tmp_path, [sys.executable, "-c", code]).run("one")
    assert found == {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def test_only_our_own_kept_processes_are_stopped(tmp_path: Path) -> None:
    cast = Cast(tmp_path, [sys.executable, "-c", "import time; time.sleep(60)"])
    cast.start("kept", str(tmp_path))
    (pid,) = cast.pids().values()
    assert stop_kept(tmp_path / "another", [pid, os.getpid()]) == []
    assert cast.ended() == []
    # A child of this test stays as a zombie until it is waited for, so its end is seen by its empty command line.
    assert stop_kept(tmp_path, [pid, os.getpid()]) == [pid]
    assert cast.stop() == []


def test_who_started_us_is_no_leftover(tmp_path: Path) -> None:
    """A wrapper such as `timeout` has the folder's name in its command line for as long as the demo runs."""
    look = f"print(leftovers(Path({str(tmp_path)!r})))"
    inner = f"from pathlib import Path; from comity_client.demo.cast import leftovers; {look}"
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    done = subprocess.run([sys.executable, "-c", outer, inner], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ports_are_free() -> None:
    assert 1024 < free_port() < 65_536


def entry(index: int, kind: str, body: dict[str, object]) -> str:
    content = {"kind": kind, "issuer": "hospital-b", "body": body}
    data = json.dumps({"content": content, "signature": "x"}, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"index": index, "statement": base64.b64encode(data).decode()})


def test_receipts_are_read_and_one_number_altered(tmp_path: Path) -> None:
    file, forged = tmp_path / "ledger.jsonl", tmp_path / "forged.jsonl"
    lines = [
        json.dumps({"format": "comity-ledger-export/1"}),
        entry(0, "charter", {}),
        entry(1, "receipt", {"seq": 0, "egress_bytes": 7}),
        entry(2, "receipt", {"seq": 1, "egress_bytes": 8}),
    ]
    file.write_text("\n".join(lines) + "\n")
    assert [each["egress_bytes"] for each in export.receipts(file)] == [7, 8]
    assert export.receipts(file)[0]["issuer"] == "hospital-b"
    assert export.altered(file, forged) == 1
    assert [each["egress_bytes"] for each in export.receipts(forged)] == [8, 8]
    changed = [a != b for a, b in zip(file.read_text().splitlines(), forged.read_text().splitlines(), strict=True)]
    assert changed == [False, False, True, False] or json.loads(forged.read_text().splitlines()[0]) == json.loads(
        lines[0]
    )
