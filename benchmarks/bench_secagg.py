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
* `round_wall_s`: median of rounds over the whole stack, from one aggregate at the lead to the next (`secagg_stack`):
  three parties, 1e6 parameters, and 1e7 under `threshold`; not under `--quick`. `round_cpu_s` is what all processes of
  the cast worked for it, `round_load` the load before; `node_rss_mb`, at 1e7, the highest PSS of a node with workers.
* `left_out` says, by column, why a figure is null. `targets` holds those that apply to a row, each with `met`.
* Rows are saved as they come, progress goes to stderr: a run that is cut leaves what it has measured. The whole takes
  about ten minutes on two quiet cores, `--quick` two.
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
import secagg_stack

OUT = Path(__file__).parent / "out"
PARAMS = (10_000, 100_000, 1_000_000, 10_000_000)
PARTIES = (3, 10)
PROFILES = ("plain", "lead-key", "masked", "threshold", "tenseal-ckks-shared-key")
STACK_PROFILES = ("plain", "lead-key", "masked", "threshold")
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
        "round_cpu_s": None,
        "node_rss_mb": None,
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
            wanted = {"peak_rss_mb": 1_000.0, "node_rss_mb": 1_000.0}
    given = {name: bound for name, bound in wanted.items() if found.get(name) is not None}
    return {name: {"at_most": bound, "met": found[name] <= bound} for name, bound in given.items()}


def left_out(found: dict[str, Any]) -> dict[str, str]:
    """Return, by column, why a row has no figure there."""
    why = {
        "keyholder_s": "nobody shares a key here",
        "ceremony_s": "there is no ceremony here",
        "round_wall_s": secagg_stack.NOT_MEASURED,
        "round_cpu_s": secagg_stack.NOT_MEASURED,
        "node_rss_mb": "measured over the whole stack with 1e7 parameters under `threshold`",
    }
    if found["profile"] not in STACK_PROFILES:
        why |= dict.fromkeys(("round_wall_s", "round_cpu_s", "node_rss_mb"), "no profile of this system")
    elif found["parameters"] == "agg-i32":
        why |= dict.fromkeys(("round_wall_s", "round_cpu_s", "node_rss_mb"), "integers are summed for statistics")
    return {name: reason for name, reason in why.items() if found.get(name) is None} | found.get("left_out", {})


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


class Book:
    """The rows so far, on disk after each, and how far the run is."""

    def __init__(self, path: Path, steps: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path, self._steps, self._done = path, steps, 0
        self._begun = time.monotonic()

    def step(self, text: str) -> None:
        """Tell on stderr that a step is done."""
        self._done += 1
        elapsed_s = time.monotonic() - self._begun
        load = os.getloadavg()[0]
        print(f"[{self._done}/{self._steps}, {elapsed_s:.0f} s, load {load:.1f}] {text}", file=sys.stderr, flush=True)

    def add(self, row: dict[str, Any]) -> None:
        """Save and print a row."""
        self.rows.append(row)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=2) + "\n")
        part.replace(self._path)
        print(json.dumps(row), flush=True)
        said = {
            name: row.get(name) for name in ("contributor_s", "round_wall_s", "peak_rss_mb", "error") if name in row
        }
        self.step(f"{row['profile']} {row['params']:,} x {row['parties']}: {said}")


def bench(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row that is asked for."""
    sizes = given.params or (PARAMS[:3] if given.quick else PARAMS)
    rows = [(name, size, n) for size in sizes for n in given.parties for name in given.profile]
    if "threshold" in given.profile:
        rows += [(I32, I32_PARAMS, n) for n in given.parties]
    wanted: list[secagg_stack.Setting] = []
    if not given.quick and 3 in given.parties:
        wanted = secagg_stack.settings((name for name in STACK_PROFILES if name in given.profile), sizes)
    book = Book(OUT / "secagg.json", len(rows) + len(wanted))
    wall = secagg_stack.by_row(
        wanted, lambda each, facts: book.step(f"a round of {each.profile} {each.params:,} x 3 over the stack: {facts}")
    )
    for name, size, n in rows:
        found = apart(name, size, n)
        if n == 3:
            found |= wall.get((name, size), {})
        if "error" not in found:
            found |= {"left_out": left_out(found), "targets": targets(found)}
        book.add({**found, "commit": cast.commit()})
    return book.rows


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
    if any("error" in each for each in bench(given)):
        sys.exit(1)


if __name__ == "__main__":
    main()
