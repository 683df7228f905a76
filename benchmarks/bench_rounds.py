"""What a round costs with everything on: `bench_rounds.py [--params 10000 1000000] [--profile plain] [--startup]`.

Three nodes, one of them the lead, and a coordinator run as processes of the `comity` command, with mutual TLS, policy
checks, journals, receipts, sandboxed workers and the workflow engine. The app adds one to every parameter, so that what
is left is ours. Writes `benchmarks/out/rounds.json`, a list of rows; prints each row as it comes.

* `median_s`, `min_s`: from one round's aggregate at the lead to the next one's, by the lead's run events, which carry
  milliseconds. The first round starts the workers and is not in them.
* `bytes_per_round`: payload bytes through the coordinator: one upload and two downloads of the order; `plain`: each of
  the two replies up and down; `lead-key`: three uploads of ciphertexts and one download of their sum; `masked` the same
  of words; `threshold`: three uploads, three downloads of the sum, three shares up and each down to the two others.
* `raw_s`, `ratio`: the median of as many bytes over bare streams (`raw_stream.py`), measured just before and after,
  and `median_s` as its multiple.
* `cpu_s`: processor time of all processes per round; unlike the times above it hardly depends on the machine's load.
* `peak_rss_mb_total`: highest sum of PSS over samples every 50 ms, in a run of its own, since sampling costs time.
* `load`: what the machine's queue of runnable processes was before; other work makes all times worse.

`--startup` writes `benchmarks/out/startup.json` instead: seconds from start to ready, and PSS of idle processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cast
import effort
import memory
import raw_stream

from comity.wire.errors import ComityError
from comity_crypto.sealing import sealed_size
from comity_crypto.secagg.bfv.blobs import blob_bytes
from comity_crypto.secagg.bfv.params import AGG_Q16
from comity_crypto.secagg.frame.blobs import BlobKind
from comity_crypto.secagg.masked.blobs import blob_bytes as masked_bytes

OUT = Path(__file__).parent / "out"
SUMMED = (10_000, 100_000, 1_000_000)
PARAMS = {"plain": (10_000, 1_000_000, 10_000_000), "lead-key": SUMMED, "masked": SUMMED, "threshold": SUMMED}
PROFILES = tuple(PARAMS)
TARGETS_S = {
    ("plain", 10_000): 0.05,
    ("plain", 1_000_000): 0.20,
    ("plain", 10_000_000): 1.5,
    ("threshold", 1_000_000): 2.0,
}
MEMORY_ROUNDS = 4
IDLE_S = 5.0
STREAMS_A_ROUND = 7  # of `raw_stream`: one upload, two downloads, two uploads, two downloads
_BYTES = 4  # of a float32


def rounds_of(params: int) -> int:
    """Return how many rounds give a steady median in a bearable time."""
    return 60 if params <= 100_000 else 25 if params <= 1_000_000 else 9


def bytes_per_round(profile: str, params: int) -> int:
    """Return the payload bytes that cross the coordinator's edge in one round."""
    nodes, order = len(cast.ORGS), sealed_size(params * _BYTES)
    if profile == "plain":
        return nodes * order + 2 * (nodes - 1) * order
    if profile == "masked":  # every party's words in, their sum out to the lead
        return nodes * order + (nodes + 1) * masked_bytes(params)
    chunks = AGG_Q16.chunks_for(-(-params // AGG_Q16.values_per_slot))
    # Every party's ciphertexts in; their sum out to the lead or, under `threshold`, to all, whose shares go to all.
    uploads = nodes + (nodes if profile == "threshold" else 1)
    shares = nodes + nodes * (nodes - 1) if profile == "threshold" else 0
    share = sealed_size(blob_bytes(AGG_Q16, chunks, BlobKind.SHARE))
    return nodes * order + uploads * blob_bytes(AGG_Q16, chunks) + shares * share


def measure(rig: cast.Rig, profile: str, params: int, rounds: int, *, with_memory: bool) -> dict[str, Any]:
    """Return one row."""
    load = os.getloadavg()[0]
    total = bytes_per_round(profile, params)
    payload = total // STREAMS_A_ROUND
    raw = raw_stream.measure(payload, 6)
    with effort.Effort(rig.cast.pids().values()) as spent:
        outcome = rig.train(profile, params, rounds)
    times = outcome.rounds_s
    cpu = spent.between(outcome.ended_ms[0], outcome.ended_ms[-1])
    raw += raw_stream.measure(payload, 6)
    row: dict[str, Any] = {
        "params": params,
        "nodes": len(cast.ORGS),
        "profile": profile,
        "rounds": rounds,
        "median_s": round(statistics.median(times), 4),
        "min_s": round(min(times), 4),
        "bytes_per_round": total,
        "raw_s": round(statistics.median(raw), 4),
        "ratio": round(statistics.median(times) / statistics.median(raw), 1),
        "cpu_s": round(sum(cpu.values()) / (rounds - 1), 4),
        "cpu_ms_each": {name: round(each * 1e3 / (rounds - 1), 1) for name, each in cpu.items() if each > 0},
        "load": round(load, 2),
    }
    if with_memory:
        with memory.PeakMemory(rig.cast.pids().values()) as peak:
            rig.train(profile, params, MEMORY_ROUNDS)
        row["peak_rss_mb_total"] = round(peak.peak_bytes / 1e6, 1)
        row["at_peak_mb"] = {name: round(size / 1e6, 1) for name, size in peak.at_peak.items()}
    return row


def bench(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every row that is asked for; what does not work is a row with its error."""
    rows: list[dict[str, Any]] = []
    for profile in given.profile:
        with cast.rig(given.workflows, given.keep) as rig:
            rig.set_aggregation(profile)
            for params in given.params or PARAMS[profile]:
                rounds = given.rounds or rounds_of(params)
                try:
                    row = measure(rig, profile, params, rounds, with_memory=not given.no_memory)
                except (ComityError, RuntimeError) as error:
                    row = {"params": params, "nodes": len(cast.ORGS), "profile": profile, "error": str(error)[:2_000]}
                target = TARGETS_S.get((profile, params))
                rows.append({**row, "target_s": target, "app": rig.app["digest"], "commit": cast.commit()})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def startup(given: argparse.Namespace) -> dict[str, Any]:
    """Return seconds to ready and megabytes at rest, of each process of the cast."""
    load = os.getloadavg()[0]
    with cast.rig(given.workflows) as rig:
        time.sleep(IDLE_S)
        idle = {
            name: sum(memory.pss_bytes(each) for each in memory.family([pid])) for name, pid in rig.cast.pids().items()
        }
        return {
            "ready_s": {name: round(took, 2) for name, took in rig.ready_s.items()},
            "ready_cpu_s": {name: round(took, 2) for name, took in rig.ready_cpu_s.items()},
            "idle_pss_mb": {name: round(size / 1e6, 1) for name, size in idle.items()},
            "targets": {"coordinator_ready_s": 3.0, "node_ready_s": 2.0, "node_idle_pss_mb": 150.0},
            "load": round(load, 2),
            "commit": cast.commit(),
        }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, nargs="*", help="float32 parameters; by default three sizes a profile")
    parser.add_argument("--profile", nargs="*", default=list(PROFILES), choices=PROFILES)
    parser.add_argument("--rounds", type=int, default=0, help="by default enough for a steady median")
    parser.add_argument("--workflows", default="temporal", choices=("temporal", "timers"))
    parser.add_argument("--no-memory", action="store_true", help="leave the memory runs out")
    parser.add_argument("--keep", type=Path, help="folder for the cast's files and logs; stays")
    parser.add_argument("--startup", action="store_true", help="measure start and rest instead")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever stops us stops the cast with us
    OUT.mkdir(exist_ok=True)
    if given.startup:
        found = startup(given)
        (OUT / "startup.json").write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found))
        return
    rows = bench(given)
    (OUT / "rounds.json").write_text(json.dumps(rows, indent=2) + "\n")
    if any("error" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
