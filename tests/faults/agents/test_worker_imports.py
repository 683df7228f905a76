"""A worker process runs our code, whatever lies in the folder that its node was started in."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.bfv.workers import BfvWorkers


async def test_a_worker_imports_nothing_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ast", "json", "numpy", "tenseal"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    async with BfvWorkers(1) as workers:
        await workers.warm(AGG_Q16)
    assert not (tmp_path / "ran").exists()
