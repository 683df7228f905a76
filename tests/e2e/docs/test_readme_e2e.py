"""The README's section "Run it for real", line by line with real processes: what it says is what one can type.

Only names of this machine are put in: folders, a free port, the app, the data, the digest and the run that earlier
lines printed. `up` goes to the background, the editor becomes an edit; the two other founders do as the first did.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.consortium import COMITY, LEAD, ORGS, Consortium

from comity_client.demo import patients
from comity_client.demo.cast import free_port

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
APP = ROOT / "examples" / "hospitals" / "app"
LINE_TIMEOUT_S = 120.0
DIGEST = "xxxx-xxxx-xxxxx-xxxx-xxxx-xxxxx"


def lines_of(page: Path, title: str) -> list[str]:
    """Return the shell lines of a section, without comments."""
    section = re.search(rf"\n## {title}\n(.*?)\n## ", page.read_text(), re.S)
    assert section is not None
    blocks = re.findall(r"```console\n(.*?)```", section[1], re.S)
    lines = [line[2:].partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    assert len(lines) >= 15
    return lines


@pytest.fixture
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    made = Consortium(tmp_path_factory.mktemp("readme"))
    yield made
    made.stop()


class Reader:
    """Somebody who types what the page says, as the admin of one organisation."""

    def __init__(self, cast: Consortium, org: str, port: int) -> None:
        self.cast, self.org = cast, org
        self.said: dict[str, str] = {}
        self.names = {
            "/srv/node": str(cast.home(org)),
            "/srv/comity": str(cast.home("coordinator")),
            "comity.example.org:7700": f"127.0.0.1:{port}",
            "./my-app": str(APP),
        }
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("COMITY_")}
        self.environment["PATH"] = f"{Path(COMITY[0]).parent}:{self.environment['PATH']}"

    def type(self, line: str) -> str:
        """Do one line; returns what it printed."""
        for name, mine in self.names.items():
            line = line.replace(name, mine)
        if re.match(r"comity (node|coordinator) up ", line):
            self.cast.up("coordinator" if "coordinator" in line else self.org)
            return ""
        if line.startswith("export "):
            key, _, value = line.removeprefix("export ").partition("=")
            self.environment[key] = value
            return ""
        if line.startswith("$EDITOR "):
            path = Path(line.split()[1])
            path.write_text(json.dumps({**json.loads(path.read_text()), "app_digests": [self.said["app"]]}))
            return ""
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", line],
            cwd=self.cast.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LINE_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        self._keep(line, done.stdout)
        return done.stdout

    def _keep(self, line: str, said: str) -> None:
        if line.startswith("comity app digest"):
            self.said["app"] = said.split()[0]
        if line.startswith("comity genesis show"):
            self.names[DIGEST] = said.splitlines()[-1].split()[-1]
        if line.startswith("comity train"):
            found = re.search(r"^run (run-[0-9a-f]+): completed$", said, re.M)
            assert found is not None, said
            self.names[" RUN"] = f" {found[1]}"


@pytest.mark.timeout(300)
def test_the_readme_is_true(cast: Consortium) -> None:
    port = free_port()
    (cast.folder / "data").mkdir()
    patients.write(cast.folder / "data")
    reader = Reader(cast, LEAD, port)
    reader.names["/data/patients.csv"] = str(cast.folder / "data" / LEAD / "patients.csv")
    lines = lines_of(ROOT / "README.md", "Run it for real")
    meeting = lines.index("comity genesis show --home /srv/node")
    for line in lines[:meeting]:
        reader.type(line)
    _others_join(cast)
    printed = ""
    for line in lines[meeting:]:
        printed = reader.type(line)
        if line.startswith("comity genesis sign"):
            for org in ORGS[1:]:
                cast.nodes[org].sign_genesis(reader.names[DIGEST])
            cast.until(lambda: cast.nodes[LEAD].status()["genesis"], "the charter is in force")
        if line.startswith("$EDITOR"):
            _others_review(cast, reader.said["app"])
    assert printed.rstrip().endswith(f"genesis {reader.names[DIGEST]}")
    assert (cast.folder / "model.npz").stat().st_size > 0


def _others_join(cast: Consortium) -> None:
    """The other founders do as the first did."""
    for org in ORGS[1:]:
        cast.ok("node", "join", "-", "--home", str(cast.home(org)), stdin=cast.nodes[LEAD].invite(org)["token"] + "\n")
    cast.up(*ORGS[1:])


def _others_review(cast: Consortium, app: str) -> None:
    for org in ORGS[1:]:
        cast.nodes[org].add_dataset("patients", str(cast.folder / "data" / org / "patients.csv"), "pseudonymous")
        path = cast.home(org) / "policy" / "data.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "app_digests": [app]}))
        cast.nodes[org].reload_policy()
