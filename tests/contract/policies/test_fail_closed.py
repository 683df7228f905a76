"""Ways in which a decision could fail open that the other files do not show; docs/fail-closed.md lists all of them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import embedded
from comity_policies.access import roles_with
from comity_policies.bundle import Bundle
from comity_policies.decisions import Stage, example, parse_result
from comity_policies.embedded import EmbeddedEngine
from comity_policies.engine import decide_with

ALLOWED = {"decision": "allow", "reasons": [], "terms": {}}


def _unlinted(bundle: Bundle, name: str, text: str) -> Bundle:
    """A bundle that lint would refuse, to see that the engine is closed without it."""
    return Bundle({**bundle.modules, name: text}, {}, bundle.settings, bundle.digest)


def _asked(bundle: Bundle, text: str, **egress: Any) -> Any:
    engine = EmbeddedEngine(_unlinted(bundle, "own/x.rego", text), timeout_ms=2000)
    document = example(Stage.EGRESS)
    assert engine.decide(Stage.EGRESS, document).allowed, "the control"
    document["result"] |= egress
    decision = engine.decide(Stage.EGRESS, document)
    assert engine.decide(Stage.EGRESS, example(Stage.EGRESS)).allowed, "it goes on afterwards"
    engine.close()
    return decision


def test_a_panic_of_the_engine_is_a_denial(bundle: Bundle) -> None:
    """`strings.count` with an empty needle panics in the embedded engine, which is no `Exception`."""
    panics = 'package comity.egress\n\ndeny contains 1 if strings.count("abc", input.result.needle) > 9\n'
    decision = _asked(bundle, panics, needle="")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")


def test_a_missing_built_in_is_a_denial(bundle: Bundle) -> None:
    """`not blocked` must not become true because the function behind `blocked` does not exist."""
    text = """package comity.egress

deny contains {"rule": "own", "code": "X", "message": "x"} if {
	input.result.needle
	not harmless
}

harmless if not net.cidr_overlap(input.result.needle, "10.0.0.1")
"""
    decision = _asked(bundle, text, needle="10.0.0.0/8")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")


def test_an_undefined_result_is_a_denial(bundle: Bundle) -> None:
    text = bundle.modules["egress/egress.rego"]
    start, end = text.index("default result"), text.index("result := data.comity.lib.answer")
    without = text[:start] + text[end:].replace("\tcomplete\n", "\tcomplete\n\tnot input.result.needle\n", 1)
    engine = EmbeddedEngine(_unlinted(bundle, "egress/egress.rego", without))
    document = example(Stage.EGRESS)
    assert engine.decide(Stage.EGRESS, document).allowed
    document["result"]["needle"] = True
    decision = engine.decide(Stage.EGRESS, document)
    engine.close()
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_UNDEFINED")


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), RecursionError(), MemoryError(), ValueError()])
def test_any_exception_is_a_denial(error: Exception) -> None:
    def fails(stage: str, document: dict[str, Any]) -> Any:
        raise error

    decision = decide_with(fails, Stage.EGRESS, {}, "0a" * 32, "test")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")
    assert "x" not in decision.reasons[0].message, "what an exception says may hold data"
    assert roles_with(fails, {}).roles == frozenset()


def test_a_code_of_another_kind_is_no_way_through() -> None:
    def fails(stage: str, document: dict[str, Any]) -> Any:
        raise ComityError(ErrorCode.REVIEW_NEEDED, "let me pass")

    decision = decide_with(fails, Stage.EGRESS, {}, "0a" * 32, "test")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")


@pytest.mark.parametrize(
    "result",
    [
        True,
        "allow",
        [ALLOWED],
        {"allow": True},
        {**ALLOWED, "decision": True},
        {**ALLOWED, "decision": "allow "},
        {**ALLOWED, "decision": ["allow"]},
        {**ALLOWED, "deny": []},
        {**ALLOWED, "reasons": None},
        {**ALLOWED, "terms": {"unheard-of": 1}},
        {**ALLOWED, "terms": {"rounds": 2.5}},
        {**ALLOWED, "review": {"role": "reviewer", "approvals": 0}},
        {**ALLOWED, "decision": "review", "reasons": []},
    ],
)
def test_malformed_results_are_denials(result: Any) -> None:
    assert parse_result(ALLOWED).decision == "allow", "the control"
    decision = decide_with(lambda stage, document: result, Stage.EGRESS, {}, "0a" * 32, "test")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")


def test_too_many_questions_are_denials(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "QUEUE_MAX", 2)
    engine = EmbeddedEngine(bundle, timeout_ms=3000)
    go_on = threading.Event()
    evaluate = embedded.evaluate

    def slow(*arguments: Any) -> Any:
        go_on.wait(5)
        return evaluate(*arguments)

    monkeypatch.setattr(embedded, "evaluate", slow)
    answers: list[str] = []

    def ask() -> None:
        decision = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
        answers.append(decision.reasons[0].code if decision.reasons else decision.decision)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    go_on.set()
    for thread in threads:
        thread.join()
    engine.close()
    assert set(answers) == {"allow", "POLICY_UNAVAILABLE"}
    assert answers.count("allow") <= 3


def test_an_answer_that_comes_too_late_changes_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The late answer of one question is not taken for the answer of the next."""
    engine = EmbeddedEngine(bundle, timeout_ms=80)
    evaluate = embedded.evaluate
    slow = [True]

    def late(*arguments: Any) -> Any:
        if slow[0]:
            time.sleep(0.2)
        return evaluate(*arguments)

    monkeypatch.setattr(embedded, "evaluate", late)
    first = engine.decide(Stage.EGRESS, example(Stage.EGRESS))
    slow[0] = False
    time.sleep(0.3)
    denied = example(Stage.EGRESS)
    denied["result"]["cohort"] = 0
    second = engine.decide(Stage.EGRESS, denied)
    engine.close()
    assert (first.decision, first.reasons[0].code) == ("deny", "POLICY_TIMEOUT")
    assert second.reasons[0].rule == "egress.cohort"


def test_an_error_quotes_no_data(bundle: Bundle) -> None:
    text = "package comity.egress\n\ndeny contains 1 if {\n\tsome x in input.result.needle\n\tx == 1\n}\n"
    decision = _asked(bundle, text, needle="the secret is 42")
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")
    assert "secret" not in str(decision.to_json())
