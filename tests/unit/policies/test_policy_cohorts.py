"""Receipts that show a cohort of at least the agreed minimum: they verify from the ledger alone, and say no number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_crypto.statements import Statement
from comity_crypto.zk import claims
from comity_policies import cohorts
from comity_policies.cohorts import Claim
from comity_policies.documents import DatasetAsk, Receipt
from comity_policies.history import Report, verify_export
from comity_policies.orders import CohortProof
from comity_policies.terms import Terms

Export = Callable[[list[Statement]], Path]
ORGS = ("hospital-a", "hospital-b", "hospital-c")
MINIMA = {"hospital-a/patients": 20, "hospital-b/patients": 50}


@pytest.fixture
def asked(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The world, its proposal asking for a minimum of two of the three."""
    plain = world.proposal
    terms = Terms.parse({"rounds": 2, "aggregation": "lead-key", "min_cohort": MINIMA})
    monkeypatch.setattr(world, "proposal", lambda **changes: plain(**{"terms": terms, **changes}))
    return world


def shown(world: Any, statement: Statement, cohort: int = 180, minimum: int | None = None) -> Statement:
    """The receipt in a statement with its proof, signed again."""
    agreement, org = world.agreement(world.proposal()), statement.issuer
    least = cohorts.minimum_of(agreement, org) if minimum is None else minimum
    receipt = cohorts.prove(Receipt.from_json(statement.body), org, Claim(least, cohort))
    return world.say(org, "receipt", receipt.to_json())


def with_receipts(history: list[Statement], change: Callable[[Statement], Statement]) -> list[Statement]:
    return [change(each) if each.kind == "receipt" else each for each in history]


def fails(path: Path, genesis: str, obligation: int, *, independent: bool = False) -> ComityError:
    with pytest.raises(ComityError) as caught:
        verify_export(path, genesis, independent=independent)
    assert caught.value.facts["obligation"] == obligation, caught.value
    return caught.value


def note_of(report: Report, number: int) -> str:
    return next(check.note for check in report.checks if check.number == number)


def test_the_minimum_is_the_largest_among_the_partys_datasets(world: Any) -> None:
    asks = tuple(DatasetAsk("hospital-a", name, ("radius",)) for name in ("patients", "scans", "visits"))
    minima = {"hospital-a/patients": 20, "hospital-a/scans": 30, "hospital-b/patients": 99}
    proposal = world.proposal(datasets=asks, terms=Terms.parse({"rounds": 2, "min_cohort": minima}))
    agreement = replace(world.agreement(proposal), terms=Terms.parse({"rounds": 2, "min_cohort": minima}))
    assert [cohorts.minimum_of(agreement, org) for org in ORGS] == [30, 0, 0]
    assert cohorts.claim_of(agreement, "hospital-a", 30) == Claim(30, 30)
    assert cohorts.claim_of(agreement, "hospital-a", 29) is None
    assert cohorts.claim_of(agreement, "hospital-b", 10) is None
    assert "30, cohort" not in repr(Claim(30, 31))
    assert "31" not in repr(Claim(30, 31))


def test_receipts_from_before_keep_their_bytes(world: Any) -> None:
    body = world.receipt("hospital-a", world.agreement(world.proposal())).body
    assert "cohort" not in body
    assert Receipt.from_json(body).to_json() == body
    with pytest.raises(ComityError, match="MALFORMED"):
        Receipt.from_json({**body, "cohort": None})


def test_a_receipt_with_a_proof_says_no_number(asked: Any) -> None:
    statement = shown(asked, asked.receipt("hospital-a", asked.agreement(asked.proposal())), cohort=424242)
    receipt = Receipt.from_json(statement.body)
    assert receipt.to_json() == statement.body
    assert "424242" not in str(statement.body)
    for changes in ({"outcome": "refused", "result": None}, {"outcome": "failed", "result": None}):
        with pytest.raises(ComityError, match="only a result"):
            replace(receipt, **changes)


