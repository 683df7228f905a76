"""The coordinator lets no receipt in whose proof an auditor would stumble over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comity.wire import canonical
from comity.wire.errors import ErrorCode
from comity_policies import cohorts
from comity_policies.cohorts import Claim
from comity_policies.documents import Receipt
from comity_policies.history import verify_export
from comity_policies.terms import Terms

MINIMA = {"alpha/patients": 20, "beta/patients": 30}


@pytest.fixture
def run(world):
    terms = Terms.parse({"purposes": ["research"], "rounds": 2, "min_cohort": MINIMA})
    proposal, agreement, name = world.agree(terms=terms)
    for org in proposal.asked:
        assert world.tell(org, "run.ready", world.say(org, "ready", {"run": name, "agreement": agreement})) is None
    return agreement, name


def receipt(run, **changes):
    agreement, name = run
    values = {
        "agreement": agreement,
        "run": name,
        "step": "train",
        "order": canonical.digest({"order": 1}),
        "seq": 1,
        "outcome": "result",
        "code": None,
        "result": "cd" * 32,
        "grants": {"rounds": 1},
        "journal_seq": 1,
    }
    return Receipt(**{**values, **changes})


def hand_in(world, org, made):
    said = world.say(org, "receipt", made.to_json())
    return world.deliver(org, "receipts", canonical.canonical({"receipts": [said.to_json()]}))


def test_proofs_that_hold_get_in_and_others_do_not(world, run, tmp_path):
    made = receipt(run)
    for org, odd in (
        ("alpha", cohorts.prove(made, "alpha", Claim(19, 500))),
        ("alpha", cohorts.prove(made, "beta", Claim(20, 500))),
        ("alpha", cohorts.prove(receipt(run, order="ab" * 32), "alpha", Claim(20, 500))),
        ("gamma", cohorts.prove(made, "gamma", Claim(1, 500))),
    ):
        refusal = hand_in(world, org, receipt(run, cohort=odd.cohort))
        assert refusal is not None
        assert refusal.code is ErrorCode.CLAIM_UNPROVEN
    assert hand_in(world, "alpha", cohorts.prove(made, "alpha", Claim(20, 20))) is None
    assert hand_in(world, "beta", cohorts.prove(made, "beta", Claim(30, 500))) is None
    assert hand_in(world, "gamma", made) is None
    (tmp_path / "export").write_bytes(world.export())
    report = verify_export(tmp_path / "export", world.charter.digest)
    assert report.counts["receipt"] == 3
    assert {check.number: check.note for check in report.checks}[6].startswith("2 results under min_cohort prove it, 0")


def test_a_receipt_from_an_older_node_still_gets_in(world, run):
    assert hand_in(world, "alpha", receipt(run)) is None


def test_a_comparison_needs_its_earlier_result(world, run, tmp_path):
    first = receipt(run)
    one, shown = cohorts.prove_after(first, "alpha", Claim(20, 60), None)
    later = receipt(run, order="ab" * 32, journal_seq=2, seq=2)
    two, _ = cohorts.prove_after(later, "alpha", Claim(20, 60), shown)
    assert two.cohort.before == first.order
    assert hand_in(world, "alpha", two).code is ErrorCode.CLAIM_UNPROVEN, "nothing stands there to compare with"
    assert hand_in(world, "alpha", one) is None
    other = replace(two, cohort=replace(two.cohort, before=later.order))
    assert hand_in(world, "alpha", other).code is ErrorCode.CLAIM_UNPROVEN
    assert hand_in(world, "alpha", two) is None
    third = receipt(run, order="cd" * 32, journal_seq=3, seq=3)
    fewer, _ = cohorts.prove_after(third, "alpha", Claim(20, 59), shown)
    assert fewer.cohort.before is None
    forged = replace(fewer, cohort=replace(fewer.cohort, before=first.order, same=two.cohort.same))
    assert hand_in(world, "alpha", forged).code is ErrorCode.CLAIM_UNPROVEN
    assert hand_in(world, "alpha", fewer) is None
    (tmp_path / "export").write_bytes(world.export())
    assert cohorts.verify_independently(two, "alpha", 20, one.cohort.commitment) == 2
    report = verify_export(tmp_path / "export", world.charter.digest)
    assert "1 prove that as many records" in {check.number: check.note for check in report.checks}[6]
