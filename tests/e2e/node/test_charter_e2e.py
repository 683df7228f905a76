"""The members' decisions through the commands, with real processes, verified offline: members, rules, coordinator."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
APP = Path(__file__).resolve().parents[3] / "examples" / "hospitals" / "app"
A, B, C, D = "hospital-a", "hospital-b", "hospital-c", "hospital-d"


def charter(cast: Any, org: str, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = cast.ok("charter", *args, "--home", str(cast.home(org)))
    return found


def propose(cast: Any, org: str, *args: str) -> str:
    view = charter(cast, org, "propose", *args)
    assert view["state"] == "OPEN", view
    return str(view["name"])


def shown(cast: Any, org: str, name: str) -> None:
    path = "/v1/charter/proposals"
    there = lambda: any(each["name"] == name for each in cast.api(org).get(path)["proposals"])  # noqa: E731
    cast.wait(there, f"{org} knows the proposal")


def carried(cast: Any, name: str, *orgs: str, commands: bool = False) -> None:
    """Everybody votes: by the command, or by the call beneath it, which is quicker."""
    view: dict[str, Any] = {}
    for org in orgs:
        shown(cast, org, name)
        if commands:
            view = charter(cast, org, "vote", name)
        else:
            view = cast.api(org).post("/v1/charter/votes", {"digest": name})
    assert view["in_force"], view


def version(cast: Any, number: int, *orgs: str) -> None:
    for org in orgs:
        cast.wait(lambda org=org: cast.status(org)["charter_version"] == number, f"{org} has charter {number}")


def test_the_members_decide(cast: Any) -> None:
    genesis = cast.found(A, B, C)

    # Admit: the sponsor's node proposes its guest; everybody reads the fingerprint, two of three suffice.
    token = cast.api(B).post("/v1/invitations", {"org": D})["token"]
    joined = cast.ok("node", "join", "-", "--home", str(cast.home(D)), "--genesis", genesis, stdin=token + "\n")
    cast.start(D)
    view = cast.wait(lambda: cast.api(A).get("/v1/charter")["proposals"], "the sponsor has proposed its guest")[0]
    assert (view["proposer"], view["kinds"], view["awaited"]) == (B, ["admit-member"], [A, B, C])
    assert view["differences"] == [f"admit {D}: {D}, {D}, fingerprint {joined['fingerprint']}"]
    carried(cast, view["name"], A, C, commands=True)
    version(cast, 2, A, B, C, D)

    # Change a quorum rule: all four have to say yes; one denial ends it, with its reason.
    args = ("--set", "quorum.change-charter=3/4", "--reason", "so that we need not all be awake")
    name = propose(cast, C, *args)
    shown(cast, D, name)
    denied = charter(cast, D, "vote", name, "--deny", "explain it first")
    assert (denied["state"], denied["reasons"]) == ("DENIED", {D: "explain it first"})
    assert cast.refused("charter", "vote", name, "--home", str(cast.home(D)))["code"] == "CONFLICT"
    again = propose(cast, C, *args)
    assert again != name, "who denied does not sign: it is another attempt"
    carried(cast, again, A, B, C, D)
    version(cast, 3, A, B, C, D)

    # A proposal that too few vote on ends at its deadline, and names them.
    late = propose(cast, A, "--set", "max_checkpoint_age_s=60", "--deadline", "3s", "--reason", "faster")
    status = cast.status(B)
    assert [each["awaited"] for each in status["charter_proposals"]] == [[A, B, C, D]]
    path = f"/v1/charter/proposals/{late}"
    ended = cast.wait(lambda: (v := cast.api(B).get(path))["state"] == "EXPIRED" and v, "it ends at its deadline")
    assert ended["missing"] == [A, B, C, D]

    # Suspend: no vote any more, not asked any more, still connected.
    name = propose(cast, A, "--suspend", C, "--reason", "keys may be stolen")
    carried(cast, name, A, B, D)
    version(cast, 4, A, B, C, D)
    error = cast.refused("charter", "propose", "--reinstate", C, "--reason", "we are back", "--home", str(cast.home(C)))
    assert error["code"] == "SUSPENDED"
    cast.connected(C)
    members = {each["org"]: each["suspended"] for each in charter(cast, D, "show")["members"]}
    assert members == {A: False, B: False, C: True, D: False}

    # Rotate: the node signs with its new keys once the members have decided, without a restart.
    before = cast.status(D)["fingerprint"]
    name = propose(cast, D, "--rotate", "--reason", "yearly")
    carried(cast, name, A, B, D)
    version(cast, 5, A, B, C, D)
    cast.wait(lambda: cast.status(D)["fingerprint"] != before, "the new keys are in use")
    name = propose(cast, D, "--reinstate", C, "--reason", "all keys are new")
    carried(cast, name, A, B, D)
    version(cast, 6, A, B, C, D)

    # Whoever has nothing but the genesis name can replay all of it.
    file = cast.folder / "ledger.jsonl"
    cast.ok("coordinator", "ledger", "export", str(cast.home("coordinator")), str(file))
    report = cast.ok("charter", "verify", str(file), "--genesis", genesis)
    assert [each["kinds"] for each in report["charters"]] == [
        ["genesis"],
        ["admit-member"],
        ["change-charter"],
        ["suspend-member"],
        ["rotate-key"],
        ["admit-member"],
    ]
    assert report["counts"]["charter-ended"] == 2
    assert cast.ok("coordinator", "ledger", "fsck", str(cast.home("coordinator")))["findings"] == []
    other = "b" * 26 if not genesis.startswith("b") else "c" * 26
    assert cast.refused("charter", "verify", str(file), "--genesis", other)["code"] == "LEDGER_INVALID"
    lines = file.read_text().splitlines()
    entry = json.loads(lines[-1])
    file.write_text("\n".join([*lines[:-1], json.dumps({**entry, "index": 0})]) + "\n")
    assert cast.refused("charter", "verify", str(file), "--genesis", genesis)["code"] == "LEDGER_INVALID"


def successor(cast: Any, genesis: str, export: Path) -> dict[str, str]:
    """Start another coordinator in the dead one's place, on another port; returns the tokens."""
    cast.home("coordinator").rename(cast.folder / "dead")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        cast.port = int(probe.getsockname()[1])
    args = ("coordinator", "adopt", str(cast.home("coordinator")), "--export", str(export), "--consortium=demo")
    orgs = [f"--org={org}" for org in (A, B)]
    wrong = cast.refused(*args, *orgs, f"--address=127.0.0.1:{cast.port}", "--genesis", "b" * 26)
    assert wrong["code"] == "LEDGER_INVALID"
    made = cast.ok(*args, *orgs, f"--address=127.0.0.1:{cast.port}", "--genesis", genesis, "--workflows=timers")
    assert cast.ok("coordinator", "ledger", "fsck", str(cast.home("coordinator")))["findings"] == []
    cast.start("coordinator")
    tokens: dict[str, str] = made["tokens"]
    return tokens


