"""A coordinator and three nodes as real processes, started through the `comity` command, for measuring.

The coordinator and every node run as in production: mutual TLS, policies, journals, receipts, sandbox, workflow engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import effort

from comity.wire.errors import ComityError, ErrorCode
from comity_client.commands.doctor import comity_command
from comity_client.demo.cast import Cast, free_port
from comity_client.documents import TrainWish
from comity_client.follow import AGREED, negotiated, run_of
from comity_client.sdk import Node

ORGS = ("hospital-a", "hospital-b", "hospital-c")
LEAD = ORGS[0]
APP = Path(__file__).parent / "dummy_app"
DATASET = "patients"
ROWS = 200
READY_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 900.0
_LOOK_S = 0.02


@dataclass(frozen=True)
class RunOutcome:
    """One run: milliseconds since the Unix epoch at which each round's aggregate was there, and the lead's events."""

    run: str
    ended_ms: list[int]
    events: list[dict[str, Any]]

    @property
    def rounds_s(self) -> list[float]:
        """Seconds from one round's aggregate to the next one's; the first round, which starts workers, is not in it."""
        return [(after - before) / 1_000 for before, after in zip(self.ended_ms, self.ended_ms[1:], strict=False)]


class Rig:
    """The cast and its clients."""

    def __init__(self, folder: Path) -> None:
        self.cast = Cast(folder, comity_command())
        self.nodes: dict[str, Node] = {}
        self.ready_s: dict[str, float] = {}
        self.ready_cpu_s: dict[str, float] = {}
        self.app: dict[str, Any] = {}
        self._folder = folder

    def start(self, workflows: str = "temporal") -> None:
        """Start everything, up to a charter in force."""
        cast, home = self.cast, self._folder / "coordinator"
        address = f"127.0.0.1:{free_port()}"
        self.app = cast.run("app", "app", "digest", str(APP), "--json")
        made = cast.run(
            "coordinator",
            *("coordinator", "init", str(home), "--consortium", "bench", "--address", address),
            *("--first-member", LEAD, "--workflows", workflows, "--json"),
        )
        begun = time.monotonic()
        cast.start("coordinator", "coordinator", "up", str(home))
        self.until("coordinator", (home / "ready.json").exists)
        self._ready("coordinator", begun)
        self._join(LEAD, made["token"])
        self._up(LEAD)
        for org in ORGS[1:]:
            self._join(org, self.nodes[LEAD].invite(org)["token"])
            self._up(org)
        name = self.nodes[LEAD].genesis()["draft"]["name"]
        for node in self.nodes.values():
            node.sign_genesis(name)
        for org, node in self.nodes.items():
            self.until(org, lambda node=node: node.status()["genesis"] == name)  # type: ignore[misc]

    def close(self) -> None:
        """End every process."""
        for node in self.nodes.values():
            node.close()
        self.cast.stop()

    def set_aggregation(self, profile: str) -> None:
        """Let every node's policy ask for `profile`."""
        for org, node in self.nodes.items():
            path = self._folder / org / "policy" / "data.json"
            policy = json.loads(path.read_text())
            policy.update(aggregation=profile, app_digests=[self.app["digest"]])
            policy["egress"]["size_bytes_max"] = 1 << 30
            path.write_text(json.dumps(policy, indent=2))
            node.reload_policy()

    def train(self, profile: str, params: int, rounds: int, timeout_s: float = RUN_TIMEOUT_S) -> RunOutcome:
        """Negotiate and run one training. Raises `ComityError` or `RuntimeError` with what the lead's events say."""
        node = self.nodes[LEAD]
        config: dict[str, bool | int | str] = {"params": params}
        wish: TrainWish = {
            "app": str(APP),
            "purpose": "research",
            "dataset": DATASET,
            "deadline_s": 600,
            "rounds": rounds,
            "aggregation": profile,
            "run_config": config,
        }
        proposal = node.propose(wish)["proposal_id"]
        news = negotiated(node, proposal, lambda _: None, READY_TIMEOUT_S)["news"]
        if news is None or news["state"] != AGREED or news["agreement"] is None:
            raise RuntimeError(f"not agreed: {json.dumps(news)}")
        run = run_of(node, news["agreement"], READY_TIMEOUT_S)["run"]
        self.until(LEAD, lambda: node.run(run).get("ended_at") is not None, timeout_s, 0.25)
        events = [dict(event) for event in node.events(run, timeout_s=READY_TIMEOUT_S)]
        state = node.run(run)["state"]
        ended = [each["at_ms"] for each in events if each["kind"] == "metrics" and each["stage"] == "train"]
        if state.upper() != "COMPLETED" or len(ended) != rounds:
            raise RuntimeError(f"{state}: {json.dumps([e for e in events if e['kind'] != 'metrics'])[:3000]}")
        return RunOutcome(run, ended, events)

    def until(
        self, name: str, ready: Callable[[], bool], timeout_s: float = READY_TIMEOUT_S, look_s: float = _LOOK_S
    ) -> None:
        """Wait until `ready()`; an API that does not answer yet is not ready."""
        until = time.monotonic() + timeout_s
        while not _answers(ready):
            if complaints := self.cast.ended():
                raise RuntimeError("\n".join(complaints))
            if time.monotonic() > until:
                raise RuntimeError(f"{name} was not ready after {timeout_s:.0f} s")
            time.sleep(look_s)

    def _ready(self, name: str, begun: float) -> None:
        self.ready_s[name] = time.monotonic() - begun
        self.ready_cpu_s[name] = effort.spent(self.cast.pids()[name])

    def _join(self, org: str, token: str) -> None:
        home = self._folder / org
        self.cast.run(org, "node", "join", "-", "--home", str(home), "--json", secret=f"{token}\n")

    def _up(self, org: str) -> None:
        home = self._folder / org
        begun = time.monotonic()
        self.cast.start(org, "node", "up", "--home", str(home))
        node = self.nodes[org] = Node(home)
        self.until(org, lambda: bool(node.status()["link"]["connected"]))
        self._ready(org, begun)
        data = home / "patients.csv"
        data.write_text("x,y\n" + "".join(f"{row},{row % 2}\n" for row in range(ROWS)))
        node.add_dataset(DATASET, str(data), "pseudonymous")


@contextmanager
def rig(workflows: str = "temporal", keep: Path | None = None) -> Iterator[Rig]:
    """Start a rig in a new folder and end it; the folder goes with it unless it is `keep`."""
    folder = keep or Path(tempfile.mkdtemp(prefix="comity-bench-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = Rig(folder)
    try:
        found.start(workflows)
        yield found
    finally:
        found.close()
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def commit() -> str:
    """Return the commit that is measured, or nothing outside a checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _answers(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except ComityError as error:
        if error.code in (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT):
            return False
        raise
