"""docs/first-policy.md, line by line with real processes: what the page says is what one can type, and what one reads.

Only folders of this machine are put in. The editor makes the change that the page tells; the Rego on the page is saved
where the page says. The first and the last command are processes of a shell; those between run in this one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import commands, processes

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "first-policy.md"
LINE_TIMEOUT_S = 240.0
WAIT_S = 30.0
_BLOCK = re.compile(r"```(console|rego)\n(.*?)```", re.S)
_SAVED = re.compile(r"Save this as\s+`([^`]+)`")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="fp", dir="/tmp"))
    yield made
    for pid in processes.living_in(made):
        processes.kill(pid)
    shutil.rmtree(made, ignore_errors=True)


class Reader:
    """Somebody who works through the page."""

    def __init__(self, folder: Path) -> None:
        self.names = {"/tmp/hospitals": str(folder / "h"), "/tmp/my-policy": str(folder / "mine")}
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("COMITY_")}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{self.environment['PATH']}"
        self.said: list[tuple[str, str]] = []
        self.rounds = ["5", "200"]

    def mine(self, text: str) -> str:
        for name, here in self.names.items():
            text = text.replace(name, here)
        return text

    def save(self, path: str, text: str) -> None:
        Path(self.mine(path)).write_text(text)

    def type(self, line: str) -> None:
        shown, line = line, self.mine(line)
        if line.startswith("export "):
            key, _, value = line.removeprefix("export ").partition("=")
            self.environment[key] = value
            return
        if line.startswith("$EDITOR "):
            path = Path(line.split()[1])
            changed, count = re.subn(r'"rounds_max": \d+', f'"rounds_max": {self.rounds.pop(0)}', path.read_text())
            assert count == 1
            path.write_text(changed)
            return
        done = self.run(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        self.said.append((shown, done.stdout))

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line)
        if words[0] == "comity" and words[1] != "demo":
            with contextlib.chdir(ROOT):
                return commands.run(*words[1:], env=self.environment)
        return subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", line],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LINE_TIMEOUT_S,
            check=False,
        )

    def last(self, start: str) -> str:
        return next(said for line, said in reversed(self.said) if line.startswith(start))


def _blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, content, where a Rego block is saved)."""
    for block in _BLOCK.finditer(text):
        saved = _SAVED.findall(text[: block.start()])
        yield block[1], block[2], saved[-1] if saved and block[1] == "rego" else ""


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


@pytest.mark.timeout(400)
def test_the_first_policy_can_be_typed(folder: Path) -> None:
    reader = Reader(folder)
    for kind, content, saved in _blocks(PAGE.read_text()):
        if kind == "rego":
            assert saved
            reader.save(saved, content)
            continue
        for line in content.splitlines():
            if line.startswith("$ comity review list"):
                assert _until(lambda: _asked_again(reader)), reader.said[-3:]
            reader.type(line.removeprefix("$ "))
    told = {
        "comity policy explain dec-1": "purpose marketing is not one that hospital-b supports (PURPOSE)",
        "comity policy replay": "  + proposal.rounds: step train asks for 10 rounds, the most is 5 (ROUNDS)",
        "comity policy test": " passed, 0 failed; bundle ",
        "comity policy sign": "hospital-b signed bundle",
        "comity policy reload": "in force: bundle",
        "comity policy log --stage proposal": "review",
    }
    assert [line for line, words in told.items() if words not in reader.last(line)] == []
    differing = reader.last("comity policy diff /tmp/hospitals/hospital-b/policy /tmp/my-policy --recorded")
    for words in (
        "module own/columns.rego: added",
        "rule own.columns: added",
        "  allow -> review",
        "  + own.columns: 31 columns of patients are asked for (MANY_COLUMNS)",
        "decisions replayed under both, 1 differ",
    ):
        assert words in differing, differing
    assert "again" in reader.last("comity review list")
    assert not (folder / "h").exists()


def _asked_again(reader: Reader) -> bool:
    return " review " in reader.run("comity policy log --stage proposal --limit 1").stdout


def test_the_page_tells_what_the_test_looks_for() -> None:
    text = PAGE.read_text()
    kinds = [kind for kind, _, _ in _blocks(text)]
    assert kinds.count("rego") == 2
    assert len(re.findall(r"^\$ ", text, re.M)) > 20
