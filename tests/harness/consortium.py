"""A coordinator and three nodes as real processes over mutual TLS, joined, with the genesis signed: for tests.

Rules:
1. Each process has its own session, folder and log; whatever a test does, `stop` leaves nothing running.
2. While `supervised`, a coordinator or node that ends is started again at once, as systemd would; everything else is
   the business of its parent.
3. Every wait has a bound, and what a bound that passed prints says who waits for whom.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness import journals, processes

from comity.wire.errors import ComityError, ErrorCode
from comity_client.demo.cast import free_port
from comity_client.follow import AGREED, ENDED_WITHOUT, RUN_ENDINGS, refusals, waits_of
from comity_client.sdk import Node

ORGS = ("hospital-a", "hospital-b", "hospital-c")
LEAD = ORGS[0]
CONSORTIUM = "oncology"
READY_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 120.0
STOP_GRACE_S = 15.0
LOOK_AGAIN_S = 0.05
COMITY = (str(Path(sys.executable).with_name("comity")),)

T = TypeVar("T")


class NotInTime(AssertionError):  # noqa: N818 - reads as a sentence
    """Something did not happen before its deadline; the text says who waits for whom."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its state, its error and, if all went well, the digest of the model at each organisation."""

    run: str
    agreement: str
    state: str
    error: dict[str, Any] | None
    models: dict[str, str]


