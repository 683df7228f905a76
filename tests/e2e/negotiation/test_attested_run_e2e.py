"""`attestation: required` with real processes: members vote for a maker, nodes show evidence, the ledger holds."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.consortium import LEAD, ORGS, Consortium
from harness.machines import MEASUREMENT, Maker, Tsm

from comity_agents.flower.bundle import build_app

APP = Path(__file__).resolve().parents[3] / "benchmarks" / "dummy_app"
pytestmark = pytest.mark.slow


@pytest.fixture
def hospitals() -> Iterator[tuple[Consortium, dict[str, Tsm]]]:
    with tempfile.TemporaryDirectory(prefix="comity-attested-") as name:
        folder, maker = Path(name), Maker()
        consortium = Consortium(folder / "c")
        machines = {org: Tsm(folder / f"tsm-{org}", maker) for org in ORGS}
        try:
            table = folder / "numbers.csv"
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([["x", "y"], *([row, row % 2] for row in range(40))])
            consortium.found({org: {"numbers": table} for org in ORGS}, (build_app(APP).digest,))
            yield consortium, machines
        finally:
            left = consortium.stop()
            for machine in machines.values():
                machine.close()
        assert left == []


def set_up(consortium: Consortium, machines: dict[str, Tsm]) -> None:
    """Tell each node where its machine's reports are, and start it again."""
    for org in ORGS:
        path = consortium.home(org) / "node.json"
        settings = json.loads(path.read_text())
        floor = {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 213}
        settings["attestation"] = {"report_root": str(machines[org].root), "snp_floor": floor}
        consortium.down(org)
        path.write_text(json.dumps(settings))
    consortium.up(*ORGS)


def trust(consortium: Consortium, root: str, version: int) -> None:
    home = ("--home", str(consortium.home(LEAD)))
    made = consortium.ok("charter", "propose", "--trust-root", root, "--reason", "our machines", *home)
    for org in ORGS:
        at = ("--home", str(consortium.home(org)))
        consortium.until(
            lambda at=at: made["name"] in json.dumps(consortium.ok("charter", "list", *at)), f"{org} knows the proposal"
        )
        consortium.ok("charter", "vote", made["name"], *at)
    for org in ORGS:
        consortium.until(
            lambda org=org: consortium.nodes[org].status()["charter_version"] == version, f"{org}: charter"
        )


def test_a_run_among_confidential_machines(hospitals: tuple[Consortium, dict[str, Tsm]], tmp_path: Path) -> None:
    consortium, machines = hospitals
    set_up(consortium, machines)
    (tmp_path / "ark.der").write_bytes(machines[LEAD].maker.ark)
    (tmp_path / "launch.bin").write_bytes(MEASUREMENT)
    trust(consortium, f"sev-snp:{tmp_path / 'ark.der'}", 2)
    trust(consortium, f"sev-snp-measurement:{tmp_path / 'launch.bin'}", 3)
    wish: dict[str, Any] = {
        "app": str(APP),
        "purpose": "research",
        "dataset": "numbers",
        "title": "Attested",
        "partners": list(ORGS[1:]),
        "rounds": 2,
        "run_config": {"num-server-rounds": 2, "params": 100},
        "terms": {"attestation": "required"},
    }
    ended = consortium.train(wish)
    assert ended.state == "COMPLETED", ended
    assert {org: len(machine.asked) for org, machine in machines.items()} == dict.fromkeys(ORGS, 1)
    file, home = tmp_path / "ledger.jsonl", ("--home", str(consortium.home(LEAD)))

    def verified() -> Any:
        file.unlink(missing_ok=True)
        consortium.ok("ledger", "export", str(file), *home)
        report = consortium.ok("ledger", "verify", str(file), "--genesis", consortium.genesis)
        return report if report["counts"].get("receipt", 0) >= 6 else None

    checks = {
        each["number"]: each["count"] for each in consortium.until(verified, "all receipts stand there")["checks"]
    }
    assert checks[10] == 3
