"""What an idle node pays for: the engines of other processes are not in it (libraries.md, last paragraph)."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from importlib import import_module
from importlib.util import find_spec
import comity_node.cli, comity_node.app as app
for name in app.CAPABILITIES:
    for part in ("service", "api"):
        if find_spec(f"comity_node.{name}.{part}"):
            import_module(f"comity_node.{name}.{part}")
print(" ".join(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


FORBIDDEN = ("temporalio", "flwr", "sklearn", "mcp", "torch", "py_ecc", "jwt", "comity_coordinator")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_node_does_not_import(loaded: set[str], package: str) -> None:
    assert package not in loaded


def test_the_program_looked_at_the_node(loaded: set[str]) -> None:
    assert {"comity_node", "grpc", "sqlalchemy", "fastapi"} <= loaded