def proved(cast: Any, *orgs: str) -> None:
    for org in orgs:
        cast.wait(
            lambda org=org: not cast.api(org).get("/v1/ledger")["entries"].get("expected"), f"{org} has all proofs"
        )
        assert cast.api(org).get("/v1/ledger")["alarms"] == []


def asked(cast: Any) -> str:
    """Let A propose a training, which waits for a person at each; returns its id."""
    rows = "age,result\n" + "".join(f"{number},{number % 2}\n" for number in range(40))
    for org in (A, B):
        file = cast.folder / f"{org}.csv"
        file.write_text(rows)
        settings = cast.home(org) / "policy" / "data.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "aggregation": "plain"}))
        cast.api(org).post("/v1/policy/reload", {})
        cast.ok(
            "datasets", "add", "patients", str(file), "--classification", "pseudonymous", "--home", str(cast.home(org))
        )
    wish = (
        "--purpose",
        "research",
        "--dataset",
        "patients",
        "--aggregation",
        "plain",
        "--no-wait",
        "--home",
        str(cast.home(A)),
    )
    cast.ok("train", str(APP), *wish)
    found = cast.wait(lambda: cast.api(A).get("/v1/proposals"), "it is proposed")[0]
    for org in (A, B):
        cast.wait(lambda org=org: cast.api(org).get("/v1/reviews"), f"{org} has a review")
    return str(found["proposal_id"])


