"""People at a real node, by the commands: a login in a browser, tokens, the port; and no secret in any log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import issuer as provider
from harness.consortium import COMITY, LEAD, ORGS, Consortium

from comity.wire.errors import ComityError
from comity_agents.flower.bundle import build_app
from comity_client.demo.cast import free_port
from comity_client.sdk import Node, node_endpoint
from comity_client.transport import Endpoint

LOGIN_TIMEOUT_S = 60
DUMMY = Path(__file__).resolve().parents[3] / "benchmarks" / "dummy_app"


@pytest.fixture(scope="module")
def issuer() -> Iterator[provider.Issuer]:
    with provider.serving() as found:
        yield found


def table(path: Path) -> Path:
    path.write_text("age,outcome\n" + "".join(f"{30 + row},{row % 2}\n" for row in range(30)))
    return path


class Hospital:
    """One organisation's node that listens for people, and a person's own machine (`HOME`)."""

    def __init__(self, consortium: Consortium, issuer: provider.Issuer, person: Path) -> None:
        self.consortium = consortium
        self.issuer = issuer
        self.home = consortium.home(LEAD)
        self.url = f"https://127.0.0.1:{free_port()}"
        self.person = person

    def found(self) -> None:
        access = {"roles": {"admin": [], "proposer": [], "reviewer": ["group:board"], "auditor": []}, "issuers": {}}
        datasets = {org: {"patients": table(self.consortium.folder / f"{org}.csv")} for org in ORGS}
        self.consortium.found(datasets, (build_app(DUMMY).digest,), access=access)
        shown = self.consortium.ok("access", "certificate", "127.0.0.1", "--home", str(self.home))
        settings = json.loads((self.home / "node.json").read_text())
        settings["listen"] = {**shown["listen"], "address": self.url.removeprefix("https://")}
        settings["oidc"] = {"issuer": self.issuer.url, "audience": provider.AUDIENCE}
        (self.home / "node.json").write_text(json.dumps(settings))
        assert self.consortium.down(LEAD) == 0
        self.consortium.up(LEAD)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COMITY_")}
        return {**kept, "HOME": str(self.person), **more}

    def remote(self, *arguments: str, **more: str) -> tuple[int, Any]:
        """Run a command on the person's machine; returns its status and JSON."""
        command = [*COMITY, "--node", self.url, "--ca", str(self.home / "people.cert.pem"), *arguments, "--json"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=self.environment(**more)
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def log_in(self, words: str = "") -> tuple[int, Any]:
        """Log in by the device flow: the code appears on standard error, the browser is the test."""
        command = [*COMITY, "--node", self.url, "--ca", str(self.home / "people.cert.pem"), "login", "--json"]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment()
        )
        assert child.stdout is not None
        assert child.stderr is not None
        guard = threading.Timer(LOGIN_TIMEOUT_S, child.kill)
        guard.start()
        try:
            found = re.search(r"the code ([0-9A-F]{8})", child.stderr.readline())
            assert found is not None
            self.issuer.approve(found[1], words)
            out, _ = child.communicate()
        finally:
            guard.cancel()
        return child.returncode, json.loads(out)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, issuer: provider.Issuer) -> Iterator[Hospital]:
    consortium = Consortium(tmp_path_factory.mktemp("c"))
    made = Hospital(consortium, issuer, tmp_path_factory.mktemp("person"))
    try:
        made.found()
        yield made
    finally:
        assert consortium.stop() == []


@pytest.mark.e2e
def test_a_reviewer_logs_in_from_another_machine(hospital: Hospital) -> None:
    status, refused = hospital.remote("access", "me")
    assert (status, refused["error"]["code"]) == (2, "NOT_FOUND")
    status, found = hospital.log_in()
    assert (status, found["user"], found["roles"], found["via"]) == (0, "ada", ["reviewer"], "oidc"), found
    kept = Path(found["token_file"])
    assert kept.is_relative_to(hospital.person)
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert hospital.remote("access", "me")[1]["user"] == "ada"
    assert hospital.remote("status")[1]["node"]["org"] == LEAD
    assert hospital.remote("review", "list") == (0, [])
    for command in (("access", "token", "list"), ("withdraw", "x", "--reason", "y")):
        status, refused = hospital.remote(*command)
        assert (status, refused["error"]["code"]) == (2, "FORBIDDEN")
    status, refused = hospital.remote("invite", "hospital-d")
    assert (status, refused["error"]["code"]) == (2, "UNSUPPORTED")
    assert kept.read_text().strip() not in hospital.consortium.log(LEAD).read_text()


