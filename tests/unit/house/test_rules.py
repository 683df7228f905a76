"""The house rules of style.md as a failing test: sizes, annotations, broad excepts, names, loose ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("protos", "crypto", "policies", "agents", "federation_node", "coordinator", "client")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
BANNED_STEMS = {"utils", "util", "common", "helpers", "helper", "misc"}
LOOSE_ENDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def product_files() -> list[Path]:
    """Every hand-written Python file of the product."""
    return sorted(
        path
        for source in SOURCES
        for path in (ROOT / source).rglob("*.py")
        if "_pb2" not in path.name and "rego" not in path.parts
    )


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def broad_without_reason(text: str, tree: ast.AST) -> list[int]:
    """Lines of handlers that catch everything and give no reason on the same line."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        names = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
        broad = any(
            name is None or (isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"}) for name in names
        )
        if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
            continue  # it cleans up and passes everything on
        reason = re.sub(r"noqa: ?[A-Z0-9, ]+", "", lines[node.lineno - 1].partition("#")[2]).strip(" -:#")
        if broad and not reason:
            found.append(node.lineno)
    return found


def faults_of(path: Path) -> list[str]:
    text = path.read_text()
    tree = ast.parse(text)
    faults = []
    if len(text.splitlines()) > FILE_LINES_MAX:
        faults.append(f"{len(text.splitlines())} lines in the file")
    if path.stem in BANNED_STEMS:
        faults.append("the name says nothing")
    if not ast.get_docstring(tree) and text.strip():
        faults.append("no module docstring")
    for function in functions(tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            faults.append(f"{function.name} has {length} lines")
        if function.returns is None:
            faults.append(f"{function.name} has no return annotation")
    faults += [f"line {line}: broad except without a reason" for line in broad_without_reason(text, tree)]
    faults += [
        f"line {number}: loose end" for number, line in enumerate(text.splitlines(), 1) if LOOSE_ENDS.search(line)
    ]
    faults += [
        f"line {node.lineno}: raises NotImplementedError"
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node)
    ]
    return faults


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules(path: Path) -> None:
    assert faults_of(path) == []


def test_the_rules_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "utils.py"
    bad.write_text("def f():\n    try:\n        pass\n    except Exception:\n        pass  # TODO\n" + "\n" * 400)
    assert len(faults_of(bad)) == 6


def test_one_word_list_for_capabilities() -> None:
    """Inside coordinator and node every folder is a capability; `policy` is the node's alone: the veto lives there."""
    shared = {"membership", "governance", "negotiation", "workflows", "training", "ledger", "transport", "attestation"}
    shared |= {"observability"}
    own = {
        "coordinator/comity_coordinator": {"migrations", "replicas", "backup"},
        "federation_node/comity_node": {"policy", "access", "reviews", "intersections", "statistics", "retention"},
    }
    for package, extra in own.items():
        allowed = shared | extra
        folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and path.name != "__pycache__"}
        assert folders <= allowed, folders - allowed


def test_sql_stays_in_stores() -> None:
    """Only `store.py` (and the database seams) build SQL statements."""
    statement = re.compile(r"^from sqlalchemy import .*\b(select|insert|update|delete|Table)\b", re.MULTILINE)
    places = {path.relative_to(ROOT).as_posix() for path in product_files() if statement.search(path.read_text())}
    seams = {
        "coordinator/comity_coordinator/db.py",
        "coordinator/comity_coordinator/migrations/schema.py",
        "federation_node/comity_node/journal.py",
        "federation_node/comity_node/training/datasets.py",  # reads the organisation's own tables
    }
    strays = {place for place in places if not re.search(r"(store|tables|fsck|_store)\.py$", place)} - seams
    assert strays == set()
