"""Dashboards and alerts ask for metrics that the code declares, in PromQL that Prometheus reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from comity_coordinator.observability import metrics as of_coordinator
from comity_node.observability import metrics as of_node

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
DASHBOARDS = {each.stem: each for each in sorted((DEPLOY / "grafana").glob("*.json"))}
RULES = {each.name.partition(".")[0]: each for each in sorted((DEPLOY / "prometheus").glob("*.rules.yml"))}
BOOKS = {"coordinator": of_coordinator.BOOK, "node": of_node.BOOK}
LABELS = {
    name: set(each.labels) for book in BOOKS.values() for each in book for name in (each.name, f"{each.name}_total")
}
PAGE = (ROOT / "docs" / "observability.md").read_text()
MOVES = {"operator", "member", "members", "org-admin", "reviewers", "proposer", "developers"}


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def expressions(part: str) -> list[str]:
    panels = json.loads(DASHBOARDS[part].read_text())["panels"]
    shown = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return shown + [rule["expr"] for rule in rules(RULES[part])]


def selectors(expr: Any) -> Iterator[Any]:
    """Yield the vector selectors of a parsed expression."""
    if isinstance(expr, promql.VectorSelector):
        yield expr
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        child = getattr(expr, name, None)
        if child is not None:
            yield from selectors(child)
    for child in getattr(expr, "args", ()) or ():
        yield from selectors(child)


@pytest.mark.parametrize("part", ["coordinator", "node"])
def test_each_metric_that_is_asked_for_exists(part: str) -> None:
    known, seen = BOOKS[part].exposed(), set()
    for text in expressions(part):
        found = list(selectors(promql.parse(text)))
        assert found, text
        for each in found:
            assert each.name in known | {"up"}, f"{each.name} in {text}"
            seen.add(re.sub(r"_(bucket|count|sum)$", "", each.name))
            base = LABELS.get(each.name, set())
            for matcher in each.matchers.matchers:
                assert matcher.name in base | {"instance", "job"}, f"{matcher.name} in {text}"
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
    assert shown - seen == set(), "a metric that nobody looks at"


@pytest.mark.parametrize("part", ["coordinator", "node"])
def test_labels_of_sums_are_declared(part: str) -> None:
    declared = {label for each in BOOKS[part] for label in each.labels} | {"instance", "le"}
    for text in expressions(part):
        for group in re.findall(r"by \(([^)]*)\)", text):
            assert {label.strip() for label in group.split(",")} <= declared, text


@pytest.mark.parametrize("part", ["coordinator", "node"])
def test_each_alert_says_whose_move_it_is_and_is_explained(part: str) -> None:
    names = [rule["alert"] for rule in rules(RULES[part])]
    assert len(names) == len(set(names))
    for rule in rules(RULES[part]):
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["move"] in MOVES, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert re.fullmatch(r"[0-9]+[smh]", rule.get("for", "1m")), rule["alert"]
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in PAGE, f"docs/observability.md does not explain {rule['alert']}"


@pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
def test_each_metric_is_explained(book: Any) -> None:
    missing = [each.name for each in book if f"`{each.name.partition('_')[2].partition('_')[2]}`" not in PAGE]
    assert missing == []


def test_no_id_is_a_label() -> None:
    allowed = {"kind", "code", "why", "what", "outcome", "org", "phase", "state", "stage", "field"}
    assert {label for book in BOOKS.values() for each in book for label in each.labels} <= allowed
    assert "org" not in {label for each in of_node.BOOK for label in each.labels}, "a node names nobody else"


def test_a_wrong_name_would_be_noticed() -> None:
    (found,) = selectors(promql.parse("sum(rate(comity_node_no_such_total[5m])) by (kind)"))
    assert found.name not in of_node.BOOK.exposed()
    with pytest.raises(ValueError, match=r"invalid|unclosed|expect"):
        promql.parse("sum(rate(comity_node_orders_total[5m])")


def test_dashboards_stand_alone() -> None:
    for path in DASHBOARDS.values():
        board = json.loads(path.read_text())
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"] if "datasource" in panel)


def test_prometheus_accepts_the_rules() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed here")
    for path in RULES.values():
        subprocess.run(["promtool", "check", "rules", str(path)], check=True, timeout=30)
