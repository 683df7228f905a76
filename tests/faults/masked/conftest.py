"""The consortium of `faults/leadkey`, under `masked` and of four organisations, so that one may drop out."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from comity_node.training.profiles import sum_exchange


def _lead_key_module() -> Any:
    path = Path(__file__).resolve().parents[1] / "leadkey" / "conftest.py"
    spec = importlib.util.spec_from_file_location("comity_tests_leadkey_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lead_key = _lead_key_module()
rig_module = lead_key.rig_module
ORGS = (*rig_module.ORGS, "hospital-d")


class MaskedRig(lead_key.SumRig):  # type: ignore[misc]
    def agree(self, app: Path, *, terms: dict[str, Any] | None = None, **wishes: Any) -> Any:
        wishes.setdefault("parties", ORGS)
        return super().agree(app, terms={"aggregation": "masked", **(terms or {})}, **wishes)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MaskedRig]:
    monkeypatch.setattr(rig_module, "ORGS", ORGS)
    rig = MaskedRig(tmp_path, None)
    monkeypatch.setattr(sum_exchange, "RESEND_S", 0.5)
    monkeypatch.setattr("comity_coordinator.training.sums.store.get", lambda conn, run: rig.board.runs.get(run))
    monkeypatch.setattr("comity_coordinator.training.masked_adding.UPLOAD_S", 3.0)
    made = rig_module.RigNode.up

    async def up(node: Any) -> None:
        monkeypatch.setattr(rig_module, "RigPayloads", lambda board: lead_key.SumPayloads(board, node.org))
        await made(node)

    monkeypatch.setattr(rig_module.RigNode, "up", up)
    await rig.up()
    for node in rig.nodes.values():
        node.add_data()
    try:
        yield rig
    finally:
        await rig.down()
        await rig.board.stop_coordinator()


@pytest.fixture
def dummy() -> Path:
    found: Path = rig_module.DUMMY
    return found


@pytest.fixture
def make_app(tmp_path: Path, dummy: Path) -> Callable[..., Path]:
    """The apps of `faults/leadkey`: known updates, weights and numbers, and a text that must stay."""
    path = Path(__file__).resolve().parents[1] / "leadkey" / "test_leadkey_refusals.py"
    spec = importlib.util.spec_from_file_location("comity_tests_leadkey_apps", path)
    assert spec is not None
    assert spec.loader is not None
    apps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(apps)

    def make(strategy: str = "flower.FedAvg()") -> Path:
        folder = tmp_path / "app"
        shutil.copytree(dummy, folder)
        (folder / "dummy" / "server_app.py").write_text(apps.SERVER.replace("{strategy}", strategy))
        (folder / "dummy" / "client_app.py").write_text(apps.CLIENT)
        text = (folder / "pyproject.toml").read_text().replace("params = 10000", "params = 10000\ndiffer = 0")
        (folder / "pyproject.toml").write_text(text)
        return folder

    return make
