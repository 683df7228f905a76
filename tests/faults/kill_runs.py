"""`make faults`: runs of one consortium, each with a `kill -9` at a random moment of a random process.

Rules:
1. One long-lived consortium of real processes; a killed coordinator or node is started again at once, as systemd would,
   everything else by its parent. The seed is printed first and fixes victims and moments (as parts of an undisturbed
   run's time); which instruction a victim dies in is the machine's.
2. The app (`tally`) draws nothing from the run's id and sums exactly, so its final model is the same bits in every
   undisturbed run with the same `seed` in its run config, whatever the agreement: that is what runs are compared by.
3. An order counts as executed twice if an app began it after a moment at which its node's journal said that it was
   finished. Orders that a kill left unfinished run again; then both executions must have drawn the same numbers.
4. With `--replicas 2` the coordinator is two processes on one PostgreSQL and one Temporal, and the database, Temporal
   and the network are among the victims: a killed server is started again at once, a partition between two of nodes,
   replicas, database and Temporal ends after a drawn time, at the latest when the run has ended. Each of them is in a
   network namespace of its own, whose router drops every packet; without root TCP gates stand in, and are named.
5. Every run has a deadline; when it passes, who waits for whom is printed, and the run counts as not finished.

Last line: `faults: N runs, N finished, M bit-equal, 0 executed twice`. Exit status 0 only if everything held.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import journals
from harness.consortium import LEAD, ORGS, Consortium, Ended, NotInTime
from harness.namespaces import missing
from harness.replicated import PARTITION_S, ReplicatedConsortium

from comity.wire.errors import ComityError
from comity_agents.flower.bundle import build_app
from comity_client.demo.export import receipts
from comity_crypto.secagg.bfv.encoder import LEVELS
from comity_crypto.secagg.masked.encoder import LEVELS as MASKED_LEVELS

APP = Path(__file__).resolve().parent / "tally"
ROUNDS = 5
RECORDS = 30
RUN_DEADLINE_S = 90.0
UNDISTURBED_RUNS = 2
TRIES_MAX = 5
EARLIER = 0.8
VICTIM_WAIT_S = 20.0
SETTLE_S = 20.0
SHORT_LIVED = ("serverapp", "worker")
PARTS = Consortium.parts
# Under a sum a step must land on the encoder's grid: range = 8 * clip / sqrt(64 values) = its levels, of 1 each.
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lead-key": {"clip_norm": str(LEVELS), "weight_max": 4},
    "masked": {"clip_norm": str(MASKED_LEVELS), "weight_max": 4},
    "threshold": {"clip_norm": str(LEVELS), "weight_max": 4},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Whom to kill or what to cut (for `lasts_s`), and when: `moment` is the part of an undisturbed run's time that has
    passed, of the training for processes that live during training only."""

    part: str
    org: str
    moment: float
    lasts_s: float = 0.0


@dataclass(slots=True)
class Report:
    """What one disturbed run came to."""

    number: int
    plan: Plan
    killed: bool = False
    state: str = "NOT FINISHED"
    error: Any = None
    bit_equal: bool = False
    twice: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def ok(self) -> bool:
        """True if everything held."""
        return self.state == "COMPLETED" and self.bit_equal and not self.twice and not self.faults


