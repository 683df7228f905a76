"""What an agreement costs: `bench_negotiation.py [--orgs 3 50] [--proposals 40] [--dispatch-only]`.

A coordinator process as in production, and n nodes with mutual TLS, journals, the shipped policy and the ledger; the
nodes share a few processes (`node_host.py`). Policies answer by themselves. Writes `benchmarks/out/negotiation.json`.

Rows `{orgs, median_s, p95_s, proposals_per_s, final_median_s, witnessed_median_s}`:
* `median_s`, `p95_s`: from the wish at the proposer's node (drafting, sealing and uploading the app included) to the
  certificate of all parties verified there and its place in the ledger proved; one proposal after the other, each
  begun when nobody has work left from the one before;
* `final_median_s`: until every party's node has both;
* `witnessed_median_s`: until every party's node has it below a checkpoint that enough witnesses have cosigned, which is
  what runs and orders wait for; rounds of cosigning are at least a second apart;
* `proposals_per_s`: several proposals at once, by the same proposer;
* `cpu_s`: processor time of coordinator and all nodes for one proposal, which hardly depends on the machine's load;
  with `orgs` nodes on two cores an agreement cannot take less than half of it;
* `nodes_per_process`, `load`: what shared the two cores, and what else the machine had to do.

Row `{check: "dispatch", p50_us, p99_us, engine_alone_p50_us, commit_p50_us}`: all checks of one order (signature,
agreement, certificate, conformity, grant, policy), the policy engine asked alone with the same document, and the
journal's transaction that charges the grant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cast
import dispatch_checks
import effort

from comity_client.commands.doctor import comity_command
from comity_client.demo.cast import Cast, free_port
from comity_client.sdk import Node
from comity_node.membership.service import join
from comity_node.training.datasets import DatasetCatalogue

OUT = Path(__file__).parent / "out" / "negotiation.json"
TARGETS_S = {3: 0.2, 50: 2.0}
PROPOSALS = {3: 40, 50: 8}
AT_ONCE = {3: 24, 50: 4}
WARM_UP = 2
ORG = "org-{:02d}"


class Host:
    """One process of nodes."""

    def __init__(self, homes: list[Path], log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("node_host.py")), *map(str, homes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0"},
            )
        self.read()

    def tell(self, what: str, value: Any) -> None:
        """Give a command; `read` returns its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({what: value}).encode() + b"\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Return the answer to the command before. Raises `RuntimeError` if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of nodes ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Consortium:
    """A coordinator and `count` nodes in `processes` processes, with the genesis signed."""

    def __init__(self, folder: Path, count: int, processes: int) -> None:
        self._folder = folder
        self._cast = Cast(folder, comity_command())
        self.hosts: list[Host] = []
        orgs = [ORG.format(number) for number in range(count)]
        self._found(orgs)
        homes = [folder / org for org in orgs]
        shares = [homes[:1], *(homes[1 + number :: processes] for number in range(processes))]
        self.hosts += [
            Host(share, folder / "logs" / f"host-{number}.log") for number, share in enumerate(shares) if share
        ]
        node = Node(homes[0])
        name = node.genesis()["draft"]["name"]
        node.close()
        self.all("sign", name)
        self.all("charter", name)

    def all(self, what: str, value: Any) -> list[dict[str, Any]]:
        """Give every process a command; returns their answers."""
        for host in self.hosts:
            host.tell(what, value)
        return [host.read() for host in self.hosts]

    def spent_s(self) -> float:
        """Return the processor time that coordinator and nodes have taken."""
        return sum(effort.spent(pid) for pid in (self._cast.pids()["coordinator"], *(host.pid for host in self.hosts)))

    def propose(self, titles: list[str]) -> dict[str, Any]:
        """Propose at the first node, all at once."""
        self.hosts[0].tell("propose", titles)
        return self.hosts[0].read()

    def close(self) -> None:
        """End every process."""
        for host in reversed(self.hosts):
            host.close()
        self._cast.stop()

    def _found(self, orgs: list[str]) -> None:
        cast_, home = self._cast, self._folder / "coordinator"
        app = cast_.run("app", "app", "digest", str(cast.APP), "--json")["digest"]
        made = cast_.run(
            "coordinator",
            *("coordinator", "init", str(home), "--consortium", "bench", "--first-member", orgs[0], "--json"),
            *("--address", f"127.0.0.1:{free_port()}"),
        )
        cast_.start("coordinator", "coordinator", "up", str(home))
        cast_.until("coordinator", (home / "ready.json").exists, cast.READY_TIMEOUT_S)
        self._join(orgs[0], made["token"], app)
        sponsor = Host([self._folder / orgs[0]], self._folder / "logs" / "sponsor.log")
        with Node(self._folder / orgs[0]) as node:
            for org in orgs[1:]:
                self._join(org, node.invite(org)["token"], app)
        sponsor.close()

    def _join(self, org: str, token: str, app: str) -> None:
        home = self._folder / org
        asyncio.run(join(token, home, None))
        path = home / "policy" / "data.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "app_digests": [app]}))
        table = home / "patients.csv"
        table.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(cast.ROWS)))
        DatasetCatalogue(home).add("patients", str(table), classification="pseudonymous")


