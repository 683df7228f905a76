"""`comity charter …`: what a person types becomes the right request, and what they read says all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from comity_node.governance import cli
from comity_policies.bundle import Bundle, shipped_folder, write_defaults

VIEW: dict[str, Any] = {
    "digest": "0a" * 32,
    "name": "abcd-efgh-ijkl-mnop-qrstu-vwxyz",
    "version": 2,
    "attempt": 1,
    "kinds": ["suspend-member"],
    "proposer": "hospital-a",
    "reason": "keys may be stolen",
    "proposed_at": "2029-01-01T00:00:00Z",
    "deadline": "2029-01-02T00:00:00Z",
    "state": "OPEN",
    "in_force": False,
    "allowed": ["hospital-a"],
    "denied": ["hospital-b"],
    "awaited": ["hospital-c"],
    "missing": [],
    "reasons": {"hospital-b": "who says so?"},
    "needed": {"suspend-member": "2/3"},
    "differences": ["suspend hospital-d"],
    "then": "at the deadline it ends",
}
CHARTER: dict[str, Any] = {
    "digest": "0b" * 32,
    "name": "bbbb-cccc",
    "genesis": "aaaa-bbbb",
    "version": 1,
    "charter": {
        "roles": {"steward": ["hospital-a"]},
        "defaults": {"rounds": 5},
        "policy": {"name": "rules", "digest": "0b" * 32},
        "agents": [{"name": "tumours", "version": "1.0.0", "digest": "0c" * 32, "publisher": "hospital-a"}],
        "trust_roots": [{"kind": "sev-snp", "name": "milan", "digest": "0e" * 32}],
    },
    "members": [
        {"org": "hospital-a", "title": "A", "owner": "A gGmbH", "fingerprint": "ffff", "suspended": False},
        {"org": "hospital-d", "title": "D", "owner": "D gGmbH", "fingerprint": "eeee", "suspended": True},
    ],
    "quorum": {"admit-member": "2/3"},
    "proposals": [VIEW],
    "candidates": [{"org": "hospital-e", "fingerprint": "dddd", "sponsor": "hospital-a"}],
}


class Node:
    """Answers as a node would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self.got: list[str] = []

    def get(self, path: str) -> dict[str, Any]:
        self.got.append(path)
        if path == "/v1/charter":
            return CHARTER
        return {"proposals": [VIEW]} if path == "/v1/charter/proposals" else VIEW

    def post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self.posted.append((path, document))
        return VIEW


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()
    monkeypatch.setattr(cli, "_api", lambda home: made)
    return made


