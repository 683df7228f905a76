"""The commands of `comity policy` and `comity ledger verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import cli
from comity_policies.bundle import Bundle, shipped_folder, write_defaults
from comity_policies.decisions import Stage, example, parse_result, schema
from comity_policies.embedded import EmbeddedEngine


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    cli.register(made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_defaults(tmp_path / "policy", "hospital-b")
    return tmp_path / "policy"


def test_shipped_tests_pass(app: typer.Typer, folder: Path) -> None:
    result = CliRunner().invoke(app, ["policy", "test", str(folder), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["failed"]) == (0, 0)
    assert found["passed"] > 50


def test_a_failing_test_fails(app: typer.Typer, folder: Path) -> None:
    (folder / "mine_test.rego").write_text("package comity.mine_test\n\ntest_x if 1 == 2\n\ntest_y if true\n")
    result = CliRunner().invoke(app, ["policy", "test", str(folder)])
    assert result.exit_code == 1
    assert "FAIL embedded: own/mine_test.rego: test_x is undefined" in result.stdout


def test_lint_and_build(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    digest = json.loads(CliRunner().invoke(app, ["policy", "lint", str(folder), "--json"]).stdout)["bundle"]
    out = tmp_path / "bundle.tar.gz"
    built = json.loads(CliRunner().invoke(app, ["policy", "build", str(folder), str(out), "--json"]).stdout)
    assert built["bundle"] == digest
    first = out.read_bytes()
    CliRunner().invoke(app, ["policy", "build", str(folder), str(out)])
    assert out.read_bytes() == first


def test_eval_names_the_rule(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    document = example(Stage.PROPOSAL)
    document["proposal"]["purpose"] = "marketing"
    file = tmp_path / "input.json"
    file.write_text(json.dumps(document))
    result = CliRunner().invoke(app, ["policy", "eval", "proposal", str(file), "--folder", str(folder)])
    assert result.exit_code == 0
    assert "proposal.purpose: purpose marketing is not one that hospital-b supports" in result.stdout


def test_eval_refuses_what_breaks_the_schema(app: typer.Typer, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"me": 1}')
    result = CliRunner().invoke(app, ["policy", "eval", "egress", str(file), "--folder", str(folder)])
    assert isinstance(result.exception, ComityError)
    assert result.exception.code == ErrorCode.MALFORMED


def test_explain_input_is_an_example_of_the_schema(app: typer.Typer) -> None:
    for stage in Stage:
        shown = json.loads(CliRunner().invoke(app, ["policy", "explain-input", str(stage)]).stdout)
        assert shown == example(stage)
        described = json.loads(CliRunner().invoke(app, ["policy", "explain-input", str(stage), "--schema"]).stdout)
        assert set(described["required"]) <= set(shown)


@pytest.mark.parametrize("stage", list(Stage))
def test_result_examples_are_what_the_shipped_rules_answer(app: typer.Typer, folder: Path, stage: Stage) -> None:
    shown = json.loads(CliRunner().invoke(app, ["policy", "explain-input", str(stage), "--result"]).stdout)
    Draft202012Validator(schema("result")).validate(shown)
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(data | {"min_cohort": 200} if stage is Stage.EGRESS else data))
    engine = EmbeddedEngine(Bundle.load(shipped_folder(), folder))
    answer = engine.ask(stage, example(stage))
    engine.close()
    assert parse_result(shown) == parse_result(answer)


def test_verify_refuses_a_missing_file(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ledger", "verify", str(tmp_path / "none")])
    assert isinstance(result.exception, ComityError)
    assert result.exception.code == ErrorCode.NOT_FOUND
