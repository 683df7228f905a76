"""The coordinator holds no data row, no array and no metric: not in a file, not in memory, not in a message.

The same scanner must catch a control run whose nodes do not seal: a test that cannot fail shows nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gathering import Gatherer, data_secrets, run_secrets
from harness.consortium import LEAD, ORGS, Consortium
from scanner import Finding, Scanner

pytestmark = pytest.mark.e2e
HERE = Path(__file__).resolve().parent
ROUNDS = 2
HEAP_BYTES_MIN = 20_000_000  # less would mean that memory was not read
needs_lead_key = pytest.mark.skipif(
    importlib.util.find_spec("comity_node.training.profiles.lead_key") is None, reason="nodes have no lead-key profile"
)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("masked", "threshold")]
AGGREGATIONS = ["plain", pytest.param("lead-key", marks=needs_lead_key), *SLOW]


def spy_on(consortium: Consortium, aggregation: str, title: str, moments: int) -> tuple[list[Finding], Counter[str]]:
    """Train once, gather in each round up to `moments` and, if more are asked for, at the end.

    Returns:
        What was found, and how many bytes of each kind were read.
    """
    gatherer = Gatherer(consortium, consortium.folder / title, consortium.folder / "edge")
    wish = {
        "app": str(consortium.folder / "app"),
        "purpose": "research",
        "dataset": "patients",
        "title": title,
        "rounds": ROUNDS,
        "aggregation": aggregation,
        "deadline_s": 600,
    }
    run = consortium.run_of(consortium.agreed(consortium.propose(wish)))
    taken: set[int] = set()
    for event in consortium.nodes[LEAD].events(run, timeout_s=120):
        number = event.get("round")
        if event["kind"] == "metrics" and isinstance(number, int) and number <= moments and number not in taken:
            taken.add(number)
            gatherer.take()
    ended = consortium.ended(run)
    assert ended.state == "COMPLETED", ended
    assert len(taken) == min(ROUNDS, moments)
    if moments > ROUNDS:
        gatherer.take()
    files = {org: consortium.home(org) / "patients.csv" for org in ORGS}
    with np.load(consortium.home(LEAD) / "results" / run / "model.npz") as model:
        final = [(f"final model of {run}", model[name].tobytes()) for name in model.files]
    scanner = Scanner([*data_secrets(files), *run_secrets(consortium, run), *final])
    assert scanner.words > 1_000_000
    found: list[Finding] = []
    read: Counter[str] = Counter()
    for kind, name, heap in gatherer.heaps():
        read[kind] += len(heap)
        found += [Finding(f"{kind}: {each.heap}", each.secret, each.window) for each in scanner.scan(name, heap)]
    print(aggregation, title, "pieces looked for:", scanner.words, "bytes read:", dict(read), "found:", len(found))
    return found, read


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nothing_is_found(spied: Consortium, aggregation: str) -> None:
    found, read = spy_on(spied, aggregation, f"sealed {aggregation}", ROUNDS + 1)
    assert not found, "\n".join(map(str, found))
    assert read["memory"] > HEAP_BYTES_MIN
    assert read["edge"] > 1_000_000, "the payloads of a run pass the edge"
    assert read["files"] > 100_000


@pytest.mark.parametrize("aggregation", ["plain", pytest.param("lead-key", marks=[needs_lead_key, pytest.mark.slow])])
def test_a_run_without_seals_is_caught(spied: Consortium, aggregation: str) -> None:
    for org in ORGS:
        spied.down(org)
        spied.use(org, (sys.executable, str(HERE / "unsealed_node.py")))
    spied.up(*ORGS)
    found, _ = spy_on(spied, aggregation, f"open {aggregation}", 1)
    kinds = {each.heap.partition(":")[0] for each in found}
    assert kinds == {"edge", "memory", "files"}, kinds
    assert any("array" in each.secret for each in found)


def test_the_scanner_finds_any_window_anywhere() -> None:
    chance = np.random.default_rng(1)
    secret = chance.normal(size=500).tobytes()
    scanner = Scanner([("secret", secret)])
    noise = chance.bytes(4_000)
    assert scanner.scan("noise", noise) == []
    places = zip(chance.integers(1, len(secret) - 17, 60), chance.integers(0, 4_000, 60), strict=True)
    for begin, place in places:
        # Other neighbours than in the secret, so that the window is 16 bytes long and no byte longer.
        edges = [bytes([secret[begin - 1] ^ 1]), bytes([secret[begin + 15] ^ 1]), bytes([secret[begin + 16] ^ 1])]
        heap = noise[:place] + edges[0] + secret[begin : begin + 16] + edges[2] + noise[place:]
        assert [each.window for each in scanner.scan("heap", heap)] == [secret[begin : begin + 16]]
        heap = noise[:place] + edges[0] + secret[begin : begin + 15] + edges[1] + noise[place:]
        assert scanner.scan("heap", heap) == []