def measure(count: int, proposals: int, processes: int, keep: Path | None = None) -> dict[str, Any]:
    """Return the row for `count` organisations."""
    folder = keep or Path(tempfile.mkdtemp(prefix="comity-bench-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    consortium = None
    try:
        load = os.getloadavg()[0]
        consortium = Consortium(folder, count, processes)
        for number in range(WARM_UP):
            done = consortium.propose([f"warm-up {number}"])
            consortium.all("final", done["agreements"])
            consortium.all("witnessed", done["agreements"])
        proved, final, witnessed, spent_s = [], [], [], consortium.spent_s()
        for number in range(proposals):
            begun = time.time()
            done = consortium.propose([f"proposal {number}"])
            proved += done["seconds"]
            final.append(max(each["at"] for each in consortium.all("final", done["agreements"])) - begun)
            # The next one begins when nobody has work left from this one.
            witnessed.append(max(each["at"] for each in consortium.all("witnessed", done["agreements"])) - begun)
        cpu_s = (consortium.spent_s() - spent_s) / proposals
        at_once = AT_ONCE.get(count, 4)
        begun = time.time()
        done = consortium.propose([f"together {number}" for number in range(at_once)])
        together_s = time.time() - begun
    finally:
        if consortium is not None:
            consortium.close()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    proved.sort()
    return {
        "orgs": count,
        "median_s": round(statistics.median(proved), 4),
        "p95_s": round(proved[min(len(proved) - 1, int(0.95 * len(proved)))], 4),
        "proposals_per_s": round(at_once / together_s, 2),
        "final_median_s": round(statistics.median(final), 4),
        "witnessed_median_s": round(statistics.median(witnessed), 4),
        "cpu_s": round(cpu_s, 3),
        "proposals": proposals,
        "target_s": TARGETS_S.get(count),
        "nodes_per_process": -(-(count - 1) // processes),
        "load": round(load, 2),
        "commit": cast.commit(),
    }


def main() -> None:
    """Measure, print each row, write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orgs", type=int, nargs="*", default=[3, 50])
    parser.add_argument("--proposals", type=int, default=0, help="how many, one after the other")
    parser.add_argument("--processes", type=int, default=4, help="of nodes, beside the proposer's")
    parser.add_argument("--dispatch-only", action="store_true")
    parser.add_argument("--keep", type=Path, help="leave the folder with homes and logs here")
    wanted = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if not wanted.dispatch_only:
        for count in wanted.orgs:
            rows.append(measure(count, wanted.proposals or PROPOSALS.get(count, 10), wanted.processes, wanted.keep))
            print(json.dumps(rows[-1]), flush=True)
    rows.append(dispatch_checks.row())
    print(json.dumps(rows[-1]), flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
