"""People at real nodes: a proposal, each order of a run, and what ends a run under way, all through the commands.

hospital-b has read no app, and its own rule puts every order before two people. The run ends in a named state with its
participation manifest on the ledger when its policy changes, and when it withdraws.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.consortium import LEAD, ORGS, Consortium
from harness.tables import table

from comity_agents.flower.bundle import build_app

DUMMY = Path(__file__).resolve().parents[3] / "benchmarks" / "dummy_app"
PEOPLE = ORGS[1]
RULE = """package comity.dispatch

review contains {
	"rule": "own.each_order",
	"code": "EACH_ORDER",
	"message": "two people look at each order",
	"approvals": 2,
	"scope": "order",
}
"""


@pytest.fixture(scope="module")
def clinics() -> Iterator[Consortium]:
    with tempfile.TemporaryDirectory(prefix="comity-people-") as name:
        folder = Path(name)
        consortium = Consortium(folder)
        try:
            datasets = {org: {"patients": table(folder / f"{org}.csv")} for org in ORGS}
            consortium.found(datasets, (build_app(DUMMY).digest,))
            (consortium.home(PEOPLE) / "policy" / "own.rego").write_text(RULE)
            settle(consortium, app_digests=[])
            yield consortium
        finally:
            left = consortium.stop()
        assert left == []


def settle(clinics: Consortium, **values: Any) -> None:
    """Change hospital-b's settings while its node runs."""
    path = clinics.home(PEOPLE) / "policy" / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    clinics.ok("policy", "reload", "--home", str(clinics.home(PEOPLE)))


def waiting(clinics: Consortium, stage: str) -> dict[str, Any]:
    """Wait for an item of a stage and return it as `comity review show` does."""
    home = str(clinics.home(PEOPLE))
    found = clinics.until(
        lambda: [each for each in clinics.nodes[PEOPLE].reviews() if each["stage"] == stage], f"a review of {stage}"
    )
    view: dict[str, Any] = clinics.ok("review", "show", found[0]["id"], "--home", home)
    return view


def token_of(clinics: Consortium, user: str) -> Path:
    path = clinics.folder / f"{user}.token"
    if not path.exists():
        made = clinics.ok("access", "token", "issue", "--user", user, "--role", "reviewer", "--expires", "1d",
                          "--home", str(clinics.home(PEOPLE)))  # fmt: skip
        path.touch(mode=0o600)
        path.write_text(made["token"])
    return path


def approve(clinics: Consortium, item: dict[str, Any], *users: str) -> dict[str, Any]:
    """Approve as the organisation's own account, or as named people with tokens."""
    after: dict[str, Any] = {}
    for user in users or ("",):
        options = ("--token-file", str(token_of(clinics, user))) if user else ()
        after = clinics.ok(*options, "review", "approve", item["id"], "--reason", "read it",
                           "--home", str(clinics.home(PEOPLE)))  # fmt: skip
    return after


def began(clinics: Consortium, title: str) -> tuple[str, str]:
    """Propose, let a person of hospital-b allow it, and let two allow the first order; returns agreement and run."""
    wish = {"app": str(DUMMY), "purpose": "research", "dataset": "patients", "title": title, "rounds": 3,
            "run_config": {"params": 10}, "deadline_s": 600, "reply_timeout_s": 120,
            "terms": {"min_participants": 3}}  # fmt: skip
    proposal = clinics.propose(wish)
    item = waiting(clinics, "proposal")
    assert item["document"]["proposal"]["title"] == title
    waits = clinics.ok("status", "--home", str(clinics.home(PEOPLE)))["waiting"]
    assert ("review", item["id"]) in {(each["what"], each["name"]) for each in waits}
    approve(clinics, item)
    agreement = clinics.agreed(proposal)
    run = clinics.run_of(agreement)
    first = waiting(clinics, "dispatch")
    assert (first["run"], first["missing"], first["document"]["order"]["round"]) == (run, 2, 1)
    assert approve(clinics, first, "anna")["missing"] == 1
    assert approve(clinics, first, "bert")["state"] == "APPROVED"
    clinics.until(lambda: not open_orders(clinics) or open_orders(clinics)[0]["id"] != first["id"], "round 1 is over")
    return agreement, run


