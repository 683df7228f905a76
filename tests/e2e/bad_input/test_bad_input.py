"""Bad input to a consortium of real processes: each shows a clear error to whom it concerns, and nothing is lost.

What is not here is tested where it can be reached without other processes:

* certificate of another authority, consortium or role at the coordinator's edge, revocation in the middle of a stream:
  tests/faults/coordinator_transport/test_stream_faults.py;
* oversized, truncated and altered chunks: test_payload_faults.py beside it,
  tests/faults/node/test_node_payload_faults.py,
  tests/unit/crypto/test_crypto_sealing.py;
* an order for another step, digest, run, round or receiver, altered, or given twice:
  tests/faults/node_training/test_training_refusals.py (`test_orders_that_were_not_agreed_are_refused_by_name`);
* what a worker may send instead of a reply, frame by frame: tests/faults/agents/test_hostile_client_app.py;
* OPA that answers late, wrongly or with another bundle: tests/contract/policies/test_policy_failures.py.
"""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.consortium import CONSORTIUM, LEAD, ORGS, Consortium, free_port
from setting import change_json, wish

from comity.wire import instants
from comity_crypto import x509
from comity_crypto.keystore import FileKeyStore
from comity_crypto.tokens import JoinToken

pytestmark = pytest.mark.e2e
OTHER, THIRD = ORGS[1:]
SECRET = "row 17"
AT_ONCE = 3


def said_at(bad: Consortium, *arguments: str, stdin: str = "") -> str:
    """Run a command that must be refused; returns what a person reads."""
    done = bad.comity(*arguments, stdin=stdin)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "Next move" in done.stderr
    return done.stderr


def join(bad: Consortium, token: str, home: str) -> str:
    arguments = ("node", "join", "-", "--home", str(bad.home(home)), "--genesis", bad.genesis)
    return said_at(bad, *arguments, stdin=f"{token}\n")


def watched(bad: Consortium, run: str, org: str = LEAD) -> str:
    """Return what `comity runs watch` tells a person once the run is over."""
    done = bad.comity("runs", "watch", run, "--home", str(bad.home(org)))
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def started(bad: Consortium, asked: dict[str, Any]) -> str:
    return bad.run_of(bad.agreed(bad.propose(asked)))


# -- joining


def test_a_token_that_was_used(bad: Consortium, tokens: dict[str, str]) -> None:
    home = str(bad.home("hospital-d"))
    bad.ok("node", "join", "-", "--home", home, "--genesis", bad.genesis, stdin=tokens["hospital-d"] + "\n")
    said = join(bad, tokens["hospital-d"], "hospital-d-again")
    assert "TOKEN_USED: The join token was used already; ask the sponsor for a new one." in said
    assert not (bad.home("hospital-d-again") / "node.json").exists()


@pytest.mark.parametrize("place", [20, 200, -20])
def test_a_token_that_was_altered(bad: Consortium, tokens: dict[str, str], place: int) -> None:
    token = tokens["hospital-e"]
    letter = "A" if token[place] != "A" else "B"
    altered = token[:place] + letter + (token[place + 1 :] if place != -1 else "")
    said = join(bad, altered, "hospital-e")
    assert "TOKEN_INVALID: The join token is not valid." in said


def test_a_certificate_of_another_authority(bad: Consortium) -> None:
    bad.up("hospital-d")
    bad.down("hospital-d")
    store = FileKeyStore(bad.home("hospital-d") / "keys")
    paths = store.tls_paths()
    good = tuple(path.read_bytes() for path in (paths.key, paths.cert, paths.ca))
    authority = x509.create_authority(CONSORTIUM)
    key, request = x509.make_csr("hospital-d")
    store.store_tls(key, x509.issue_node(*authority, request, CONSORTIUM, "hospital-d"), authority[1])
    bad.start("hospital-d")
    status = bad.until(lambda: _away(bad, "hospital-d", "CERTIFICATE_INVALID"), "hospital-d cannot connect")
    assert "comes from another authority" in status
    bad.down("hospital-d")
    store.store_tls(*good)
    bad.up("hospital-d")


def test_a_revoked_node(bad: Consortium) -> None:
    told = bad.comity("revoke", "hospital-d", "--home", str(bad.home("coordinator")))
    assert (told.returncode, told.stdout) == (0, "hospital-d is revoked.\n")
    status = bad.until(lambda: _away(bad, "hospital-d", "REVOKED"), "hospital-d is refused")
    assert "REVOKED" in status
    said = said_at(bad, "node", "rotate", "--home", str(bad.home("hospital-d")))
    assert "REVOKED: The organisation's transport was revoked." in said
    bad.down("hospital-d")
    bad.nodes.pop("hospital-d").close()


def _away(bad: Consortium, org: str, code: str = ": ") -> str:
    said = bad.comity("status", "--home", str(bad.home(org))).stdout
    return said if "not connected" in said and code in said else ""


# -- apps and workers