@pytest.mark.slow
def test_a_dead_coordinator_is_replaced(cast: Any) -> None:
    genesis = cast.found(A, B)
    waiting = asked(cast)
    name = propose(cast, A, "--set", "max_checkpoint_age_s=300", "--reason", "something to remember")
    carried(cast, name, A, B)
    version(cast, 2, A, B)
    proved(cast, A, B)
    export = cast.folder / "export.jsonl"
    cast.ok("ledger", "export", str(export), "--home", str(cast.home(B)))
    cast.kill("coordinator")

    tokens = successor(cast, genesis, export)
    for org in (A, B):
        adopt = ("node", "adopt", "-", "--home", str(cast.home(org)))
        assert cast.refused(*adopt, stdin=tokens[org])["code"] == "CONFLICT", "not while the node runs"
        assert cast.stop(org) == 0
        other = tokens[A if org != A else B]
        assert cast.refused(*adopt, stdin=other)["code"] == "FORBIDDEN"
        moved = cast.ok(*adopt, stdin=tokens[org])
        assert (moved["runs_ended"], moved["proposals_open"]) == ([], [waiting])
        cast.start(org)
        cast.connected(org)

    # Before the members have decided it does nothing for them but take their votes on this.
    home = ("--home", str(cast.home(A)))
    early = cast.refused("charter", "propose", "--set", "max_checkpoint_age_s=60", "--reason", "early", *home)
    assert early["code"] == "CHARTER_INVALID"
    offer = str(cast.home("coordinator") / "coordinator-change.json")
    name = propose(cast, B, "--coordinator", offer, "--reason", "the old one is gone")
    carried(cast, name, A, B)
    version(cast, 3, A, B)
    for org in (A, B):
        cast.connected(org)

    # What was being negotiated goes on: nobody is asked twice, and people's word reaches the proposer.
    (item,) = cast.api(B).get("/v1/reviews")
    cast.ok("review", "deny", item["id"], "--reason", "not this year", "--home", str(cast.home(B)))
    ended = cast.wait(lambda: cast.api(A).get(f"/v1/proposals/{waiting}")["news"]["ended"], "the denial is known")
    assert (ended["code"], ended["move"]) == ("POLICY_DENIED", B), (
        ended,
        (cast.folder / f"{A}.log").read_text()[-4000:],
    )

    # From here on it is the coordinator: decisions go on, newcomers join, and history is one.
    name = propose(cast, A, "--set", "max_checkpoint_age_s=60", "--reason", "now")
    carried(cast, name, A, B)
    version(cast, 4, A, B)
    token = cast.api(B).post("/v1/invitations", {"org": C})["token"]
    cast.ok("node", "join", "-", "--home", str(cast.home(C)), "--genesis", genesis, stdin=token + "\n")
    cast.start(C)
    view = cast.wait(lambda: cast.api(A).get("/v1/charter")["proposals"], "the sponsor has proposed its guest")[0]
    carried(cast, view["name"], A, B)
    version(cast, 5, A, B, C)
    proved(cast, A, B)
    whole = cast.folder / "whole.jsonl"
    cast.ok("ledger", "export", str(whole), "--home", str(cast.home(C)))
    report = cast.ok("charter", "verify", str(whole), "--genesis", genesis)
    kinds = [each["kinds"] for each in report["charters"]]
    assert kinds == [["genesis"], ["change-charter"], ["change-coordinator"], ["change-charter"], ["admit-member"]]
    assert cast.ok("coordinator", "ledger", "fsck", str(cast.home("coordinator")))["findings"] == []