def open_orders(clinics: Consortium) -> list[Any]:
    return [each for each in clinics.nodes[PEOPLE].reviews() if each["stage"] == "dispatch"]


@contextmanager
def no_orders(clinics: Consortium) -> Iterator[None]:
    """Let the coordinator stand still: an order that waits for people is given again every few seconds."""
    pid = clinics.pid("coordinator")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def finished(clinics: Consortium, run: str) -> dict[str, Any]:
    """Return how the lead says the run ended, from an export that verifies."""
    file = clinics.folder / f"{run}.jsonl"
    clinics.ok("ledger", "export", str(file), "--home", str(clinics.home(LEAD)))
    clinics.ok("ledger", "verify", str(file), "--genesis", clinics.genesis)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    said = [json.loads(base64.b64decode(line["statement"]))["content"]["body"] for line in lines if "statement" in line]
    (found,) = [body for body in said if body.get("run") == run and "manifest" in body]
    return dict(found)


def test_a_new_policy_stops_a_run_although_people_approved(clinics: Consortium) -> None:
    _, run = began(clinics, "stopped by policy")
    second = waiting(clinics, "dispatch")
    assert second["document"]["order"]["round"] == 2
    clinics.until(lambda: PEOPLE in clinics.nodes[LEAD].run(run)["awaited"], "the lead says who is awaited")
    waits = clinics.ok("status", "--home", str(clinics.home(LEAD)))["waiting"]
    (wait,) = [each for each in waits if each["name"] == run]
    assert (wait["awaited"][0].startswith(f"{PEOPLE} (REVIEW_NEEDED"), wait["until"]) == (True, second["until"])
    with no_orders(clinics):
        settle(clinics, purposes=["statistics"])
        assert approve(clinics, second, "anna", "bert")["state"] == "APPROVED"
    try:
        ended = clinics.ended(run)
    finally:
        settle(clinics, purposes=["research"])
    assert (ended.state, (ended.error or {}).get("code")) == ("FAILED", "PARTICIPANTS_TOO_FEW")
    assert "POLICY_DENIED" in (ended.error or {})["detail"]
    said = finished(clinics, run)
    assert said["manifest"][0] == {"round": 1, "participants": list(ORGS), "dropped": []}
    assert {"org": PEOPLE, "code": "POLICY_DENIED"} in said["manifest"][1]["dropped"]


def test_what_waits_for_people_outlives_the_node(clinics: Consortium) -> None:
    _, run = began(clinics, "killed while people look")
    second = waiting(clinics, "dispatch")
    approve(clinics, second, "anna")
    clinics.kill(PEOPLE)
    clinics.up(PEOPLE)
    again = waiting(clinics, "dispatch")
    assert (again["id"], again["missing"], [vote["user"] for vote in again["votes"]]) == (second["id"], 1, ["anna"])
    assert approve(clinics, again, "bert")["state"] == "APPROVED"
    clinics.until(lambda: open_orders(clinics) and open_orders(clinics)[0]["id"] != second["id"], "round 2 is over")
    third = waiting(clinics, "dispatch")
    assert third["document"]["order"]["round"] == 3
    approve(clinics, third, "anna", "bert")
    ended = clinics.ended(run)
    assert (ended.state, len(set(ended.models.values()))) == ("COMPLETED", 1)
    assert all(row["dropped"] == [] for row in finished(clinics, run)["manifest"])


def test_a_withdrawal_stops_a_run_and_what_waited_is_obsolete(clinics: Consortium) -> None:
    agreement, run = began(clinics, "stopped by withdrawal")
    second = waiting(clinics, "dispatch")
    clinics.ok("withdraw", agreement, "--reason", "consent was revoked", "--home", str(clinics.home(PEOPLE)))
    ended = clinics.ended(run)
    assert (ended.state, (ended.error or {}).get("code")) == ("CANCELLED", "WITHDRAWN")
    said = finished(clinics, run)
    assert (said["manifest"][0]["participants"], said["manifest"][0]["dropped"]) == (list(ORGS), [])
    after = clinics.ok("review", "show", second["id"], "--home", str(clinics.home(PEOPLE)))
    assert (after["state"], after["why"]) == ("OBSOLETE", "the run has ended")
    error = clinics.refused("review", "approve", second["id"], "--home", str(clinics.home(PEOPLE)))
    assert error["code"] == "ILLEGAL_EVENT"