MODES = {
    # mode: (how the lead's run ends, what the watcher reads about hospital-b)
    "raises": ("FAILED", "APP_FAILED"),
    "exits": ("FAILED", "APP_FAILED"),
    "nothing": ("FAILED", "APP_SILENT"),
    "dies": ("FAILED", "WORKER_DIED"),
    "large": ("FAILED", "REPLY_TOO_LARGE"),
    "late": ("FAILED", "WORKER_TIMEOUT"),
    "garbage": ("FAILED", "REPLY_SHAPE"),
    "text": ("FAILED", "EGRESS_DENIED"),
}


@pytest.fixture(scope="module")
def told(bad: Consortium) -> dict[str, tuple[str, dict[str, Any]]]:
    """Run the rogue app in every mode, a few at once: what the lead's watcher read, and the run as it ended."""

    def run(mode: str) -> tuple[str, dict[str, Any]]:
        timeout_s = 4 if mode == "late" else 60
        run = started(bad, wish(f"mode {mode}", run_config={"mode": mode}, reply_timeout_s=timeout_s))
        return watched(bad, run), dict(bad.nodes[LEAD].run(run))

    modes = [*MODES, "server-raises", "server-silent"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(modes, pool.map(run, modes), strict=True))


@pytest.mark.parametrize("mode", list(MODES))
def test_a_worker_that_misbehaves(bad: Consortium, told: dict[str, tuple[str, dict[str, Any]]], mode: str) -> None:
    state, code = MODES[mode]
    said, run = told[mode]
    assert run["state"] == state
    assert f"{OTHER} {code}" in said, said
    assert run["error"]["code"] == "PARTICIPANTS_TOO_FEW"
    assert run["error"]["detail"] == f"{OTHER}: {code}"
    assert SECRET not in said


@pytest.mark.parametrize(("mode", "code"), [("server-raises", "APP_FAILED"), ("server-silent", "APP_SILENT")])
def test_a_server_app_that_misbehaves(told: dict[str, tuple[str, dict[str, Any]]], mode: str, code: str) -> None:
    said, run = told[mode]
    assert (run["state"], run["error"]["code"]) == ("FAILED", code)
    assert code in said
    assert SECRET not in said


def test_what_an_app_said_stays_in_its_owners_log(bad: Consortium, told: dict[str, tuple[str, dict[str, Any]]]) -> None:
    run = told["raises"][1]["run"]
    assert SECRET in (bad.home(OTHER) / "runs" / run / "client.log").read_text()
    for place in (bad.home("coordinator"), bad.home(LEAD), bad.home(THIRD), bad.folder / "logs"):
        for path in place.rglob("*"):
            # The app's own source names it, and so does the log of the lead, whose own ServerApp raised.
            if path.is_file() and "apps" not in path.parts and path.name != "server.log":
                assert SECRET.encode() not in path.read_bytes(), path


def test_an_app_that_does_not_import(bad: Consortium) -> None:
    run = started(bad, wish("broken", app=str(bad.folder / "broken")))
    for org in ORGS:
        assert "APP_INVALID" in _unready(bad, org, run)
    waits = bad.ok("status", "--home", str(bad.home(LEAD)))["waiting"]
    mine = next(each for each in waits if each["name"] == run)
    assert mine["state"] == "PREPARING"
    assert mine["then"].endswith("the run fails, naming who was not ready")
    bad.nodes[LEAD].cancel(run, "the app does not import")
    assert bad.ended(run).state == "CANCELLED"


# -- data


@pytest.mark.parametrize(
    ("change", "code"),
    [("missing", "DATASET_MISSING"), pytest.param("columns", "DATASET_COLUMNS", marks=pytest.mark.slow)],
)
def test_a_dataset_that_changed(bad: Consortium, change: str, code: str) -> None:
    with _bad_data(bad, change):
        run = started(bad, wish(f"dataset {change}"))
        assert code in _unready(bad, OTHER, run)
        checked = bad.comity("doctor", "--home", str(bad.home(OTHER))).stdout
        assert "numbers" in checked
    said = watched(bad, run)  # prepared again once the data are back
    assert "completed" in said, said