def test_proofs_of_another_shape_are_no_receipt(asked: Any) -> None:
    body = shown(asked, asked.receipt("hospital-a", asked.agreement(asked.proposal()))).body
    good = body["cohort"]
    for odd in (
        {},
        [],
        "x",
        {**good, "more": 1},
        {"commitment": good["commitment"]},
        {**good, "commitment": to_base64(bytes(47))},
        {**good, "proof": to_base64(bytes(831))},
        {**good, "proof": 7},
        {**good, "proof": good["proof"] + "="},
    ):
        with pytest.raises(ComityError) as caught:
            Receipt.from_json({**body, "cohort": odd})
        assert caught.value.code is ErrorCode.MALFORMED


def test_a_ledger_with_proofs_holds_and_says_who_shows_and_who_only_says(asked: Any, export: Export) -> None:
    history = asked.history()
    bare = verify_export(export(history), asked.genesis)
    assert note_of(bare, 6) == "0 results under min_cohort prove it, 2 only say so"
    one = with_receipts(history, lambda each: shown(asked, each) if each.issuer == "hospital-a" else each)
    report = verify_export(export(one), asked.genesis)
    assert note_of(report, 6) == "1 results under min_cohort prove it, 1 only say so"
    assert {check.number: check.count for check in report.checks}[6] == 3


def test_the_independent_verifier_reads_the_same_ledger(asked: Any, export: Export) -> None:
    one = with_receipts(asked.history(), lambda each: shown(asked, each) if each.issuer == "hospital-a" else each)
    report = verify_export(export(one), asked.genesis, independent=True)
    # The charter's certificate and three keys, the agreement's certificate, one proof.
    assert {check.number: check.count for check in report.checks}[9] == 6


def test_a_proof_holds_for_its_own_receipt_only(asked: Any, export: Export) -> None:
    history = asked.history()
    proof = shown(asked, next(each for each in history if each.kind == "receipt")).body["cohort"]

    def moved(each: Statement) -> Statement:
        return asked.say(each.issuer, "receipt", {**each.body, "cohort": proof})

    error = fails(
        export(with_receipts(history, lambda e: moved(e) if e.issuer == "hospital-b" else e)), asked.genesis, 6
    )
    assert error.facts["cause"] == ErrorCode.CLAIM_UNPROVEN
    other = with_receipts(
        history,
        lambda e: (
            asked.say(e.issuer, "receipt", {**e.body, "order": "0e" * 32, "cohort": proof})
            if e.issuer == "hospital-a"
            else e
        ),
    )
    assert fails(export(other), asked.genesis, 6).facts["cause"] == ErrorCode.CLAIM_UNPROVEN


def test_a_proof_for_a_smaller_minimum_is_refused(asked: Any, export: Export) -> None:
    lower = with_receipts(
        asked.history(), lambda e: shown(asked, e, cohort=40, minimum=30) if e.issuer == "hospital-b" else e
    )
    assert fails(export(lower), asked.genesis, 6).facts["cause"] == ErrorCode.CLAIM_UNPROVEN


def test_a_proof_where_no_minimum_was_agreed_is_refused(asked: Any, export: Export) -> None:
    odd = with_receipts(asked.history(), lambda e: shown(asked, e, minimum=1) if e.issuer == "hospital-c" else e)
    assert fails(export(odd), asked.genesis, 6).facts["cause"] == ErrorCode.CLAIM_UNPROVEN


def test_the_second_look_catches_what_the_first_would_let_pass(
    asked: Any, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a first verifier that says yes to everything, the export still fails, under obligation 9."""

    def altered(each: Statement) -> Statement:
        said = shown(asked, each)
        proof = CohortProof(**said.body["cohort"])
        other = claims.prove_at_least(60, 50, cohorts.binding_of(Receipt.from_json(said.body), "hospital-x"))
        swapped = replace(proof, proof=to_base64(other.proof)).to_json()
        return asked.say(each.issuer, "receipt", {**said.body, "cohort": swapped})

    history = with_receipts(asked.history(), lambda e: altered(e) if e.issuer == "hospital-b" else e)
    monkeypatch.setattr(cohorts, "_holds", lambda *_: None)
    assert fails(export(history), asked.genesis, 9, independent=True).facts["cause"] == ErrorCode.CLAIM_UNPROVEN