def run(*arguments: str) -> str:
    app = typer.Typer()
    cli.register(app)
    app.command("other")(lambda: None)  # with a single group typer would leave its name out
    done = CliRunner().invoke(app, ["charter", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def wrong(*arguments: str) -> None:
    app = typer.Typer()
    cli.register(app)
    app.command("other")(lambda: None)
    assert CliRunner().invoke(app, ["charter", *arguments]).exit_code == 2


def test_show_names_everything_that_a_voter_has_to_see(node: Node) -> None:
    text = run("show", VIEW["name"])
    assert node.got == [f"/v1/charter/proposals/{VIEW['name']}"]
    for words in (
        "keys may be stolen",
        "suspend hospital-d",
        "2/3",
        "hospital-b (who says so?)",
        "awaited: hospital-c",
    ):
        assert words in text
    whole = run("show")
    named = ("role steward: hospital-a", "asks for rounds: 5", "policy of all: rules", "published: tumours@1.0.0 0c0c")
    for words in (
        *("genesis: aaaa-bbbb", "hospital-d", "suspended", "to admit-member: 2/3", "admitted: hospital-e dddd"),
        *(*named, "trusted root: sev-snp:milan"),
    ):
        assert words in whole
    assert json.loads(run("show", "--json"))["version"] == 1
    assert run("list").startswith(f"{VIEW['name']}  OPEN")


def test_a_name_cannot_lead_elsewhere(node: Node) -> None:
    run("show", "../../status?x=1#")
    assert node.got == ["/v1/charter/proposals/statusx1"]


def test_members_and_settings(node: Node) -> None:
    run(
        *("propose", "--admit", "hospital-e", "--suspend", "hospital-c", "--reinstate", "hospital-d", "--rotate"),
        *("--remove", "hospital-f", "--set", "quorum.admit-member=3/4", "--set", "roles.witnesses=a,b"),
        *("--reason", "because", "--deadline", "36h"),
        *("--withdraw-agent", "tumours@1.0.0", "--distrust", "sev-snp:milan"),
    )
    ((path, wish),) = node.posted
    assert path == "/v1/charter/proposals"
    assert wish == {
        "admit": ["hospital-e"],
        "suspend": ["hospital-c"],
        "reinstate": ["hospital-d"],
        "remove": ["hospital-f"],
        "rotate": True,
        "withdraw_agents": ["tumours@1.0.0"],
        "distrust": ["sev-snp:milan"],
        "settings": {"quorum.admit-member": "3/4", "roles.witnesses": "a,b"},
        "reason": "because",
        "deadline_s": 36 * 3600,
    }


def test_files_are_named_by_their_digests(node: Node, tmp_path: Path) -> None:
    root = tmp_path / "milan.pem"
    root.write_bytes(b"a certificate")
    rules = tmp_path / "house-rules"
    rules.mkdir()
    write_defaults(rules, "hospital-a")
    offer = {"log_name": "next/demo", "log_key": "AAAA", "size": 7, "root": "0e" * 32}
    (tmp_path / "change.json").write_text(json.dumps({**offer, "more": 1}))
    run(
        *("propose", "--trust-root", f"sev-snp:{root}", "--policy", str(rules)),
        *("--coordinator", str(tmp_path / "change.json")),
    )
    wish = node.posted[0][1]
    digest = hashlib.sha256(b"a certificate").hexdigest()
    assert wish["trust_roots"] == [{"kind": "sev-snp", "name": "milan.pem", "digest": digest}]
    assert wish["policy"] == {"digest": Bundle.load(shipped_folder(), rules).digest, "name": "house-rules"}
    assert wish["coordinator"] == offer
    bundle = Bundle.load(shipped_folder(), rules)
    archive = tmp_path / "rules.tar.gz"
    archive.write_bytes(bundle.archive())
    run("propose", "--policy", str(archive))
    assert node.posted[1][1]["policy"] == {"digest": bundle.digest, "name": "rules.tar.gz"}


def test_an_app_is_published_by_its_digest(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class App:
        digest, name, version, publisher = "0c" * 32, "tumours", "1.0.0", "hospital-a"

    monkeypatch.setattr("comity_agents.flower.bundle.build_app", lambda folder: App)
    run("propose", "--publish-agent", str(tmp_path))
    assert node.posted[0][1]["agents"] == [
        {"digest": "0c" * 32, "name": "tumours", "version": "1.0.0", "publisher": "hospital-a"}
    ]


def test_votes(node: Node) -> None:
    run("vote", VIEW["name"])
    run("vote", VIEW["name"], "--deny", "nobody has met them")
    run("vote", VIEW["name"], "--reason", "I have", "--instead-of", "0d" * 32)
    assert [(each["deny"], each["reason"], each["instead_of"]) for _, each in node.posted] == [
        ("", "", ""),
        ("nobody has met them", "", ""),
        ("", "I have", "0d" * 32),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "no-value"),
        ("--deadline", "soon"),
        ("--deadline", "-1h"),
        ("--trust-root", "no-kind"),
        ("--trust-root", "sev-snp:/no/such/file"),
        ("--coordinator", "/no/such/file"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(node: Node, arguments: tuple[str, ...]) -> None:
    wrong("propose", *arguments)
    assert node.posted == []


def test_a_file_that_adopt_did_not_write(node: Node, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"log_name": "x"}'):
        (tmp_path / "odd.json").write_text(text)
        wrong("propose", "--coordinator", str(tmp_path / "odd.json"))
    assert node.posted == []
