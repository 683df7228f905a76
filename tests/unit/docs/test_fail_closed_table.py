"""docs/fail-closed.md names tests: every one exists, every way has one, and the ways that must be there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "fail-closed.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
# The issue names these; the page may have more.
WAYS = (
    "undefined",
    "exception",
    "panic",
    "timeout",
    "unreachable",
    "malformed",
    "oversized",
    "stale bundle",
    "clock skew",
    "replay",
    "downgraded terms",
    "lies about another party's answer",
    "foreign charter",
)


def rows(text: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return (way, what happens, [(file, test)]) of each row of each table."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] != "way":
            found.append((cells[0], cells[1], _TEST.findall(cells[2])))
    return found


@cache
def functions_in(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions))


def missing(text: str) -> list[str]:
    return [f"{file}::{name}" for _, _, tests in rows(text) for file, name in tests if name not in functions_in(file)]


def test_every_named_test_exists() -> None:
    assert missing(PAGE.read_text()) == []


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_the_issue_is_there(way: str) -> None:
    assert [each for each in rows(PAGE.read_text()) if way in each[0]], way


def test_every_row_says_what_happens_and_names_a_test() -> None:
    found = rows(PAGE.read_text())
    assert len(found) > 35
    assert [way for way, happens, tests in found if not happens or not tests] == []


def test_a_missing_test_is_found() -> None:
    line = "| a way | denied | `tests/unit/docs/test_fail_closed_table.py::test_that_nobody_wrote` |"
    assert missing(line) == ["tests/unit/docs/test_fail_closed_table.py::test_that_nobody_wrote"]
