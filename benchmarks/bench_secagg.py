"""What a secure sum costs each role: `bench_secagg.py [--quick] [--params ...] [--parties ...] [--profile ...]`.

Writes `benchmarks/out/secagg.json`, a list of rows; prints each as it comes. Every row is a process of its own.

* `contributor_s`: encode, mask, encrypt, hash, write and digest of one party; `coordinator_s`: adding all uploads;
  `keyholder_s`: checking the aggregate and making one share; `lead_s`: opening and decoding; `ceremony_s`: one
  holder's work for one key. All are processor seconds of the process and its workers, median over repetitions, which
  a busy machine changes little (caches and clock remain); `load` is the queue of runnable processes before the row.
* `upload_mb`, `share_mb`: 10^6 bytes of one party's upload, and of one share.
* `peak_rss_mb`: highest sum of PSS of process and workers over the row: one process plays every role here, so a node
  is below it. Files in memory that nobody maps are not in it; uploads lie in files on disk.
* Left out: messages, signatures, boxes for seeds and shares of secrets, and the network. `plain` is the cipher alone.
* `contributors_real`: 1 where one party's upload stands for all others' (the arithmetic does the same work; nothing
  can be decoded then), else all parties' are made, summed, opened, and compared with the mean in the clear.
* `round_wall_s`: median of rounds over the whole stack as in `bench_rounds`, three parties only, and not under
  `--quick`; else null. `targets` holds those that apply to a row, each with `met`.
* `tenseal-ckks-shared-key` is the field's practice: CKKS [60, 40, 40], N = 8192, one key that all clients share, no
  masks, and a server that any one client can help to open single updates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import cast
import memory
import secagg_roles

from comity.wire.errors import ComityError

OUT = Path(__file__).parent / "out"
PARAMS = (10_000, 100_000, 1_000_000, 10_000_000)
PARTIES = (3, 10)
PROFILES = ("plain", "lead-key", "masked", "threshold", "tenseal-ckks-shared-key")
STACK_PROFILES = ("plain", "lead-key", "masked", "threshold")
STACK_PARAMS, STACK_ROUNDS = 1_000_000, 8
ROW_TIMEOUT_S = 240.0
I32 = "threshold-i32"
I32_PARAMS = 100_000


class Watch:
    """Collects processor seconds of this process and its workers by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def sync(self, name: str, job: Callable[[], Any]) -> Any:
        """Run and measure a function."""
        start = workers_s() + time.process_time()
        result = job()
        end = time.process_time()  # looking for workers is no part of the work
        self.times.setdefault(name, []).append(end + workers_s() - start)
        return result

    async def wait(self, name: str, job: Awaitable[Any]) -> Any:
        """Run and measure what the pool of workers does."""
        start = workers_s() + time.process_time()
        result = await job
        end = time.process_time()
        self.times.setdefault(name, []).append(end + workers_s() - start)
        return result

    def seconds(self, names: Iterable[str]) -> float | None:
        """Return the sum of the medians of those that were measured, or nothing if none was."""
        found = [statistics.median(self.times[name]) for name in names if name in self.times]
        return round(sum(found), 4) if found else None


def workers_s() -> float:
    """Return the processor seconds of the workers that this process has now, to a nanosecond."""
    own, total = os.getpid(), 0.0
    for pid in memory.family([own]):
        if pid != own:
            tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
            total += sum(int(task.read_bytes().split()[0]) for task in tasks) / 1e9
    return total


def row(profile: str, params: int, parties: int) -> dict[str, Any]:
    """Measure one setting in this process."""
    load, watch = os.getloadavg()[0], Watch()
    facts = asyncio.run(secagg_roles.measure(watch, profile, params, parties))
    return {
        "profile": "threshold" if profile == I32 else profile,
        "parameters": facts.pop("parameters"),
        "params": params,
        "parties": parties,
        "contributor_s": watch.seconds(("encode", "encrypt", "digest")),
        "coordinator_s": watch.seconds(("add",)) or 0.0,
        "keyholder_s": watch.seconds(("check", "share")),
        "lead_s": watch.seconds(("open", "decode") if profile in ("plain", "masked") else ("fuse", "decode")),
        "ceremony_s": watch.seconds(("draw", "combine", "deal", "gather")),
        "upload_mb": round(facts.pop("upload_bytes") / 1e6, 3),
        "share_mb": round(facts.pop("share_bytes", 0) / 1e6, 3),
        "round_wall_s": None,
        **facts,
        "parts_s": {name: round(statistics.median(times), 4) for name, times in watch.times.items()},
        "load": round(load, 2),
    }