class Proof:
    """The runs of one consortium, and what is checked after each."""

    def __init__(self, consortium: Consortium, seed: int) -> None:
        self._consortium = consortium
        self._chance = random.Random(seed)
        self._numbers = 0
        self._model = ""
        self._whole_s = self._training_s = 0.0
        self.undisturbed_s = 0.0
        self.completed = 0

    def undisturbed(self) -> Ended:
        """Learn the model and the time that an undisturbed run takes; returns the last one."""
        models = set()
        for _ in range(UNDISTURBED_RUNS):
            begun = time.monotonic()
            agreement = self._consortium.agreed(self._propose())
            run = self._consortium.run_of(agreement)
            started = time.monotonic()
            ended = self._consortium.ended(run)
            assert ended.state == "COMPLETED", ended
            if isinstance(self._consortium, ReplicatedConsortium):  # or faults of the engine would prove nothing
                self._consortium.until(
                    partial(self._consortium.supervised_by_engine, run), "the engine has closed the run"
                )
            self._whole_s, self._training_s = time.monotonic() - begun, time.monotonic() - started
            models |= set(ended.models.values())
            twice, faults = self.judge(ended)
            self.completed += 1
            assert not twice, twice
            assert not faults, faults
        assert len(models) == 1, "the app is not deterministic"
        self._model = models.pop()
        self.undisturbed_s = self._whole_s
        return ended

    def plan(self) -> Plan:
        """Draw the next victim and moment."""
        part = self._chance.choice(self._consortium.parts)
        org = self._chance.choice(ORGS if part == "worker" else ORGS[1:])
        org = LEAD if part in ("lead", "serverapp") else org
        if part in ("coordinator", "temporal"):
            org = self._chance.choice(self._consortium.coordinators)
        elif part == "database":
            org = part
        lasts_s = 0.0
        if isinstance(self._consortium, ReplicatedConsortium) and part == "partition":
            org = " and ".join(self._chance.choice(self._consortium.cuts))
            lasts_s = round(self._chance.uniform(*PARTITION_S), 1)
        return Plan(part, org, self._chance.uniform(0.0, 0.85), lasts_s)

    def disturbed(self, number: int, plan: Plan) -> Report:
        """Run once with one kill. A run that was over before the kill is repeated, with an earlier one."""
        for tried in range(TRIES_MAX):
            report = Report(number, replace(plan, moment=plan.moment * EARLIER**tried))
            begun = time.monotonic()
            try:
                self._once(report)
            except (NotInTime, AssertionError, ComityError) as error:
                report.faults.append(str(error))
                report.killed = True
            report.took_s = round(time.monotonic() - begun, 2)
            if report.killed:
                return report
        report.faults.append("the run was over before the kill, every time")
        return report

    def _once(self, report: Report) -> None:
        consortium = self._consortium
        training = threading.Event()
        with Striker(consortium, report.plan, training, self._whole_s, self._training_s) as striker:
            agreement = consortium.agreed(self._propose(), RUN_DEADLINE_S)
            run = consortium.run_of(agreement, RUN_DEADLINE_S)
            training.set()
            ended = consortium.ended(run, RUN_DEADLINE_S)
        if isinstance(consortium, ReplicatedConsortium):
            consortium.heal()
        report.killed = striker.struck_at > 0
        report.state, report.error = ended.state, ended.error
        report.bit_equal = set(ended.models.values()) == {self._model} and set(ended.models) == set(ORGS)
        report.twice, report.faults = self.judge(ended, striker)
        self.completed += ended.state == "COMPLETED"

    def _propose(self) -> str:
        self._numbers += 1
        wish = {
            "app": str(APP),
            "purpose": "research",
            "dataset": "numbers",
            "title": f"tally {self._numbers}",
            "rounds": ROUNDS,
            "deadline_s": 600,
            "reply_timeout_s": 60,
            "terms": TERMS[self._consortium.aggregation],
        }
        return self._consortium.propose(wish, RUN_DEADLINE_S)

    def judge(self, ended: Ended, striker: Striker | None = None) -> tuple[list[str], list[str]]:
        """Return the orders that were executed twice, and what else is wrong in the nodes' books about a run."""
        twice, faults = [], []
        for org in ORGS:
            home = self._consortium.home(org)
            orders = journals.orders(home, ended.run)
            if [each.seq for each in orders] != list(range(ROUNDS)) or {each.outcome for each in orders} != {"result"}:
                faults.append(f"{org} has the orders {[(each.seq, each.state, each.outcome) for each in orders]}")
            spent = journals.spent(home, ended.agreement)
            if (spent.get("uses"), spent.get("rounds"), spent.get("releases")) != (1, ROUNDS, ROUNDS):
                faults.append(f"{org} charged {spent} for {ROUNDS} rounds")
            told = journals.executions(home, ended.run)
            for order in orders:
                own = [each for each in told if each.order == order.digest]
                begun = [each.at for each in own if each.result is None]
                if striker is None and len(begun) != 1:
                    faults.append(f"{org} began order {order.seq} {len(begun)} times in an undisturbed run")
                known = striker is not None and order.digest in striker.finished.get(org, ())
                if striker is not None and known and any(at > striker.read_at for at in begun):
                    twice.append(f"{org} order {order.seq} {order.digest[:12]}")
                if len({each.result for each in own if each.result is not None}) > 1:
                    faults.append(f"{org} order {order.seq} came out differently when it ran again")
        return twice, faults

    def books(self, folder: Path, runs: int) -> list[str]:
        """Return what is wrong in the ledger after `runs` runs; grants and receipts are compared for each order."""
        consortium, faults = self._consortium, []
        consortium.until(lambda: all(journals.unsent(consortium.home(org)) == 0 for org in ORGS), "all is handed in")
        consortium.until(lambda: consortium.unordered() == 0, "the ledger has all in order")
        home, export = str(consortium.home("coordinator")), folder / "ledger.jsonl"
        checked = consortium.comity("coordinator", "ledger", "fsck", home, "--json")
        if checked.returncode != 0:
            faults.append(f"fsck: {checked.stdout[:2000]}{checked.stderr[-500:]}")
        consortium.ok("coordinator", "ledger", "export", home, str(export))
        verified = consortium.comity("ledger", "verify", str(export), "--genesis", consortium.genesis, "--json")
        if verified.returncode != 0:
            faults.append(f"verify: {verified.stdout[:2000]}{verified.stderr[-500:]}")
        found = receipts(export)
        counts = Counter((each["issuer"], each["run"], each["seq"]) for each in found if each["outcome"] == "result")
        faults += [
            f"{count} receipts of {org} for order {seq} of {run}"
            for (org, run, seq), count in counts.items()
            if count != 1
        ]
        if len(counts) != runs * ROUNDS * len(ORGS):
            faults.append(f"{len(counts)} orders have receipts, not {runs * ROUNDS * len(ORGS)}")
        for org in ORGS:
            for agreement in {each["agreement"] for each in found}:
                own = [each for each in found if (each["issuer"], each["agreement"]) == (org, agreement)]
                sent = sum(each["egress_bytes"] for each in own)
                charged = journals.spent(consortium.home(org), agreement).get("egress_bytes")
                if charged != sent:
                    faults.append(f"{org} charged {charged} bytes, its receipts say {sent}")
        return faults


