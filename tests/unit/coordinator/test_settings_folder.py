"""The folder that a command names wins over the environment's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comity_coordinator import setup
from comity_coordinator.settings import FILE, CoordinatorSettings


def test_the_named_folder_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup.new_settings(tmp_path, "net", "127.0.0.1:7700")
    (tmp_path / FILE).write_text(json.dumps(made.to_json()))
    monkeypatch.setenv("COMITY_COORDINATOR_HOME", "/elsewhere")
    found = CoordinatorSettings.load(tmp_path)
    assert found.home == tmp_path.resolve()
    assert str(tmp_path) in found.database