def targets(found: dict[str, Any]) -> dict[str, Any]:
    """Return the issue's targets that apply to a row: the bound, and whether it is met."""
    wanted: dict[str, float] = {}
    if found["profile"] == "threshold" and found["parameters"] == "agg-q16":
        if (found["params"], found["parties"]) == (1_000_000, 10):
            wanted = {"upload_mb": 15.0, "contributor_s": 0.3}
        if (found["params"], found["parties"]) == (1_000_000, 3):
            wanted = {"round_wall_s": 2.0}
        if found["params"] == 10_000_000:
            wanted = {"peak_rss_mb": 1_000.0}
    given = {name: bound for name, bound in wanted.items() if found.get(name) is not None}
    return {name: {"at_most": bound, "met": found[name] <= bound} for name, bound in given.items()}


def stack_times(profiles: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return median and least wall seconds of a round over the whole stack, three parties, by profile."""
    found: dict[str, dict[str, float]] = {}
    for profile in profiles:
        load = os.getloadavg()[0]
        with cast.rig() as rig:
            rig.set_aggregation(profile)
            times = rig.train(profile, STACK_PARAMS, STACK_ROUNDS).rounds_s
        found[profile] = {
            "round_wall_s": round(statistics.median(times), 3),
            "round_wall_min_s": round(min(times), 3),
            "round_load": round(load, 2),
        }
    return found


def apart(profile: str, params: int, parties: int) -> dict[str, Any]:
    """Measure one setting in a process of its own; what does not work is a row with its error."""
    setting = {"profile": profile, "params": params, "parties": parties}
    command = [sys.executable, __file__, "--row", profile, str(params), str(parties)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
        memory.PeakMemory([child.pid]) as peak,  # from here, so that looking costs the child nothing
    ):
        try:
            out, err = child.communicate(timeout=ROW_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return {**setting, "error": f"over {ROW_TIMEOUT_S:.0f} s"}
    if child.returncode != 0:
        return {**setting, "error": err[-500:]}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {**found, "peak_rss_mb": round(peak.peak_bytes / 1e6, 1)}


def bench(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row that is asked for."""
    sizes = given.params or (PARAMS[:3] if given.quick else PARAMS)
    wall: dict[str, dict[str, float]] = {}
    if not given.quick and 3 in given.parties and STACK_PARAMS in sizes:
        try:
            wall = stack_times(name for name in STACK_PROFILES if name in given.profile)
        except (ComityError, RuntimeError) as error:
            print(f"no round over the whole stack: {error}"[:500], file=sys.stderr)
    settings = [(name, size, n) for size in sizes for n in given.parties for name in given.profile]
    if "threshold" in given.profile:
        settings += [(I32, I32_PARAMS, n) for n in given.parties]
    rows = []
    for name, size, n in settings:
        found = apart(name, size, n)
        if (size, n) == (STACK_PARAMS, 3):
            found |= wall.get(name, {})
        if "error" not in found:
            found["targets"] = targets(found)
        rows.append({**found, "commit": cast.commit()})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, nargs="*", help="how many float32 parameters")
    parser.add_argument("--parties", type=int, nargs="*", default=list(PARTIES))
    parser.add_argument("--profile", nargs="*", default=list(PROFILES), choices=PROFILES)
    parser.add_argument("--quick", action="store_true", help="up to 1e6 parameters, without the whole stack: 2 minutes")
    parser.add_argument("--row", nargs=3, metavar=("PROFILE", "PARAMS", "PARTIES"), help="one row in this process")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(row(given.row[0], int(given.row[1]), int(given.row[2]))))
        return
    OUT.mkdir(exist_ok=True)
    rows = bench(given)
    (OUT / "secagg.json").write_text(json.dumps(rows, indent=2) + "\n")
    if any("error" in each for each in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