class Striker:
    """Kills the victim of a plan at its moment, from a thread of its own, and notes what was finished then."""

    def __init__(
        self, consortium: Consortium, plan: Plan, training: threading.Event, whole_s: float, training_s: float
    ) -> None:
        self.struck_at = 0.0
        self.read_at = 0.0
        self.finished: dict[str, frozenset[str]] = {}
        self._consortium = consortium
        self._plan = plan
        self._training = training
        self._pause_s = plan.moment * (training_s if plan.part in SHORT_LIVED else whole_s)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._strike, name="striker", daemon=True)

    def __enter__(self) -> Striker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._training.set()
        self._thread.join()

    def _strike(self) -> None:
        if self._plan.part in SHORT_LIVED:
            self._training.wait(RUN_DEADLINE_S)
        until = time.monotonic() + self._pause_s
        while not self._over.is_set() and time.monotonic() < until + VICTIM_WAIT_S:
            if time.monotonic() >= until and self._strikes():
                self.struck_at = time.time()
                self.finished = {org: journals.finished(self._consortium.home(org)) for org in ORGS}
                self.read_at = time.time()
                return
            time.sleep(0.005)

    def _strikes(self) -> bool:
        return self._consortium.strike(self._plan.part, self._plan.org, self._plan.lasts_s)


def datasets(folder: Path) -> dict[str, dict[str, Path]]:
    """Write a small table of numbers for each organisation."""
    made: dict[str, dict[str, Path]] = {}
    for place, org in enumerate(ORGS):
        path = folder / f"{org}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "value"))
            writer.writerows((number, (number * 37 + place * 11) % 97) for number in range(RECORDS + place))
        made[org] = {"numbers": path}
    return made


