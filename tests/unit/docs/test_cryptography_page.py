"""docs/cryptography.md names tests and parameters: every test exists, and every digest is the pinned one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from comity_crypto.secagg.bfv.params import PARAMETER_SETS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "cryptography.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)


def test_every_named_test_exists() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert len(NAMED) > 20
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if name
        not in {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, functions)}
    ]
    assert missing == []


def test_the_parameters_are_the_pinned_ones() -> None:
    for item in PARAMETER_SETS.values():
        assert f"| `{item.name}` | {item.ring_degree} |" in PAGE
        assert f"`{item.digest}`" in PAGE
