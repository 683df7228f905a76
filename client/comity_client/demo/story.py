"""What happens in the demo, chapter by chapter. Each chapter does one thing, tells it, and checks that it came true."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_client.demo import export, patients
from comity_client.demo.cast import Cast, DemoError, free_port
from comity_client.demo.telling import Teller
from comity_client.documents import ProposalView, TrainWish
from comity_client.follow import AGREED, metrics_line, negotiated, refusals, run_of
from comity_client.output import short, words
from comity_client.sdk import Node

CONSORTIUM = "oncology"
DATASET = "patients"
PROPOSER, DENIER = "hospital-a", "hospital-b"
ROUNDS = 10
READY_TIMEOUT_S = 60.0
NEGOTIATION_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 180.0
COMPARE_TIMEOUT_S = 60.0
# Half of it above chance would be no sign of learning; a run of this app reaches 0.95.
ACCURACY_MIN = 0.9
# One round is one training and one evaluation.
ORDERS_A_ROUND = 2
SAID_OF = {
    "plain": "sealed end to end: the coordinator relays what it cannot open; the lead sees each update",
    "lead-key": "summed under encryption: the coordinator relays what it cannot open, the lead sees only sums",
    "masked": "summed under masks: the coordinator adds what it cannot read, the lead sees only sums",
    "threshold": "summed under a key that nobody holds: each sum is opened by the shares of all three",
}
STATES = {
    "PREPARING": "each hospital copies the granted columns and starts the app in a {} without a network",
    "READY": f"{PROPOSER} is ready and waits for the others",
    "RUNNING": f"all are ready; {PROPOSER} leads",
}
SHOWN_TERMS = ("purposes", "rounds", "uses", "aggregation", "egress", "min_cohort", "result_recipients", "not_after")


class Story:
    """The demo's chapters, to be told in the order in which they stand. `summary` grows with them."""

    def __init__(self, cast: Cast, teller: Teller, example: Path, aggregation: str) -> None:
        self._cast = cast
        self._teller = teller
        self._example = example
        self._aggregation = aggregation
        self._nodes: dict[str, Node] = {}
        self._original = Path()
        self._parts: dict[str, patients.Part] = {}
        self.summary: dict[str, Any] = {"folder": str(cast.folder), "aggregation": aggregation}

    def close(self) -> None:
        """Close the connections to the nodes."""
        for node in self._nodes.values():
            node.close()

    def data(self) -> None:
        """Divide the data set among the hospitals."""
        tell = self._teller
        tell.chapter("Three hospitals, each with its own patients")
        self._original, self._parts = patients.write(self._cast.folder)
        for name, part in self._parts.items():
            tell.say(f"{name}: {part.patients} patients, {part.malignant_percent} % malignant")
        self.summary["patients"] = {name: part.patients for name, part in self._parts.items()}

    def enrolment(self) -> None:
        """Start the coordinator; each hospital joins, sets its policy and starts its node."""
        tell, cast = self._teller, self._cast
        tell.chapter("A coordinator that nobody has to trust, and three nodes that dial out to it")
        home, address = cast.folder / "coordinator", f"127.0.0.1:{free_port()}"
        made, app = _together(
            lambda: cast.run(
                "coordinator",
                *("coordinator", "init", str(home), "--consortium", CONSORTIUM, "--address", address),
                *("--first-member", PROPOSER, "--json"),
            ),
            lambda: cast.run(PROPOSER, "app", "digest", str(self._example / "app"), "--json"),
        )
        cast.start("coordinator", "coordinator", "up", str(home))
        took = cast.until("coordinator", (home / "ready.json").exists, READY_TIMEOUT_S)
        tell.say(f"the coordinator listens on {address}, mutual TLS 1.3, ready after {took:.1f} s")
        self.summary["app"] = {key: app[key] for key in ("digest", "name", "version")}
        self._join(PROPOSER, made["token"], app["digest"])
        self._up([PROPOSER])
        others = patients.HOSPITALS[1:]
        tokens = {name: self._nodes[PROPOSER].invite(name)["token"] for name in others}
        tell.say(f"{PROPOSER} invites the others; each gets a one-use token and makes its keys on its own machine")
        _together(*(partial(self._join, name, tokens[name], app["digest"]) for name in others))
        self._up(others)
        tell.say(f"each hospital's reviewer has read the app and put {short(app['digest'])}… into its policy")

    def genesis(self) -> None:
        """Compare the genesis charter at every node, then sign it by its name."""
        tell = self._teller
        tell.chapter("Genesis: the founders compare what they are about to sign, by telephone")
        seen = {name: node.genesis() for name, node in self._nodes.items()}
        names = {found["draft"]["name"] for found in seen.values()}
        lines = {(each["org"], each["fingerprint"]) for found in seen.values() for each in found["draft"]["members"]}
        own = {(name, found["own"]) for name, found in seen.items()}
        for org, fingerprint in sorted(lines):
            tell.say(f"{org}  {fingerprint}")
        if not tell.check("every hospital sees the same charter, with its own keys in it", lines == own, str(names)):
            raise DemoError("the coordinator shows the founders different charters")
        name = names.pop()
        tell.command(f"genesis sign {name}    (at each hospital)")
        for node in self._nodes.values():
            node.sign_genesis(name)
        for org, node in self._nodes.items():
            self._until(org, lambda node=node: node.status()["genesis"] == name)  # type: ignore[misc]
        self.summary["genesis"] = name
        tell.check("the charter is in force at all three, signed by all three", True)

    def marketing(self) -> None:
        """Propose work for marketing, which one hospital's policy denies."""
        tell = self._teller
        tell.chapter(f"{PROPOSER} asks the others to train for marketing")
        tell.command(f"train app --purpose marketing --dataset {DATASET}")
        view = self._propose("marketing")
        news = view["news"]
        assert news is not None, "a negotiation that ended has news"
        said = refusals(news)
        for each in said:
            tell.say(f'{each["org"]} denies by its rule {each["rule"]}: "{each["message"]}"')
        denied = news["state"] != AGREED and {(each["org"], each["rule"]) for each in said} == {
            (DENIER, "proposal.purpose")
        }
        tell.check(f"the policy of {DENIER} denied it, naming the rule; nothing ran", denied, json.dumps(said))
        self.summary["marketing"] = {"proposal": view["proposal_id"], "state": news["state"], "reasons": said}

    def research(self) -> str:
        """Propose work for research, which everybody allows; returns the agreement's digest."""
        tell = self._teller
        tell.chapter(f"{PROPOSER} asks the others to train for research")
        tell.command(f"train app --purpose research --dataset {DATASET} --rounds {ROUNDS}")
        view = self._propose("research")
        news = view["news"]
        if news is None or news["state"] != AGREED or news["agreement"] is None:
            raise DemoError(f"research was not agreed: {json.dumps(news)}")
        digest = news["agreement"]
        for org, node in self._nodes.items():
            self._until(org, lambda node=node: _state(node, digest) == "final")  # type: ignore[misc]
        agreed = next(each for each in self._nodes[PROPOSER].agreements() if each["digest"] == digest)
        for term in SHOWN_TERMS:
            if term in agreed["terms"]:
                tell.say(f"{term:<18} {words(agreed['terms'][term])}")
        same = all(_state(node, digest) == "final" for node in self._nodes.values())
        tell.check(f"agreement {short(digest)}… is signed by every party and in force at all three", same)
        self.summary["research"] = {"agreement": digest, "parties": agreed["parties"], "terms": agreed["terms"]}
        return digest

    def training(self, agreement: str) -> None:
        """Watch the rounds, then check that every hospital holds the same model."""
        tell, node = self._teller, self._nodes[PROPOSER]
        tell.chapter(f"{ROUNDS} rounds, {SAID_OF[self._aggregation]}")
        run = run_of(node, agreement, READY_TIMEOUT_S)["run"]
        begun, rounds = time.monotonic(), dict[int, dict[str, Any]]()
        for event in node.events(run, timeout_s=RUN_TIMEOUT_S):
            self._watched(dict(event), rounds)
        took = time.monotonic() - begun
        ended = node.run(run)
        self.summary["run"] = {"run": run, "state": ended["state"], "error": ended.get("error")}
        self.summary["rounds"] = [{"round": number, **found} for number, found in sorted(rounds.items())]
        counted = sum("accuracy" in found for found in rounds.values())
        good = ended["state"].upper() == "COMPLETED" and counted == ROUNDS
        if not tell.check(f"{counted} rounds ran to the end in {took:.1f} s", good, json.dumps(ended)):
            raise DemoError(f"the run ended {ended['state']}: {json.dumps(ended.get('error'))}")
        cards = [self._card(org, run) for org in self._nodes]
        digests = {card["content"]["sha256"] for card in cards}
        tell.check("every hospital holds the same model", len(digests) == 1, str(digests))
        model = self._cast.folder / "model.npz"
        node.fetch_result(run, model)
        self.summary["model"] = {"file": str(model), "content_sha256": sorted(digests)[0]}

    def comparison(self) -> None:
        """Compare each hospital alone, all together, and the pooled data."""
        tell = self._teller
        tell.chapter("Was it worth it? Accuracy on the same held-back patients")
        found = self._compare()
        rows: list[tuple[str, str, str]] = [
            (f"{name} alone", str(self._parts[name].patients), f"{value:.4f}") for name, value in found["alone"].items()
        ]
        every = sum(part.patients for part in self._parts.values())
        rows.append(("together", "shared with nobody", f"{found['together']:.4f}"))
        rows.append(("pooled (for comparison only)", str(every), f"{found['pooled']:.4f}"))
        tell.table(("model", "patients", "accuracy"), rows)
        worst, together = min(found["alone"].values()), found["together"]
        good = together >= ACCURACY_MIN and together > worst
        tell.check(f"together they reach {together:.4f}", good, json.dumps(found))
        self.summary["comparison"] = found

    def ledger(self) -> Path:
        """Export the ledger at a hospital that led nothing, and list its receipts."""
        tell = self._teller
        tell.chapter("The receipts, as they stand in the shared ledger")
        file = self._cast.folder / "ledger.jsonl"
        tell.command(f"ledger export {file.name}    (at {DENIER})")
        size_bytes = self._nodes[DENIER].export_ledger(file)
        found = export.receipts(file)
        by_order: dict[int, dict[str, dict[str, Any]]] = {}
        for each in found:
            by_order.setdefault(each["seq"], {})[each["issuer"]] = each
        rows = [
            (seq, *(_receipt(given.get(org)) for org in patients.HOSPITALS)) for seq, given in sorted(by_order.items())
        ]
        tell.say("for each order what each hospital answered: digest of the sealed result, bytes that left")
        tell.table(("order", *patients.HOSPITALS), rows)
        counts = Counter(each["issuer"] for each in found if each["outcome"] == "result")
        wanted = dict.fromkeys(patients.HOSPITALS, ROUNDS * ORDERS_A_ROUND)
        tell.check(
            f"each hospital signed {ROUNDS * ORDERS_A_ROUND} receipts: {ROUNDS} trainings, {ROUNDS} evaluations",
            dict(counts) == wanted and len(found) == sum(wanted.values()),
            json.dumps(counts),
        )
        self.summary["receipts"] = dict(counts)
        self.summary["export"] = {"file": str(file), "size_bytes": size_bytes}
        return file

    def verification(self, file: Path) -> None:
        """Verify the export offline, and show that an altered one is caught."""
        tell, cast = self._teller, self._cast
        tell.command(f"ledger verify {file.name} --genesis {self.summary['genesis']}")
        forged = cast.folder / "ledger-forged.jsonl"
        index = export.altered(file, forged)
        arguments = ("--genesis", self.summary["genesis"], "--json")
        report, done = _together(
            lambda: cast.run("verify", "ledger", "verify", str(file), *arguments),
            lambda: cast.attempt("verify-forged", "ledger", "verify", str(forged), *arguments),
        )
        for each in report.get("checks", []):
            tell.say(f"{each['number']}. {each['title']}: {each['count']} checked")
        size = report.get("size", 0)
        tell.check(
            f"the ledger holds: {size} entries verified offline, from the genesis name alone", bool(report["ok"])
        )
        caught = index >= 0 and done.returncode != 0 and "LEDGER_INVALID" in done.stdout
        tell.check(f"a copy with one number changed in entry {index} is refused", caught, done.stdout[-300:])
        forged.unlink()
        self.summary["ledger"] = {"entries": size, "counts": report.get("counts", {}), "forgery_caught": caught}

    # -- parts of chapters

    def _join(self, name: str, token: str, app_digest: str) -> None:
        """Join and set the policy: what an organisation's admin does once."""
        home = self._cast.folder / name
        joined = self._cast.run(name, "node", "join", "-", "--home", str(home), "--json", secret=f"{token}\n")
        path = home / "policy" / "data.json"
        policy = json.loads(path.read_text())
        policy["app_digests"] = [app_digest]
        policy["aggregation"] = self._aggregation
        if name != DENIER:
            policy["purposes"] = [*policy["purposes"], "marketing"]
        path.write_text(json.dumps(policy, indent=2) + "\n")
        self._teller.say(f"{name} has joined; fingerprint of its keys: {joined['fingerprint']}")

    def _up(self, names: tuple[str, ...] | list[str]) -> None:
        """Start nodes, wait until each is connected, and name its dataset."""
        for name in names:
            self._cast.start(name, "node", "up", "--home", str(self._cast.folder / name))
            self._nodes[name] = Node(self._cast.folder / name)
        for name in names:
            took = self._until(name, lambda name=name: self._nodes[name].status()["link"]["connected"])  # type: ignore[misc]
            self._nodes[name].add_dataset(DATASET, str(self._parts[name].path), "pseudonymous")
            self._teller.say(f"{name} is connected after {took:.1f} s and names its dataset {DATASET}")

    def _until(self, name: str, ready: Callable[[], bool]) -> float:
        def answered() -> bool:
            try:
                return ready()
            except ComityError as error:
                if error.code is ErrorCode.UNAVAILABLE:
                    return False
                raise

        return self._cast.until(name, answered, READY_TIMEOUT_S)

    def _propose(self, purpose: str) -> ProposalView:
        node, tell = self._nodes[PROPOSER], self._teller
        wish: TrainWish = {
            "app": str(self._example / "app"),
            "purpose": purpose,
            "dataset": DATASET,
            "rounds": ROUNDS,
            "aggregation": self._aggregation,
            "deadline_s": 600,
        }
        proposed = node.propose(wish)
        tell.say(f"proposal {proposed['proposal_id']} went to every hospital's own policy")
        return negotiated(node, proposed["proposal_id"], lambda _: None, NEGOTIATION_TIMEOUT_S, look_again_s=0.05)

    def _watched(self, event: dict[str, Any], rounds: dict[int, dict[str, Any]]) -> None:
        kind = event.get("kind")
        if kind == "metrics" and isinstance(event.get("round"), int):
            found = rounds.setdefault(event["round"], {})
            found.update({key: value for key, value in event["metrics"].items() if isinstance(value, int | float)})
            if event.get("stage") == "evaluate":
                shown: dict[str, Any] = {key: found[key] for key in ("accuracy", "loss", "train_loss") if key in found}
                self._teller.say(f"round {event['round']:>2}   {metrics_line(shown)}")
        elif kind == "state" and event.get("state") in STATES:
            self._teller.say(STATES[event["state"]].format(self._nodes[PROPOSER].status()["isolation"]))
        elif kind in {"unready", "waiting", "restart"}:
            self._teller.say(f"{kind}: {json.dumps(event.get('error'))}")

    def _card(self, org: str, run: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def there() -> bool:
            try:
                found.update(self._nodes[org].card(run))
            except ComityError as error:
                if error.code is ErrorCode.NOT_FOUND:
                    return False
                raise
            return True

        self._until(org, there)
        return found

    def _compare(self) -> dict[str, Any]:
        """Run the example's own comparison, as a process of its own."""
        command = [sys.executable, str(self._example / "compare.py"), "--original", str(self._original)]
        for name, part in self._parts.items():
            command += ["--hospital", f"{name}={part.path}"]
        command += ["--model", self.summary["model"]["file"], "--rounds", str(ROUNDS)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPARE_TIMEOUT_S, check=True, start_new_session=True
            )
            found: dict[str, Any] = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise DemoError(f"compare.py failed:\n{said[-2000:]}") from error
        return found


@contextmanager
def explained(cast: Cast) -> Iterator[None]:
    """Turn an error of a chapter into one that also says which process ended, and what it said last."""
    try:
        yield
    except ComityError as error:
        said = "\n".join(cast.ended() or cast.last_words())
        raise DemoError(f"{error}\n{said}".rstrip() + f"\nall logs: {cast.logs}") from error


def _together(*steps: Callable[[], Any]) -> list[Any]:
    """Take steps at the same time; returns what each returned, in order."""
    with ThreadPoolExecutor(len(steps)) as pool:
        return [each.result() for each in [pool.submit(step) for step in steps]]


def _state(node: Node, digest: str) -> str:
    return next((each["state"] for each in node.agreements() if each["digest"] == digest), "")


def _receipt(receipt: dict[str, Any] | None) -> str:
    if receipt is None:
        return "-"
    if receipt["outcome"] != "result":
        return f"{receipt['outcome']} {receipt['code']}"
    return f"{str(receipt.get('result') or '')[:8]} {receipt['egress_bytes']:>6} B"
