"""Rounds of every profile over the whole stack, with three parties: for `bench_secagg`.

All trainings run on one cast, one after the other. One that does not work, or not in its time, is a setting without
figures and with the reason, and a new cast serves the next.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import cast
import effort
import memory

from comity.wire.errors import ComityError

TRAIN_TIMEOUT_S, MEMORY_TIMEOUT_S = 120.0, 300.0
# A node's memory is measured beside few long rounds: looking costs time, which would show in short ones.
MEMORY_PARAMS, MEMORY_ROUNDS, ROUNDS = 10_000_000, 3, 9
NOT_MEASURED = "measured over the whole stack with three parties: 1e6 parameters, and 1e7 under `threshold`"


@dataclass(frozen=True)
class Setting:
    """One training on the cast."""

    profile: str
    params: int
    rounds: int
    with_memory: bool = False


def settings(profiles: Iterable[str], sizes: Iterable[int]) -> list[Setting]:
    """Return which trainings are measured for these rows."""
    names, sizes = list(profiles), list(sizes)
    found = [Setting(name, 1_000_000, ROUNDS) for name in names if 1_000_000 in sizes]
    if "threshold" in names and MEMORY_PARAMS in sizes:
        found.append(Setting("threshold", MEMORY_PARAMS, MEMORY_ROUNDS, with_memory=True))
    return found


def measured(wanted: Iterable[Setting]) -> Iterator[tuple[Setting, dict[str, Any]]]:
    """Yield what each training showed, as it comes."""
    with ExitStack() as stack:
        rig: cast.Rig | None = None
        for each in wanted:
            try:
                rig = rig or stack.enter_context(cast.rig())
                yield each, _train(rig, each)
            except (ComityError, RuntimeError) as error:
                stack.close()
                rig = None
                yield each, {"round_wall_s": None, "left_out": {"round_wall_s": f"did not work: {error}"[:500]}}


def _train(rig: cast.Rig, wanted: Setting) -> dict[str, Any]:
    load = os.getloadavg()[0]
    rig.set_aggregation(wanted.profile)
    pids = rig.cast.pids()
    with ExitStack() as stack:
        spent = stack.enter_context(effort.Effort(pids.values()))
        peaks = {
            name: stack.enter_context(memory.PeakMemory([pid]))
            for name, pid in pids.items()
            if wanted.with_memory and name in rig.nodes
        }
        timeout_s = MEMORY_TIMEOUT_S if wanted.with_memory else TRAIN_TIMEOUT_S
        outcome = rig.train(wanted.profile, wanted.params, wanted.rounds, timeout_s)
    cpu = spent.between(outcome.ended_ms[0], outcome.ended_ms[-1])
    found: dict[str, Any] = {
        "round_wall_s": round(statistics.median(outcome.rounds_s), 3),
        "round_wall_min_s": round(min(outcome.rounds_s), 3),
        "round_cpu_s": round(sum(cpu.values()) / (wanted.rounds - 1), 3),
        "round_load": round(load, 2),
    }
    if peaks:
        found["node_rss_mb"] = round(max(peak.peak_bytes for peak in peaks.values()) / 1e6, 1)
    return found


Report = Callable[[Setting, dict[str, Any]], None]


def by_row(wanted: Iterable[Setting], report: Report) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the figures by profile and size; `report` hears of each at once."""
    found = {}
    for each, facts in measured(wanted):
        report(each, facts)
        found[each.profile, each.params] = facts
    return found
