"""The consortium of `faults/leadkey`, whose parties make the round's keys together."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from comity_node.training.profiles import threshold_ceremony


def _leadkey_module() -> Any:
    path = Path(__file__).resolve().parents[1] / "leadkey" / "conftest.py"
    spec = importlib.util.spec_from_file_location("comity_tests_leadkey_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def apps_module() -> Any:
    """Return the tests that have those apps."""
    path = Path(__file__).resolve().parents[1] / "leadkey" / "test_leadkey_refusals.py"
    spec = importlib.util.spec_from_file_location("comity_tests_leadkey_apps", path)
    assert spec is not None
    assert spec.loader is not None
    apps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(apps)
    return apps


leadkey = _leadkey_module()
workers, rig, dummy = leadkey.workers, leadkey.rig, leadkey.dummy


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Name a fourth organisation, so that a quorum of three is not everybody. Ask for it before the rig."""
    orgs: tuple[str, ...] = (*leadkey.rig_module.ORGS, "hospital-d")
    monkeypatch.setattr(leadkey.rig_module, "ORGS", orgs)
    return orgs


@pytest.fixture
def make_app(tmp_path: Path, dummy: Path) -> Any:
    """The apps of `faults/leadkey`: known updates, weights and numbers."""
    return apps_module().make_app.__wrapped__(tmp_path, dummy)


@pytest.fixture
def consortium(rig: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rig, agreeing on `threshold`."""
    agreed = rig.agree

    def agree(app: Path, *, terms: dict[str, Any] | None = None, **wishes: Any) -> Any:
        return agreed(app, terms={"aggregation": "threshold", **(terms or {})}, **wishes)

    monkeypatch.setattr(rig, "agree", agree)
    monkeypatch.setattr(threshold_ceremony, "STEP_S", 4.0)
    return rig
