"""Bundles and settings: what is refused at load, so that it cannot surprise at a decision."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_policies import bundle as bundles
from comity_policies.bundle import Bundle, shipped_folder, write_defaults
from comity_policies.decisions import Decision, ReviewNeed, Stage, example, parse_result, schema, validate_input
from comity_policies.engine import PolicySettings, open_engine
from comity_policies.settings import defaults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_defaults(tmp_path / "policy", "hospital-b")
    return tmp_path / "policy"


def _refused(folder: Path, shipped: Path | None = None) -> ComityError:
    with pytest.raises(ComityError) as caught:
        Bundle.load(shipped or shipped_folder(), folder)
    assert caught.value.code == ErrorCode.BUNDLE_INVALID
    return caught.value


def test_defaults_load_and_are_private(folder: Path) -> None:
    bundle = Bundle.load(shipped_folder(), folder)
    assert bundle.settings == defaults("hospital-b")
    assert stat.S_IMODE((folder / "data.json").stat().st_mode) == 0o600
    assert all(f"`{key}`" in (folder / "README.md").read_text() for key in bundle.settings)


def test_defaults_never_overwrite(folder: Path) -> None:
    (folder / "data.json").write_text("{}")
    write_defaults(folder, "hospital-b")
    assert (folder / "data.json").read_text() == "{}"


def test_digest_covers_what_decides(folder: Path) -> None:
    first = Bundle.load(shipped_folder(), folder)
    (folder / "mine_test.rego").write_text("package comity.mine_test\n\ntest_x if true\n")
    assert Bundle.load(shipped_folder(), folder).digest == first.digest
    (folder / "mine.rego").write_text("package comity.mine\n\nx := 1\n")
    second = Bundle.load(shipped_folder(), folder)
    assert second.digest != first.digest
    data = defaults("hospital-b") | {"min_cohort": 21}
    (folder / "data.json").write_text(json.dumps(data))
    assert Bundle.load(shipped_folder(), folder).digest != second.digest
    assert first.archive() == first.archive()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("package comity.x\n\ny := http.send({})\n", "http.send"),
        ("package comity.x\n\ny := opa.runtime()\n", "opa.runtime"),
        ("package comity.x\n\ny := time.now_ns()\n", "time.now_ns"),
        ("package comity.x\n\ny := rand.intn(1, 2)\n", "rand.intn"),
        ("package comity.x\n\ny if split(input.a, 1, z)\n", "split takes 2"),
        ("package comity.x\n\ny := unknown(1)\n", "unknown"),
        ("package comity.x\n\nimport data.comity.lib\n\ny if lib.texts([])\n", "lib.texts"),
        ("package comity.x\n\ny if data.comity.egress.result with input as {}\n", "`with` belongs in tests"),
        ("package elsewhere\n\ny := 1\n", "outside comity"),
        ("# METADATA\n# title: Mine: first\npackage comity.x\n\ny := 1\n", "mine.rego:2: a value with `: `"),
        (
            "# METADATA\n# scope: package\npackage comity.proposal\n\ny := 1\n",
            "annotated in proposal/proposal.rego already",
        ),
        ("package comity.x\n\ny := \n", "cannot be parsed"),
        ('package comity.x\n\ny := $"{input.a}"\n', "cannot be parsed"),
        ("", "cannot be parsed"),
    ],
)
def test_rego_outside_the_portable_profile(folder: Path, text: str, complaint: str) -> None:
    (folder / "mine.rego").write_text(text)
    error = _refused(folder)
    assert complaint in error.detail
    assert "mine.rego" in error.detail


def test_tests_may_replace_input_and_data_only(folder: Path) -> None:
    head = "package comity.mine_test\n\ntest_x if data.comity.egress.result with "
    (folder / "mine_test.rego").write_text(head + "input as {} with data.settings as {}\n")
    Bundle.load(shipped_folder(), folder)
    (folder / "mine_test.rego").write_text(head + "count as 1\n")
    assert "input and data" in _refused(folder).detail


def test_stages_need_defaults(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "data.json").write_text((folder / "data.json").read_text())
    (tmp_path / "own" / "p.rego").write_text("package comity.proposal\n\ndefault result := {}\n")
    with pytest.raises(ComityError, match="membership has no default"):
        Bundle.load(None, tmp_path / "own")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_cohort", 0),
        ("min_cohort", "20"),
        ("min_cohort", 20.5),
        ("purposes", "research"),
        ("purposes", ["spam"]),
        ("hours", {"from": 10, "to": 10}),
        ("hours", "always"),
        ("egress", {"kinds": ["model"]}),
        ("egress", {"kinds": ["all"], "metrics": [], "size_bytes_max": 1}),
        ("aggregation", "none"),
        ("app_digests", ["5f"]),
        ("privacy", {"epsilon": 1.5, "delta": "0.1"}),
        ("proposers", ["Hospital A"]),
        ("terms", {"nonsense": 1}),
        ("purpose", ["research"]),
        ("reviews", {"role": "boss", "approvals": 1}),
        ("reviews", {"role": "reviewer", "approvals": 0}),
        ("access", {"roles": {"admin": []}, "issuers": {}}),
        ("access", {"roles": dict.fromkeys(("admin", "proposer", "reviewer", "auditor"), "all"), "issuers": {}}),
    ],
)
def test_odd_settings_name_their_key(folder: Path, key: str, value: Any) -> None:
    (folder / "data.json").write_text(json.dumps(defaults("hospital-b") | {key: value}))
    error = _refused(folder)
    assert error.facts["key"] == key


def test_missing_settings(folder: Path) -> None:
    for key in defaults("hospital-b"):
        data = {name: value for name, value in defaults("hospital-b").items() if name != key}
        (folder / "data.json").write_text(json.dumps(data))
        assert _refused(folder).facts["key"] == key
    for text in ("", "[]", "{", "[" * 900):
        (folder / "data.json").write_text(text)
        _refused(folder)
    (folder / "data.json").unlink()
    assert "data.json is missing" in _refused(folder).detail


def test_links_sizes_and_counts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.rego").write_text("package comity.x\n")
    (folder / "mine.rego").symlink_to(tmp_path / "outside.rego")
    assert "cannot be read" in _refused(folder).detail
    (folder / "mine.rego").unlink()
    (folder / "mine.rego").write_text("#" * (bundles.MODULE_BYTES_MAX + 1))
    assert "larger" in _refused(folder).detail
    (folder / "mine.rego").write_bytes(b"\xff")
    assert "UTF-8" in _refused(folder).detail
    (folder / "mine.rego").unlink()
    for number in range(bundles.FILES_MAX + 1):
        (folder / f"{number}.rego").touch()
    assert "at most" in _refused(folder).detail


def test_a_bundle_that_cannot_answer_is_refused_at_load(folder: Path) -> None:
    (folder / "mine.rego").write_text('package comity.egress\n\nresult := 1 if input.me == "hospital-b"\n')
    with pytest.raises(ComityError) as caught:
        open_engine(PolicySettings(folder))
    assert caught.value.code == ErrorCode.BUNDLE_INVALID
    assert "egress" in caught.value.detail


def test_engines_are_named(folder: Path) -> None:
    with pytest.raises(ComityError, match="embedded or opa"):
        open_engine(PolicySettings(folder, engine="magic"))
    for url in ("", "ftp://x", "http://x/y", "http://"):
        with pytest.raises(ComityError, match="BUNDLE_INVALID"):
            open_engine(PolicySettings(folder, engine="opa", opa_url=url))


def test_examples_hold_to_their_schemas() -> None:
    from jsonschema import Draft202012Validator

    for name in (*Stage, "result"):
        Draft202012Validator.check_schema(schema(name))
    for stage in Stage:
        validate_input(stage, example(stage))
        with pytest.raises(ComityError):
            validate_input(stage, {})


GOOD: dict[str, Any] = {"decision": "allow", "reasons": [], "terms": {"rounds": 3.0}}
REASON = {"rule": "r", "code": "C", "message": "m"}


def test_results_have_one_form() -> None:
    assert parse_result(GOOD).terms["rounds"] == 3
    assert parse_result(GOOD).review == ReviewNeed("reviewer", 1)
    four_eyes = {**GOOD, "review": {"role": "admin", "approvals": 2.0}}
    assert parse_result(four_eyes).review == ReviewNeed("admin", 2)
    for bad in (
        None,
        True,
        [],
        {},
        {**GOOD, "decision": "Allow"},
        {**GOOD, "decision": True},
        {**GOOD, "extra": 1},
        {**GOOD, "reasons": {}},
        {**GOOD, "reasons": [{}]},
        {**GOOD, "reasons": [{**REASON, "rule": 1}]},
        {**GOOD, "reasons": [REASON] * 65},
        {**GOOD, "decision": "deny"},
        {**GOOD, "terms": None},
        {**GOOD, "terms": {"rounds": 3.5}},
        {**GOOD, "review": None},
        {**GOOD, "review": {"role": "reviewer"}},
        {**GOOD, "review": {"role": "", "approvals": 1}},
        {**GOOD, "review": {"role": "reviewer", "approvals": 0}},
        {**GOOD, "review": {"role": "reviewer", "approvals": 6}},
        {**GOOD, "review": {"role": "reviewer", "approvals": 1, "more": 1}},
    ):
        with pytest.raises(ComityError):
            parse_result(bad)


def test_refusals_name_the_rule() -> None:
    _, reasons, terms, _ = parse_result({**GOOD, "decision": "deny", "reasons": [REASON]})
    error = Decision("deny", reasons, terms).to_error()
    assert (error.code, error.facts["rule"]) == (ErrorCode.POLICY_DENIED, "r")
    assert Decision("review", reasons, terms).to_error().code == ErrorCode.REVIEW_NEEDED
    assert Decision.denied("POLICY_TIMEOUT", "slow").to_error().code == ErrorCode.POLICY_TIMEOUT
    assert Decision("deny", reasons, terms).to_error(ErrorCode.EGRESS_DENIED).code == ErrorCode.EGRESS_DENIED
