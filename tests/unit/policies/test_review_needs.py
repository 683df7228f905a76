"""Who has to look: what a rule asks for beside its reason, and what two bundles ask for together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError
from comity_policies.bundle import write_defaults
from comity_policies.decisions import Decision, ReviewNeed, Stage, example, stricter
from comity_policies.documents import Reason
from comity_policies.engine import PolicySettings, open_engine

RULE = """package comity.dispatch

review contains {
	"rule": "own.look",
	"code": "LOOK",
	"message": "a person looks",%s
}
"""


def need_of(folder: Path, extra: str) -> ReviewNeed:
    write_defaults(folder, "hospital-b")
    (folder / "own.rego").write_text(RULE % extra)
    document = example(Stage.DISPATCH)
    document["agreement"]["terms"] = {"aggregation": "lead-key"}
    engine = open_engine(PolicySettings(folder=folder))
    try:
        decision = engine.decide(Stage.DISPATCH, document)
    finally:
        engine.close()
    assert decision.decision == "review", decision
    assert [(reason.rule, reason.code) for reason in decision.reasons] == [("own.look", "LOOK")]
    return decision.review


@pytest.mark.parametrize(
    ("extra", "need"),
    [
        ("", ReviewNeed("reviewer", 1, "run")),
        ('"approvals": 2,', ReviewNeed("reviewer", 2, "run")),
        ('"scope": "order",', ReviewNeed("reviewer", 1, "order")),
        ('"scope": "run",', ReviewNeed("reviewer", 1, "run")),
        ('"scope": "odrer",', ReviewNeed("reviewer", 1, "order")),
    ],
)
def test_a_rule_says_how_many_look_and_for_how_long(tmp_path: Path, extra: str, need: ReviewNeed) -> None:
    assert need_of(tmp_path, extra) == need


def test_two_bundles_together_ask_for_the_more() -> None:
    def review(*need: Any) -> Decision:
        return Decision("review", (Reason("a", "B", "c"),), review=ReviewNeed(*need))

    assert stricter(review("reviewer", 1, "order"), review("admin", 3)).review == ReviewNeed("reviewer", 3, "order")
    assert stricter(Decision("allow"), review("admin", 2, "order")).review == ReviewNeed("admin", 2, "order")


def test_a_need_has_one_spelling() -> None:
    for need in (ReviewNeed(), ReviewNeed("admin", 2, "order")):
        assert ReviewNeed.from_json(need.to_json()) == need
    assert ReviewNeed().to_json() == {"role": "reviewer", "approvals": 1}
    for bad in ({"role": "a", "approvals": 1, "scope": "day"}, {"role": "a", "approvals": 1, "scope": []}):
        with pytest.raises(ComityError):
            ReviewNeed.from_json(bad)
