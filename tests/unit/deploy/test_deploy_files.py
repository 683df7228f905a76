"""What ships in deploy/ as far as it can be checked without the engines that it is for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def test_services_are_pinned_and_confined() -> None:
    services = yaml.safe_load((DEPLOY / "containers" / "compose.yaml").read_text())["services"]
    assert set(services) == {"database", "temporal", "coordinator", "opa", "node"}
    for name, service in services.items():
        image = service["image"]
        assert image == "comity" or re.search(r":v?\d+\.\d+\.\d+", image), f"{name} is not pinned"
        assert not service.get("privileged"), name
    assert [name for name, service in services.items() if service.get("ports")] == ["coordinator"]
    assert all(services[name]["read_only"] for name in ("coordinator", "node", "opa", "database"))


def test_settings_named_in_deployment_exist() -> None:
    settings = (ROOT / "coordinator" / "comity_coordinator" / "settings.py").read_text()
    for path in (DEPLOY / "README.md", DEPLOY / "containers" / "compose.yaml"):
        for name in re.findall(r"COMITY_COORDINATOR_([A-Z_]+)", path.read_text()):
            assert f"    {name.lower()}:" in settings, name


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_units_restart_and_are_confined(unit: Path) -> None:
    text = unit.read_text()
    for line in ("Restart=always", "NoNewPrivileges=true", "ProtectSystem=strict", "UMask=0077", "User=comity"):
        assert line in text.splitlines(), line


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed here")
    copy = tmp_path / unit.name.replace("@", "@hospital-a")
    # The program and the user exist on the target machine only.
    copy.write_text(
        re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()).replace("User=comity", "User=root")
    )
    said = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], check=False, capture_output=True, text=True, timeout=30
    )
    assert [line for line in said.stderr.splitlines() if copy.name in line] == []
