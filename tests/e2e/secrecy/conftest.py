"""Modules beside the tests can be imported; one consortium whose coordinator writes down what it is sent."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.consortium import ORGS, Consortium

from comity_agents.flower.bundle import build_app
from comity_client.demo import patients

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="module")
def spied() -> Iterator[Consortium]:
    """The demo's hospitals with their real data; the app is the example's, with ears; `edge` is the record."""
    from gathering import spying_app  # found by the line above

    with tempfile.TemporaryDirectory(prefix="comity-secrecy-") as name:
        folder = Path(name)
        recorder = (sys.executable, str(HERE / "recording_coordinator.py"), str(folder / "edge"))
        consortium = Consortium(folder, commands={"coordinator": recorder})
        try:
            _, parts = patients.write(folder)
            app = spying_app(folder)
            consortium.found({org: {"patients": parts[org].path} for org in ORGS}, (build_app(app).digest,))
            yield consortium
        finally:
            left = consortium.stop()
        assert left == []