def test_a_dataset_that_nobody_has(bad: Consortium) -> None:
    done = bad.comity(
        *("train", wish("")["app"], "--purpose", "research", "--dataset", "letters", "--column", "a"),
        *("--aggregation", "plain", "--deadline", "60s", "--home", str(bad.home(LEAD))),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no agreement" in done.stdout
    assert "letters" in done.stdout


@contextmanager
def _bad_data(bad: Consortium, change: str) -> Iterator[None]:
    """Take hospital-b's table away, or give it other columns, for a while."""
    path = bad.folder / f"{OTHER}.csv"
    good = path.read_text()
    if change == "missing":
        path.unlink()
    else:
        path.write_text(good.replace("value", "weight"))
    try:
        yield
    finally:
        path.write_text(good)


def _unready(bad: Consortium, org: str, run: str) -> str:
    """Wait until an organisation's own people can see why it is not ready."""
    read: list[str] = []

    def seen() -> str:
        page = bad.comity("runs", "list", "--home", str(bad.home(org)), "--json")
        read.append(page.stdout)
        events = sqlite3.connect(f"file:{bad.home(org) / 'journal.db'}?mode=ro", uri=True, timeout=10)
        try:
            rows = events.execute("select body from training_events where run = ? and kind = 'unready'", (run,))
            return "".join(str(body) for (body,) in rows)
        finally:
            events.close()

    return bad.until(seen, f"{org} says why it is not ready")


# -- agreements


def test_an_altered_agreement(bad: Consortium) -> None:
    """Somebody changes what the app is told in hospital-c's own books while the run waits at its barrier."""
    with _bad_data(bad, "missing"):
        run = started(bad, wish("altered"))
        _unready(bad, OTHER, run)
        bad.down(THIRD)
        digest = bad.nodes[LEAD].run(run)["agreement"]
        undo = _alter(bad.home(THIRD), digest)
    bad.start(THIRD)
    try:
        said = watched(bad, run)
    finally:
        bad.down(THIRD)
        undo()
        bad.up(THIRD)
    assert "failed" in said
    assert f"{THIRD} AGREEMENT_INVALID" in said, said


def _alter(home: Path, digest: str) -> Callable[[], None]:
    def write(document: bytes) -> None:
        journal = sqlite3.connect(home / "journal.db", timeout=10)
        with journal:
            changed = "update negotiation_agreements set document = ? where digest = ?"
            assert journal.execute(changed, (document, digest)).rowcount == 1
        journal.close()

    journal = sqlite3.connect(home / "journal.db", timeout=10)
    good = journal.execute("select document from negotiation_agreements where digest = ?", (digest,)).fetchone()[0]
    journal.close()
    altered = json.loads(good)
    altered["proposal"]["steps"][0]["run_config"]["mode"] = "text"
    write(json.dumps(altered, sort_keys=True, separators=(",", ":")).encode())
    return lambda: write(good)


# -- the node's own surroundings


def test_a_full_disk_at_the_nodes_journal(bad: Consortium) -> None:
    """The limit on file sizes is what a full disk is to SQLite: it can grow no file; lifted, all goes on."""
    pid, size_bytes = bad.pid(OTHER), (bad.home(OTHER) / "journal.db").stat().st_size // 2
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    proposal = bad.propose(wish("full disk"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        said = bad.until(lambda: _complaint(bad, OTHER, "JOURNAL_UNWRITABLE"), f"{OTHER} says that it cannot write")
        assert "JOURNAL_UNWRITABLE" in said
        assert Path(f"/proc/{pid}").exists()
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    run = bad.run_of(bad.agreed(proposal))
    assert bad.ended(run).state == "COMPLETED"


def _complaint(bad: Consortium, org: str, code: str) -> str:
    lines = bad.log(org).read_text().splitlines()
    return next((line for line in reversed(lines) if code in line), "")


def test_opa_is_out_of_reach(bad: Consortium) -> None:
    """A node that is told to ask an OPA server where none listens denies, and says so."""
    settings = bad.home(OTHER) / "node.json"
    good = settings.read_text()
    bad.down(OTHER)
    change_json(settings, engine="opa", opa_url=f"http://127.0.0.1:{free_port()}")
    try:
        bad.up(OTHER)
        done = bad.comity(
            *("train", wish("")["app"], "--purpose", "research", "--dataset", "numbers", "--title", "no OPA"),
            *("--aggregation", "plain", "--rounds", "1", "--deadline", "60s", "--home", str(bad.home(LEAD))),
        )
    finally:
        bad.down(OTHER)
        settings.write_text(good)
        bad.up(OTHER)
    assert done.returncode == 1, done.stdout + done.stderr
    said = f"no agreement, terminated: {OTHER} says engine: the OPA server is out of reach (next move: {OTHER})\n"
    assert done.stdout == said
    legs = next(view for view in bad.nodes[LEAD].proposals() if view["title"] == "no OPA")["news"]["legs"]
    assert [reason["code"] for leg in legs for reason in leg["reasons"]] == ["POLICY_UNAVAILABLE"]


# -- afterwards


def test_a_token_that_expired(bad: Consortium, tokens: dict[str, str]) -> None:
    left_s = JoinToken.parse(tokens["hospital-e"]).expires_at
    bad.until(lambda: instants.now_text() > left_s, "a minute has passed", 70)
    said = join(bad, tokens["hospital-e"], "hospital-e")
    assert "TOKEN_EXPIRED: The join token has expired; ask the sponsor for a new one." in said


def test_afterwards_a_good_run_completes(bad: Consortium) -> None:
    ended = bad.train(wish("good at last"))
    assert ended.state == "COMPLETED", ended
    assert len(set(ended.models.values())) == 1
    assert set(ended.models) == set(ORGS)
    bad.ok("coordinator", "ledger", "fsck", str(bad.home("coordinator")))
    export = bad.folder / "ledger.jsonl"
    bad.nodes[THIRD].export_ledger(export)
    bad.ok("ledger", "verify", str(export), "--genesis", bad.genesis)
