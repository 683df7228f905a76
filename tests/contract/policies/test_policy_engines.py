"""The contract of `PolicyEngine`, proven alike for the embedded engine and a real OPA server."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from comity_policies import cli, rego_tests
from comity_policies.bundle import Bundle, shipped_folder
from comity_policies.decisions import Decision, Stage, example, input_digest
from comity_policies.engine import PolicyEngine


def _at(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    place: Any = changed
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return changed


def _essence(decision: Decision) -> tuple[Any, ...]:
    return decision.decision, decision.reasons, decision.terms


def test_examples_are_allowed(engine: PolicyEngine, bundle: Bundle) -> None:
    for stage in (Stage.PROPOSAL, Stage.DISPATCH, Stage.EGRESS):
        decision = engine.decide(stage, example(stage))
        assert decision.allowed, decision
        assert decision.bundle_digest == bundle.digest
        assert decision.input_digest == input_digest(stage, example(stage))
        assert decision.engine == engine.name


def test_terms_come_back(engine: PolicyEngine) -> None:
    terms = engine.decide(Stage.PROPOSAL, example(Stage.PROPOSAL)).terms
    assert terms["columns"] == {"hospital-b/patients": frozenset({"diagnosis", "radius"})}
    assert terms["aggregation"] == "lead-key"
    assert terms["rounds"] == 200


@pytest.mark.parametrize(
    ("stage", "path", "value", "rule"),
    [
        (Stage.PROPOSAL, "proposal/purpose", "marketing", "proposal.purpose"),
        (Stage.PROPOSAL, "proposal/uses", 11, "proposal.uses"),
        (Stage.PROPOSAL, "datasets/0/classification", "secret", "proposal.classification"),
        (Stage.PROPOSAL, "datasets/0/records", 19, "proposal.cohort"),
        (Stage.PROPOSAL, "datasets/0/columns", [], "proposal.columns"),
        (Stage.PROPOSAL, "proposal/steps/0/rounds", 201, "proposal.rounds"),
        (Stage.DISPATCH, "agreement/purpose", "marketing", "dispatch.purpose"),
        (Stage.DISPATCH, "now", "2031-01-01T10:00:00Z", "dispatch.expiry"),
        (Stage.DISPATCH, "now", "2029-06-01T05:59:59Z", "dispatch.hours"),
        (Stage.DISPATCH, "dataset/records", 3, "dispatch.dataset"),
        (Stage.DISPATCH, "agreement/terms/aggregation", "plain", "dispatch.aggregation"),
        (Stage.EGRESS, "result/cohort", 19, "egress.cohort"),
        (Stage.EGRESS, "result/kind", "record", "egress.kind"),
        (Stage.EGRESS, "result/size_bytes", (1 << 28) + 1, "egress.size"),
        (Stage.EGRESS, "result/aggregation", "plain", "egress.aggregation"),
    ],
)
def test_denials_name_their_rule(engine: PolicyEngine, stage: Stage, path: str, value: Any, rule: str) -> None:
    decision = engine.decide(stage, _at(example(stage), path, value))
    assert decision.decision == "deny"
    assert rule in {reason.rule for reason in decision.reasons}
    assert not decision.terms


def test_an_unreviewed_app_waits_for_a_person(engine: PolicyEngine) -> None:
    document = _at(example(Stage.PROPOSAL), "proposal/steps/0/app/digest", "00" * 32)
    decision = engine.decide(Stage.PROPOSAL, document)
    assert decision.decision == "review"
    assert not decision.allowed
    assert [reason.rule for reason in decision.reasons] == ["proposal.app"]


@pytest.mark.parametrize("document", [{}, {"me": None}, {"proposal": []}, {"agreement": {"terms": "x"}}])
def test_odd_inputs_are_denied(engine: PolicyEngine, document: dict[str, Any]) -> None:
    for stage in Stage:
        assert engine.decide(stage, document).decision == "deny"


def test_what_has_no_canonical_bytes_is_denied(engine: PolicyEngine) -> None:
    decision = engine.decide(Stage.EGRESS, _at(example(Stage.EGRESS), "result/cohort", 25.5))
    assert (decision.decision, decision.reasons[0].code) == ("deny", "POLICY_ERROR")


def test_decisions_are_thread_safe(engine: PolicyEngine) -> None:
    verdicts: list[tuple[int, str]] = []

    def ask(number: int) -> None:
        document = _at(example(Stage.EGRESS), "result/cohort", 10 + number)
        verdicts.append((number, engine.decide(Stage.EGRESS, document).decision))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdicts) == [(number, "allow" if number >= 10 else "deny") for number in range(20)]


def test_every_document_gets_the_same_answer_from_both(
    open_named: Callable[[str, Bundle], PolicyEngine], bundle: Bundle
) -> None:
    embedded, opa = open_named("embedded", bundle), open_named("opa", bundle)
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(-2, 400), st.sampled_from(["", "research", "plain", "hospital-a", "*"]),
        st.just([]), st.just({}), st.lists(st.sampled_from(["hospital-b", "x", "accuracy"]), max_size=2),
    )  # fmt: skip
    paths = {
        Stage.PROPOSAL: ["me", "proposer", "datasets", "app", "proposal/purpose", "proposal/terms", "proposal/steps",
                         "proposal/datasets", "proposal/datasets/1/org", "datasets/0/records", "app/signed_by",
                         "proposal/steps/0/rounds", "proposal/steps/0/app/digest", "proposal/terms/privacy"],
        Stage.DISPATCH: ["me", "now", "grants", "dataset", "order/lead", "order/receivers", "agreement/parties",
                         "agreement/terms", "agreement/terms/not_after", "agreement/terms/human_review",
                         "grants/rounds_left", "dataset/records", "agreement/terms/aggregation"],
        Stage.EGRESS: ["me", "result", "result/kind", "result/cohort", "result/metrics", "result/noise",
                       "result/size_bytes", "agreement/terms/privacy", "agreement/terms/min_cohort",
                       "agreement/terms/egress", "agreement/terms/aggregation"],
    }  # fmt: skip
    cases = st.sampled_from(sorted(paths)).flatmap(
        lambda stage: st.tuples(st.just(stage), st.lists(st.tuples(st.sampled_from(paths[stage]), odd), max_size=3))
    )

    @given(cases)
    @hypothesis_settings(suppress_health_check=list(HealthCheck))
    def compare(case: tuple[Stage, list[tuple[str, Any]]]) -> None:
        stage, changes = case
        document = example(stage)
        for path, value in changes:
            try:
                document = _at(document, path, value)
            except (TypeError, KeyError, IndexError):
                continue
        mine, theirs = embedded.decide(stage, document), opa.decide(stage, document)
        if "engine" in {reason.rule for reason in (*mine.reasons, *theirs.reasons)}:
            assert (mine.decision, theirs.decision) == ("deny", "deny")
        else:
            assert _essence(mine) == _essence(theirs)

    compare()


def test_the_command_tests_on_both(
    tmp_path: Path, opa_binary: Path, start_opa: Callable[[Bundle], str], hospital_settings: dict[str, Any]
) -> None:
    (tmp_path / "data.json").write_text(json.dumps(hospital_settings))
    app = typer.Typer()
    cli.register(app)
    url = start_opa(Bundle.load(shipped_folder(), tmp_path))
    for opa in (str(opa_binary), url):
        result = CliRunner().invoke(app, ["policy", "test", str(tmp_path), "--opa", opa, "--json"])
        found = json.loads(result.stdout)
        assert (result.exit_code, found["failed"]) == (0, 0)
        assert {row["engine"] for row in found["tests"]} == {"embedded", "opa"}
    (tmp_path / "data.json").write_text(json.dumps(hospital_settings | {"min_cohort": 21}))
    result = CliRunner().invoke(app, ["policy", "test", str(tmp_path), "--opa", url])
    assert result.exit_code == 1
    assert "another bundle" in result.stdout


def test_rego_tests_pass_on_both(bundle: Bundle, opa_binary: Any) -> None:
    mine, theirs = rego_tests.run_embedded(bundle), rego_tests.run_opa(bundle, opa_binary)
    assert len(mine) > 50
    assert [each for each in (*mine, *theirs) if each.problem] == []
    assert {(each.file, each.rule) for each in mine} == {(each.file, each.rule) for each in theirs}
