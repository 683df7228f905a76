"""How fast an export is verified: a consortium, its agreement, and as many receipts as asked; for `bench_ledger.py`."""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from comity_policies.history import verify_export

ROOT = Path(__file__).resolve().parents[1]


def measure(receipts: int, repeat: int) -> dict[str, Any]:
    """Return entries verified in a second, the processor time of one, and the load meanwhile: medians of `repeat`."""
    world, statements = _history(receipts)
    with tempfile.TemporaryDirectory() as name:
        export = world.export(statements, Path(name) / "export.jsonl")
        del statements  # whoever verifies has the file only
        gc.collect()
        rates, costs = [], []
        for _ in range(repeat):
            began, cpu = time.perf_counter(), _cpu_s()
            report = verify_export(export, world.genesis)
            rates.append(round(report.size / (time.perf_counter() - began)))
            costs.append((_cpu_s() - cpu) / report.size * 1e6)
    return {
        "verify_entries_per_s": round(statistics.median(rates)),
        "verify_runs": rates,
        "verify_cpu_us": round(statistics.median(costs)),
        "verify_load": round(os.getloadavg()[0], 1),
    }


def _history(receipts: int) -> tuple[Any, list[Any]]:
    # The small consortium of the tests: keys, charter, certificates, an agreement that verifies.
    spec = importlib.util.spec_from_file_location("small", ROOT / "tests" / "unit" / "policies" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    world = module.World()
    history = world.history()
    start = history[: 1 + next(at for at, each in enumerate(history) if each.kind == "agreement")]
    agreement = world.agreement(world.proposal())
    refused = {"outcome": "refused", "code": "BUSY", "result": None, "grants": {}, "predicates": {}, "egress_bytes": 0}
    made = [
        world.receipt(module.ORGS[n % 3], agreement, order=f"{n:064x}", journal_seq=n // 3 + 1, **refused)
        for n in range(receipts)
    ]
    return world, [*start, *made]


def _cpu_s() -> float:
    """Our own processor time and that of children that have ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system