@pytest.mark.e2e
def test_a_person_who_says_no_is_not_logged_in(hospital: Hospital) -> None:
    status, refused = hospital.log_in("access_denied")
    assert (status, refused["error"]["code"]) == (2, "UNAUTHENTICATED")


@pytest.mark.e2e
def test_a_token_from_its_issue_to_its_end(hospital: Hospital, tmp_path: Path) -> None:
    home, file = ("--home", str(hospital.home)), tmp_path / "robot.token"
    issued = hospital.consortium.ok(
        *("access", "token", "issue", "--user", "robot", "--role", "auditor", "--expires", "1h", *home),
        *("-o", str(file)),
    )
    assert "token" not in issued
    assert file.stat().st_mode & 0o777 == 0o600
    status, me = hospital.remote("access", "me", COMITY_TOKEN_FILE=str(file))
    assert (status, me["user"], me["roles"]) == (0, "robot", ["auditor"])
    # The same person on the node's own machine, by name and not as the Unix user.
    assert hospital.consortium.ok("--token-file", str(file), "access", "me", *home)["user"] == "robot"
    refused = hospital.consortium.refused("--token-file", str(file), "invite", "hospital-d", *home)
    assert refused["code"] == "FORBIDDEN"
    assert hospital.consortium.ok("access", "me", *home)["via"] == "local"
    # The Unix user's own token opens the socket only.
    status, refused = hospital.remote("access", "me", COMITY_TOKEN_FILE=str(hospital.home / "api.token"))
    assert (status, refused["error"]["code"]) == (2, "UNAUTHENTICATED")
    listed = hospital.consortium.ok("access", "token", "list", *home)
    assert [(each["user"], each["state"]) for each in listed] == [("robot", "valid")]
    hospital.consortium.ok("access", "token", "revoke", issued["id"], *home)
    status, refused = hospital.remote("access", "me", COMITY_TOKEN_FILE=str(file))
    assert (status, refused["error"]["code"]) == (2, "UNAUTHENTICATED")
    text = file.read_text().strip()
    for path in (hospital.consortium.log(LEAD), hospital.home / "journal.db", hospital.home / "journal.db-wal"):
        assert not path.exists() or text.encode() not in path.read_bytes()


@pytest.mark.e2e
def test_a_changed_policy_counts_at_the_next_request(hospital: Hospital) -> None:
    token = ("--id-token-file", "-")
    command = [
        *COMITY,
        "--node",
        hospital.url,
        "--ca",
        str(hospital.home / "people.cert.pem"),
        "login",
        *token,
        "--json",
    ]
    done = subprocess.run(
        command,
        input=hospital.issuer.token(sub="bob", groups=["analysts"]),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=hospital.environment(),
    )
    assert json.loads(done.stdout)["roles"] == []
    data = hospital.home / "policy" / "data.json"
    settings = json.loads(data.read_text())
    settings["access"]["roles"]["proposer"] = ["group:analysts"]
    data.write_text(json.dumps(settings))
    hospital.consortium.ok("policy", "reload", "--home", str(hospital.home))
    assert hospital.remote("access", "me")[1]["roles"] == ["proposer"]


@pytest.mark.e2e
def test_an_analyst_proposes_from_another_machine(hospital: Hospital, tmp_path: Path) -> None:
    home, file = ("--home", str(hospital.home)), tmp_path / "carol.token"
    hospital.consortium.ok(
        *("access", "token", "issue", "--user", "carol", "--role", "proposer", "--expires", "1h", *home),
        *("-o", str(file)),
    )
    wish = ("--purpose", "research", "--dataset", "patients", "--aggregation", "plain", "--rounds", "1", "--no-wait")
    status, made = hospital.remote("train", str(DUMMY), *wish, COMITY_TOKEN_FILE=str(file))
    assert status == 0, made
    hospital.consortium.agreed(made["proposal_id"])
    status, view = hospital.remote("proposals", "show", made["proposal_id"], COMITY_TOKEN_FILE=str(file))
    assert (status, view["news"]["state"]) == (0, "FINALIZED")
    assert view["proposal"]["steps"][0]["app"]["digest"] == build_app(DUMMY).digest
    assert "carol" in json.dumps(view["proposal"])
    # A path of the node's machine is nobody's to name who is not its user.
    with pytest.raises(ComityError, match="FORBIDDEN"), Node(hospital.home, socket_as(hospital, file)) as node:
        node.propose({"app": str(hospital.home / "keys"), "purpose": "research", "dataset": "patients"})


def socket_as(hospital: Hospital, file: Path) -> Endpoint:
    return node_endpoint(hospital.home).with_token(file)