def prove(
    folder: Path, runs: int, seed: int, aggregation: str, *, replicas: int = 1, namespaces: bool = False
) -> tuple[list[Report], list[str], dict[str, Any]]:
    """Do all of it; returns a report for each run, what is wrong in the books, and figures."""
    consortium = Consortium(folder, aggregation)
    if replicas > 1:
        consortium = ReplicatedConsortium(folder, aggregation, namespaces=namespaces)
    begun = time.monotonic()
    try:
        consortium.found(datasets(folder), (build_app(APP).digest,))
        proof = Proof(consortium, seed)
        reports = []
        with consortium.supervised():
            proof.undisturbed()
            for number in range(1, runs + 1):
                reports.append(proof.disturbed(number, proof.plan()))
                say(line_of(reports[-1]))
        faults = proof.books(folder, proof.completed)
        faults += [f"{name} ended by itself with status {status}" for name, status in consortium.deaths if status != -9]
        figures: dict[str, Any] = {
            "undisturbed_s": round(proof.undisturbed_s, 2),
            "took_s": round(time.monotonic() - begun, 1),
        }
        if isinstance(consortium, ReplicatedConsortium):
            figures["workflows"] = dict(Counter(consortium.temporal.workflows().values()))
    finally:
        left = consortium.stop()
    if left:
        faults.append(f"{len(left)} processes were left over")
    return reports, faults, figures


def line_of(report: Report) -> str:
    """Return one line about a run, and more if something did not hold."""
    plan = report.plan
    whom = plan.part if plan.org == plan.part or not plan.org else f"{plan.part} of {plan.org}"
    whom += f" for {plan.lasts_s:.1f} s" if plan.lasts_s else ""
    how = "bit-equal" if report.bit_equal else "NOT bit-equal"
    line = f"run {report.number:>3}: {whom:<22} at {plan.moment:.2f}: {report.state}, {how}, {report.took_s:.1f} s"
    wrong = [f"executed twice: {each}" for each in report.twice] + report.faults
    if report.error:
        wrong.append(json.dumps(report.error))
    return "\n      ".join([line, *wrong])


def say(text: str) -> None:
    """Print beside the result."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Read the options, prove, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, help="by default drawn, and printed")
    parser.add_argument("--aggregation", default="plain", choices=tuple(TERMS))
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 2), help="of the coordinator; 2 on PostgreSQL")
    parser.add_argument("--database", default="", choices=("", "sqlite", "postgresql"), help="follows from --replicas")
    parser.add_argument("--json", action="store_true", help="print one JSON object before the last line")
    parser.add_argument("--keep", type=Path, help="a folder for the files, kept; by default a temporary one")
    asked = parser.parse_args()
    database = "postgresql" if asked.replicas > 1 else "sqlite"
    if asked.database not in ("", database):
        parser.error("one replica runs on SQLite here, two on PostgreSQL")
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    why = missing() if asked.replicas > 1 else ""
    less = f", partitions by gates ({why})" if why else ""  # the last line says it too
    network = less or (", partitions by namespaces" if asked.replicas > 1 else "")
    print(f"seed {seed}, {asked.runs} runs, {asked.aggregation}, {asked.replicas} on {database}{network}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends as after ctrl-C
    with tempfile.TemporaryDirectory(prefix="comity-faults-") as temporary:
        folder = asked.keep or Path(temporary)
        reports, faults, figures = prove(
            folder, asked.runs, seed, asked.aggregation, replicas=asked.replicas, namespaces=not why
        )
    finished = sum(each.state == "COMPLETED" for each in reports)
    equal = sum(each.bit_equal for each in reports)
    twice = sum(len(each.twice) for each in reports)
    for fault in faults:
        say(f"books: {fault}")
    if asked.json:
        rows = [{**asdict(each), "ok": each.ok} for each in reports]
        print(json.dumps({"seed": seed, "aggregation": asked.aggregation, **figures, "runs": rows, "books": faults}))
    say(f"{figures}")
    print(
        f"faults: {len(reports)} runs, {finished} finished, {equal} bit-equal, {twice} executed twice{less}",
        flush=True,
    )
    return 0 if all(each.ok for each in reports) and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