class Consortium:
    """The processes of one consortium.

    `commands` replaces `comity` for single processes, by their name; "" for the commands of people.
    """

    parts: tuple[str, ...] = ("coordinator", "temporal", "serverapp", "lead", "node", "worker")
    """What `strike` knows; of `coordinators`, `node` and `worker` there are several."""
    coordinators: tuple[str, ...] = ("coordinator",)

    def __init__(
        self, folder: Path, aggregation: str = "plain", commands: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.folder = folder
        self.aggregation = aggregation
        self.genesis = ""
        self.nodes: dict[str, Node] = {}
        self.deaths: list[tuple[str, int]] = []
        self._commands = dict(commands or {})
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        (folder / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)

    # -- processes

    def home(self, name: str) -> Path:
        """Return the folder of the coordinator or of an organisation."""
        return self.folder / name

    def pid(self, name: str) -> int:
        """Return the number of the coordinator's or a node's process."""
        with self._lock:
            return self._children[name].pid

    def use(self, name: str, command: tuple[str, ...]) -> None:
        """Start a process by another command than `comity` from now on."""
        self._commands[name] = command

    def start(self, name: str) -> None:
        """Start the coordinator or a node; does not wait."""
        home = str(self.home(name))
        what = ("coordinator", "up", home) if name.startswith("coordinator") else ("node", "up", "--home", home)
        with self._lock, self.log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                [*self._commands.get(name, COMITY), *what],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(name),
                start_new_session=True,
            )

    def environment(self, name: str) -> dict[str, str]:
        """Return what a process finds in its environment; "" for commands."""
        return _environment()

    def ready(self, name: str) -> bool:
        """Tell whether the process that was started last serves; a node is also connected."""
        with self._lock:
            child = self._children[name]
        if child.poll() is not None:
            raise AssertionError(f"{name} ended with status {child.returncode}:\n{self.tail(name)}")
        if name.startswith("coordinator"):
            try:
                return bool(json.loads((self.home(name) / "ready.json").read_bytes())["pid"] == child.pid)
            except (OSError, ValueError):
                return False
        status = self.nodes[name].status()
        return bool(status["pid"] == child.pid and status["link"]["connected"])

    def up(self, *names: str) -> None:
        """Start processes and wait until each serves."""
        for name in names:
            self.start(name)
        for name in names:
            if not name.startswith("coordinator"):
                self.nodes.setdefault(name, Node(self.home(name)))
            self.until(lambda name=name: self.ready(name), f"{name} is ready", READY_TIMEOUT_S)

    def down(self, name: str) -> int:
        """Ask a process to end; returns its exit status."""
        with self._lock:
            child = self._children.pop(name)
        child.terminate()
        try:
            return child.wait(STOP_GRACE_S)
        finally:
            _end_group(child)

    def kill(self, name: str) -> None:
        """`kill -9` the coordinator or a node, and gone."""
        with self._lock:
            child = self._children.pop(name)
        child.kill()
        child.wait(STOP_GRACE_S)

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Start again whatever ends of coordinator and nodes; `deaths` gets each with its status."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(LOOK_AGAIN_S):
                with self._lock:
                    for name, child in list(self._children.items()):
                        status = child.poll()
                        if status is not None and not stop.is_set():
                            self.deaths.append((name, status))
                            self.start(name)

        thread = threading.Thread(target=watch, name="systemd", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def stop(self) -> list[int]:
        """End everything; returns the numbers of processes that were left over and had to be killed."""
        for node in self.nodes.values():
            node.close()
        with self._lock:
            children, self._children = list(self._children.items()), {}
        for _, child in reversed(children):
            if child.poll() is None:
                child.terminate()
        until = time.monotonic() + STOP_GRACE_S
        for _, child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, until - time.monotonic()))
            _end_group(child)
        time.sleep(LOOK_AGAIN_S)
        left = processes.living_in(self.folder)
        for pid in left:
            processes.kill(pid)
        return left

    # -- commands

    def comity(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as a person would."""
        return subprocess.run(
            [*self._commands.get("", COMITY), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env=self.environment(""),
        )

    def ok(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command that must succeed; returns its JSON."""
        done = self.comity(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str, stdin: str = "") -> dict[str, Any]:
        """Run a command that must be refused; returns the catalogue's error."""
        done = self.comity(*arguments, "--json", stdin=stdin)
        assert done.returncode != 0, done.stdout
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        return error

    def log(self, name: str) -> Path:
        """Return where a process's words are."""
        return self.folder / "logs" / f"{name}.log"

    def tail(self, name: str, lines: int = 12) -> str:
        """Return a process's last words."""
        try:
            return "\n".join(f"  {line[:400]}" for line in self.log(name).read_text().splitlines()[-lines:])
        except OSError:
            return "  (nothing)"

    def unordered(self) -> int:
        """Return how many statements of the ledger have no index yet."""
        return journals.unordered(self.home("coordinator"))

    def strike(self, part: str, name: str, lasts_s: float = 0.0) -> bool:
        """Do to a part what a fault does; `name` is the process or the organisation. False if it is not there now."""
        pid = self.pid(name)
        victim = pid if part in ("coordinator", "lead", "node") else processes.playing(pid, part)
        return victim is not None and processes.kill(victim)

    # -- the story

    def found(self, datasets: Mapping[str, Mapping[str, Path]], app_digests: tuple[str, ...], **policy: Any) -> None:
        """Start everything and sign the genesis.

        Args:
            datasets: by organisation, dataset name to file.
            app_digests: the apps that every organisation has reviewed.
            policy: further values of every organisation's `policy/data.json`.
        """
        token = self.found_coordinator()
        self._join(LEAD, token, app_digests, policy)
        self.up(LEAD)
        for org in ORGS[1:]:
            self._join(org, self.nodes[LEAD].invite(org)["token"], app_digests, policy)
        self.up(*ORGS[1:])
        for org in ORGS:
            for name, path in datasets[org].items():
                self.nodes[org].add_dataset(name, str(path), "pseudonymous")
        names = {self.nodes[org].genesis()["draft"]["name"] for org in ORGS}
        assert len(names) == 1, names
        self.genesis = names.pop()
        for org in ORGS:
            self.nodes[org].sign_genesis(self.genesis)
        for org in ORGS:
            self.until(lambda org=org: self.nodes[org].status()["genesis"] == self.genesis, f"{org} has the charter")

    def found_coordinator(self) -> str:
        """Make and start the coordinator; returns the first member's token."""
        made = self.ok(
            *("coordinator", "init", str(self.home("coordinator")), "--consortium", CONSORTIUM),
            *("--first-member", LEAD, "--address", f"127.0.0.1:{free_port()}"),
        )
        self.up("coordinator")
        return str(made["token"])

    def _join(self, org: str, token: str, app_digests: tuple[str, ...], policy: dict[str, Any]) -> None:
        self.ok("node", "join", "-", "--home", str(self.home(org)), stdin=f"{token}\n")
        self.joined(org)
        path = self.home(org) / "policy" / "data.json"
        data = json.loads(path.read_text())
        path.write_text(
            json.dumps({**data, "app_digests": list(app_digests), "aggregation": self.aggregation, **policy})
        )

    def joined(self, org: str) -> None:
        """Settle what else a node is told before it starts."""

    def propose(self, wish: Mapping[str, Any], timeout_s: float = 60.0) -> str:
        """Propose once, whoever is killed meanwhile; returns the proposal's id. `wish` needs a title of its own."""
        found = [""]

        def done() -> bool:
            for view in self.nodes[LEAD].proposals():
                if view["title"] == wish["title"]:
                    found[0] = view["proposal_id"]
                    return True
            with contextlib.suppress(ComityError):
                self.nodes[LEAD].propose({"aggregation": self.aggregation, **wish})  # type: ignore[typeddict-item]
            return False

        self.until(done, f"{wish['title']} is proposed", timeout_s)
        return found[0]

    def agreed(self, proposal: str, timeout_s: float = 60.0) -> str:
        """Wait for the agreement; returns its digest."""
        news: dict[str, Any] = {}

        def done() -> bool:
            seen = self.nodes[LEAD].proposal(proposal)["news"]
            news.update(seen or {})
            return seen is not None and (seen["state"] == AGREED or seen["state"] in ENDED_WITHOUT)

        self.until(done, f"{proposal} is agreed", timeout_s)
        assert news["state"] == AGREED, (news["state"], refusals(news), news.get("ended"))  # type: ignore[arg-type]
        return str(news["agreement"])

    def run_of(self, agreement: str, timeout_s: float = 60.0) -> str:
        """Wait until the lead knows the agreement's run; returns its id."""
        found: list[str] = []

        def done() -> bool:
            found.extend(view["run"] for view in self.nodes[LEAD].runs() if view["agreement"] == agreement)
            return bool(found)

        self.until(done, f"the agreement {agreement[:8]} has a run", timeout_s)
        return found[0]

    def ended(self, run: str, timeout_s: float = 120.0) -> Ended:
        """Wait until a run is closed at every organisation and, if it completed, each holds the model."""
        views: dict[str, Any] = {}

        def closed() -> bool:
            for org in ORGS:
                views[org] = self.nodes[org].run(run)
            return all(view["closed"] for view in views.values())

        self.until(closed, f"{run} is closed everywhere", timeout_s)
        lead = views[LEAD]
        models: dict[str, str] = {}
        if lead["state"] == "COMPLETED":
            for org in ORGS:
                models[org] = self.until(
                    lambda org=org: str(self.nodes[org].card(run)["content"]["sha256"]), f"{org} has the model of {run}"
                )
        assert lead["state"] in RUN_ENDINGS, lead
        return Ended(run, lead["agreement"], lead["state"], lead["error"], models)

    def train(self, wish: Mapping[str, Any], timeout_s: float = 120.0) -> Ended:
        """Propose, agree and run to the end."""
        agreement = self.agreed(self.propose(wish, timeout_s), timeout_s)
        return self.ended(self.run_of(agreement, timeout_s), timeout_s)

    # -- waiting

    def until(self, condition: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
        """Return the first true value of `condition`; a node that is away or does not know yet is asked again."""
        end, last = time.monotonic() + timeout_s, ""
        while True:
            with warnings.catch_warnings():
                # httpcore leaves the socket of a refused connection to the collector; here nodes are killed on purpose.
                warnings.simplefilter("ignore", ResourceWarning)
                try:
                    if value := condition():
                        return value
                except ComityError as error:
                    if error.code not in (ErrorCode.UNAVAILABLE, ErrorCode.NOT_FOUND, ErrorCode.TIMEOUT):
                        raise
                    last = str(error)
            if time.monotonic() > end:
                raise NotInTime(f"not within {timeout_s:.0f} s: {what} ({last})\n{self.who_waits()}")
            time.sleep(LOOK_AGAIN_S)

    def who_waits(self) -> str:
        """Return who waits for whom at every node, and everybody's last words."""
        lines = []
        for org, node in self.nodes.items():
            try:
                waits = waits_of(node.proposals(), node.runs())
                state = json.dumps(node.status()["link"])
            except ComityError as error:
                waits, state = [], str(error)
            lines.append(f"{org}: link {state}")
            lines += [f"  {each.what} {each.name} {each.state} waits for {', '.join(each.awaited)}" for each in waits]
        for name in sorted({"coordinator", *ORGS, *self._children}):
            lines += [f"{name}'s last words:", self.tail(name)]
        return "\n".join(lines)


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COMITY_")}
    return {**kept, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def _end_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
