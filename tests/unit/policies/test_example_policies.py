"""The policies in `examples/policies` are bundles that load, and whose own tests pass on both engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from comity_policies import rego_tests
from comity_policies.bundle import OWN, Bundle, shipped_folder

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "policies"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/data.json"))


@pytest.fixture(params=NAMES)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.load(shipped_folder(), FOLDER / request.param)


def test_there_is_one_for_each_kind_of_consortium() -> None:
    assert NAMES == ["bank-consortium", "health-permit", "open-research"]


def test_own_tests_pass_on_the_embedded_engine(bundle: Bundle) -> None:
    outcomes = rego_tests.run_embedded(bundle)
    assert sum(each.file.startswith(OWN) for each in outcomes) >= 3
    assert [each for each in outcomes if each.problem] == []


def test_own_tests_pass_on_opa(bundle: Bundle) -> None:
    opa = shutil.which("opa")
    if opa is None:
        pytest.skip("no OPA on PATH")
    outcomes = rego_tests.run_opa(bundle, Path(opa))
    assert sum(each.file.startswith(OWN) for each in outcomes) >= 3
    assert [each for each in outcomes if each.problem] == []
