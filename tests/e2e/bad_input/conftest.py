"""One consortium for all tests of bad input: three hospitals, a fourth that joins to be bad, and a rogue app."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.consortium import LEAD, ORGS, Consortium

from comity_agents.flower.bundle import build_app

sys.path.insert(0, str(Path(__file__).resolve().parent))
REPLY_BYTES_MAX = 1 << 20


@pytest.fixture(scope="module")
def bad() -> Iterator[Consortium]:
    """The consortium. hospital-b takes no reply above 1 MiB from a worker."""
    from setting import ROGUE, broken_app, change_json, write_table  # found by the line above

    with tempfile.TemporaryDirectory(prefix="comity-bad-") as name:
        folder = Path(name)
        consortium = Consortium(folder)
        try:
            datasets = {}
            for org in ORGS:
                write_table(folder / f"{org}.csv", "id", "value")
                datasets[org] = {"numbers": folder / f"{org}.csv"}
            digests = tuple(build_app(app).digest for app in (ROGUE, broken_app(folder / "broken")))
            consortium.found(datasets, digests)
            consortium.down(ORGS[1])
            settings = json.loads((consortium.home(ORGS[1]) / "node.json").read_text())
            limits = {**settings["limits"], "reply_bytes_max": REPLY_BYTES_MAX}
            change_json(consortium.home(ORGS[1]) / "node.json", limits=limits)
            consortium.up(ORGS[1])
            yield consortium
        finally:
            left = consortium.stop()
        assert left == []


@pytest.fixture(scope="module")
def tokens(bad: Consortium) -> dict[str, str]:
    """Join tokens for hospital-d (a day) and hospital-e (a minute)."""
    return {
        "hospital-d": bad.nodes[LEAD].invite("hospital-d")["token"],
        "hospital-e": bad.nodes[LEAD].invite("hospital-e", 60)["token"],
    }
