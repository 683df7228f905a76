"""The consortium of `faults/leadkey`, asked for statistics instead of a training."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comity_crypto.quorum import make_certificate, message_for
from comity_policies.documents import AggregateStep, Agreement, DatasetAsk, Proposal
from comity_policies.query_text import parse
from comity_policies.terms import Terms


def _leadkey_module() -> Any:
    path = Path(__file__).resolve().parents[1] / "leadkey" / "conftest.py"
    spec = importlib.util.spec_from_file_location("comity_tests_leadkey_rig", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


leadkey = _leadkey_module()
rig_module = leadkey.rig_module
workers, rig = leadkey.workers, leadkey.rig
COLUMNS = ("age", "bmi", "group", "smoker")


def people(seed: int, records: int) -> list[tuple[str, str, str, str]]:
    """Records whose numbers have three places at most, some outside the range that queries declare, some missing."""
    draw = random.Random(seed)
    return [
        (
            str(draw.randint(-5, 130)),
            "" if draw.random() < 0.05 else f"{draw.uniform(10, 60):.{draw.randint(0, 3)}f}",
            draw.choice(["north", "south", "east"]),
            draw.choice(["0", "1", "1.0", ""]),
        )
        for _ in range(records)
    ]


class Statistics:
    """Asks the rig."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.records: dict[str, list[tuple[str, str, str, str]]] = {}

    def data(self, records: int = 120) -> None:
        """Give every organisation records of its own."""
        for seed, org in enumerate(sorted(self.rig.nodes)):
            self.put(self.rig.nodes[org], people(seed, records))

    def put(self, node: Any, rows: list[tuple[str, str, str, str]]) -> None:
        """Give one organisation these records."""
        path = node.home / "people.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        node.service.catalogue.add("people", path, classification="pseudonymous", replace=True)
        self.records[node.org] = rows

    def agree(self, text: str, *, rounds: int = 1, terms: dict[str, Any] | None = None, uses: int = 1) -> Agreement:
        """Return an agreement of all on one query."""
        orgs = tuple(self.rig.nodes)
        step = AggregateStep("ask", orgs[0], parse(text), rounds, 20)
        wanted = Terms.parse({"purposes": ["research"], "aggregation": "plain", **(terms or {})})
        asks = tuple(DatasetAsk(org, "people", COLUMNS) for org in orgs)
        proposal = Proposal(
            f"p-{random.randbytes(6).hex()}", 1, rig_module.CONSORTIUM, orgs[0], "research", "a test", (step,), orgs,
            (), len(orgs), asks, wanted, "2099-01-01T00:00:00Z", uses,
        )  # fmt: skip
        agreement = Agreement("agr-1", rig_module.CONSORTIUM, self.rig.charter.digest, proposal, orgs, wanted)
        message = message_for("agreement", agreement.digest)
        signatures = {org: self.rig.keys[org].bls_sign(message) for org in orgs}
        for org in orgs:
            held = rig_module.Held(agreement, make_certificate(agreement.digest, signatures))
            self.rig.nodes[org].agreements.held[agreement.digest] = held
        return agreement

    async def run(self, agreement: Agreement, use: int = 1) -> dict[str, Any]:
        """Run it to its end; returns what the lead said at the end."""
        found: dict[str, Any] = await self.rig.finish(self.rig.board.prepare(agreement, use))
        return found

    async def answer(self, text: str, **wishes: Any) -> dict[str, Any]:
        """Return the answer to a query, as every recipient has it."""
        agreement = self.agree(text, **wishes)
        finished = await self.run(agreement)
        assert finished["state"] == "COMPLETED", finished
        cards = [self.rig.result(org, finished["run"]) / "card.json" for org in self.rig.nodes]
        await self.rig.until(lambda: all(path.exists() for path in cards))
        answers = [json.loads(path.read_text())["statistic"] for path in cards]
        assert answers[0] == answers[1] == answers[2]
        found: dict[str, Any] = answers[0]
        return found


@pytest.fixture
def ask(rig: Any) -> Statistics:
    found = Statistics(rig)
    found.data()
    return found


@pytest.fixture
def rows(ask: Statistics) -> Callable[[], list[tuple[str, str, str, str]]]:
    """All records of all organisations, as if somebody had them."""
    return lambda: [row for _, each in sorted(ask.records.items()) for row in each]
