"""An earlier version of the product, installed beside the one under test: same libraries, its own code.

Rules
1. A version is a commit of this repository, told by its id. Where that commit is not at hand (a shallow clone, an
   archive without history) the test says so and is skipped.
2. Its interpreter has a folder of its own whose only `.pth` file names the earlier code first and this environment's
   libraries behind it; the `.pth` files of the latter, which name the code under test, are not read from there.
3. Apps run without the sandbox's file view ("isolation": "process"), which shows an app one environment only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tarfile
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("protos", "crypto", "policies", "agents", "federation_node", "coordinator", "client", "examples")
GIT_TIMEOUT_S = 60
_START = "from comity_client.main import main; main()"


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return `given` without what would put other code before the earlier version's."""
    return {name: value for name, value in given.items() if name != "PYTHONPATH"}


def install(commit: str, folder: Path) -> tuple[str, ...]:
    """Make the version of `commit` runnable in `folder`; returns the words that stand for its `comity`, or skips."""
    archive = folder / "code.tar"
    if shutil.which("git") is None or not _archive(commit, archive):
        pytest.skip(f"the earlier version ({commit[:12]}) is not in this clone: fetch the whole history")
    code = folder / "code"
    with tarfile.open(archive) as opened:
        opened.extractall(code, filter="data")
    archive.unlink()
    venv.EnvBuilder(symlinks=True).create(folder / "env")
    python = folder / "env" / "bin" / "python"
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    lines = [*(str(code / name) for name in SOURCES[:-1]), sysconfig.get_path("purelib")]
    (packages / "_earlier.pth").write_text("\n".join(lines) + "\n")
    _check(python, code)
    return (str(python), "-P", "-c", _START)


def _archive(commit: str, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "-C", str(ROOT), "archive", "--output", str(target), commit, *SOURCES]
    return subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_S, check=False).returncode == 0


def _check(python: Path, code: Path) -> None:
    """Refuse to go on with an interpreter that runs the code under test instead."""
    asked = "import comity, comity_coordinator, comity_node; print(comity.__path__[0], comity_coordinator.__file__)"
    command = [str(python), "-P", "-c", asked]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True, env=environment(os.environ)
    )
    found = done.stdout.split()
    assert len(found) == 2, found
    assert all(each.startswith(str(code)) for each in found), found
