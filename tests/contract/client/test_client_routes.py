"""Every route that the SDK calls is one that the node or the coordinator serves, method and path."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest

from comity_client import calls

ROOT = Path(__file__).resolve().parents[3]
# What both servers have alike: liveness and status.
SHARED = ROOT / "protos" / "comity" / "wire" / "http_api.py"
VERBS = {"get", "post", "put", "delete"}


@functools.cache
def served(package: str) -> set[tuple[str, str]]:
    """Routes in the decorators of a package's edges; every variable part reads `{}`."""
    found = set()
    for path in (*(ROOT / package).rglob("*.py"), SHARED):
        tree = ast.parse(path.read_text())
        prefix = ""
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "APIRouter":
                prefix = next((str(ast.literal_eval(k.value)) for k in node.keywords if k.arg == "prefix"), "")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            route = node.args[0]
            if node.func.attr in VERBS and isinstance(route, ast.Constant) and isinstance(route.value, str):
                whole = route.value if route.value.startswith("/v1") else prefix + route.value
                if whole.startswith("/v1"):
                    found.add((node.func.attr.upper(), re.sub(r"\{[^}]*\}", "{}", whole)))
    return found


def called(routes: type) -> dict[str, tuple[str, str]]:
    """What each route of the SDK asks for, given a mark for every argument."""
    found = {}
    for name, route in vars(routes).items():
        if isinstance(route, calls.Route):
            build = route._build
            needed = [p for p in inspect.signature(build).parameters.values() if p.default is inspect.Parameter.empty]
            call = build(*({} if p.name in ("wish", "files") else "MARK" for p in needed))
            found[name] = (call.method, call.path.replace("MARK", "{}"))
    return found


@pytest.mark.parametrize(
    ("routes", "package", "least"),
    [
        (calls.NodeRoutes, "federation_node/comity_node", 18),
        (calls.CoordinatorRoutes, "coordinator/comity_coordinator", 9),
    ],
)
def test_the_sdk_calls_what_is_served(routes: type, package: str, least: int) -> None:
    there, wanted = served(package), called(routes)
    assert len(wanted) >= least
    assert {name: route for name, route in wanted.items() if route not in there} == {}


def test_streams_and_files_are_served() -> None:
    node, coordinator = served("federation_node/comity_node"), served("coordinator/comity_coordinator")
    for path in (calls.events_path("MARK"), calls.result_path("MARK"), calls.EXPORT_PATH):
        assert ("GET", path.replace("MARK", "{}")) in node
    assert ("GET", calls.CHANGES_PATH) in coordinator
    assert ("GET", calls.EXPORT_PATH) in coordinator
