"""The coordinator lets no lead's statement on a sum in that an auditor would stumble over (obligation 11)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.encoding import to_base64
from comity_crypto.secagg.frame import blindings
from comity_crypto.zk import openings, pedersen
from comity_policies import sums
from comity_policies.documents import Receipt
from comity_policies.history import verify_export
from comity_policies.orders import SumProof, WeightCommitment
from comity_policies.terms import Terms

LEAD, EVERYONE = "alpha", ("alpha", "beta", "gamma")
WEIGHTS = {"alpha": 7, "beta": 65_536, "gamma": 300}
FIRST, SECOND = canonical.digest({"order": 1}), canonical.digest({"order": 2})
IDENTITY = to_base64(bytes([0xC0]) + bytes(47))


@pytest.fixture
def run(world):
    return agree(world, aggregation="threshold")


def agree(world, **terms):
    proposal, agreement, name = world.agree(terms=Terms.parse({"purposes": ["research"], "rounds": 2, **terms}))
    assert proposal.steps[0].lead == LEAD
    for org in proposal.asked:
        assert world.tell(org, "run.ready", world.say(org, "ready", {"run": name, "agreement": agreement})) is None
    return agreement, name


def blinding(agreement, org, order, among=EVERYONE):
    pairs = {other: canonical.digest(sorted((org, other))).encode()[:32] for other in EVERYONE if other != org}
    own = blindings.lead_blinding(b"n" * 32, agreement, order) if org == LEAD else 0
    return blindings.pairs_blinding(org, pairs, agreement, order, among) + own


def receipt(run, org, order=FIRST, seq=1, weight=None, **changes):
    agreement, name = run
    commitment, _ = pedersen.commit(WEIGHTS[org] if weight is None else weight, blinding(agreement, org, order))
    shown = WeightCommitment(to_base64(commitment), blindings.set_digest(agreement, order, EVERYONE))
    values = {"step": "train", "order": order, "seq": seq, "outcome": "result", "code": None, "result": "cd" * 32}
    values |= {"agreement": agreement, "run": name, "journal_seq": seq, "weight": shown}
    return Receipt(**{**values, **changes})


def proof(run, order=FIRST, seq=1, total=None, among=EVERYONE, by=LEAD):
    agreement, name = run
    whole = sum(WEIGHTS.values()) if total is None else total
    commitment, opening = pedersen.commit(whole, blindings.lead_blinding(b"n" * 32, agreement, order))
    shown = openings.prove_opening(commitment, opening, sums.binding_of(agreement, order, by))
    return SumProof(agreement, name, order, seq, among, to_base64(commitment), to_base64(shown))


def hand_in(world, org, *made):
    said = [world.say(org, "receipt", each.to_json()).to_json() for each in made]
    return world.deliver(org, "receipts", canonical.canonical({"receipts": said}))


def state(world, *proofs, by=LEAD):
    said = [world.say(by, sums.KIND, each.to_json()).to_json() for each in proofs]
    return world.deliver(by, "sum-proofs", canonical.canonical({"proofs": said}))


def all_in(world, run, order=FIRST, seq=1):
    for org in EVERYONE:
        assert hand_in(world, org, receipt(run, org, order, seq)) is None


def refused(refusal, code):
    assert refusal is not None
    assert refusal.code is code, refusal


def verified(world, tmp_path, **how):
    (tmp_path / "export").write_bytes(world.export())
    report = verify_export(tmp_path / "export", world.charter.digest, **how)
    return {check.number: check for check in report.checks}


def test_a_true_statement_gets_in_and_holds(world, run, tmp_path):
    all_in(world, run)
    all_in(world, run, SECOND, 2)
    missing = verified(world, tmp_path)[11]
    assert (missing.count, missing.note) == (0, "2 sums of committed weights that no lead proved")
    first = world.say(LEAD, sums.KIND, proof(run).to_json()).to_json()
    for _ in range(2):  # the same again changes nothing
        assert world.deliver(LEAD, "sum-proofs", canonical.canonical({"proofs": [first]})) is None
    one = verified(world, tmp_path)[11]
    assert (one.count, one.note) == (1, "1 sums of committed weights that no lead proved")
    last = proof(run, SECOND, 2)
    assert state(world, last) is None
    assert (verified(world, tmp_path)[11].count, verified(world, tmp_path)[11].note) == (2, "")
    weights = tuple(receipt(run, org, SECOND).weight.commitment for org in EVERYONE)
    assert sums.verify_independently(last, LEAD, weights) == 1
    with pytest.raises(ComityError):
        sums.verify_independently(last, LEAD, weights[:2])


@pytest.mark.slow
def test_the_second_verifier_counts_the_statement(world, run, tmp_path):
    all_in(world, run)
    before = verified(world, tmp_path, independent=True)[9].count
    assert state(world, proof(run)) is None
    assert verified(world, tmp_path, independent=True)[9].count == before + 1


def test_a_lying_lead_is_refused_by_name(world, run):
    for org in ("alpha", "beta"):
        assert hand_in(world, org, receipt(run, org)) is None
    refused(state(world, proof(run)), ErrorCode.ROSTER_MISMATCH)  # too early
    assert hand_in(world, "gamma", receipt(run, "gamma")) is None
    all_in(world, run, SECOND, 2)
    true, other = proof(run), proof(run, SECOND, 2)
    refused(state(world, proof(run, total=sum(WEIGHTS.values()) + 1)), ErrorCode.CLAIM_UNPROVEN)
    refused(state(world, replace(true, proof=other.proof)), ErrorCode.CLAIM_UNPROVEN)
    refused(state(world, replace(true, total=other.total, proof=other.proof)), ErrorCode.CLAIM_UNPROVEN)
    refused(state(world, replace(true, total=IDENTITY)), ErrorCode.CLAIM_UNPROVEN)
    refused(state(world, replace(true, proof=to_base64(bytes(112)))), ErrorCode.CLAIM_UNPROVEN)
    refused(state(world, proof(run, among=("alpha", "beta"))), ErrorCode.ROSTER_MISMATCH)
    refused(state(world, replace(true, contributors=("beta", "gamma", "delta"))), ErrorCode.ROSTER_MISMATCH)
    refused(state(world, replace(true, seq=2)), ErrorCode.ROSTER_MISMATCH)
    refused(state(world, replace(true, order="ef" * 32)), ErrorCode.ROSTER_MISMATCH)
    refused(state(world, proof(run, by="beta"), by="beta"), ErrorCode.ORDER_NOT_LEAD)
    refused(state(world, *[true] * 65), ErrorCode.TOO_LARGE)
    refused(state(world, true, proof(run, SECOND, 2, total=1)), ErrorCode.CLAIM_UNPROVEN)  # all of a batch, or none
    assert state(world, true, other) is None
    refused(state(world, proof(run)), ErrorCode.ORDER_REPLAYED)


def test_odd_messages_are_refused(world, run):
    all_in(world, run)
    good = proof(run).to_json()
    for body in ({"proofs": {}}, {"proofs": [], "more": 1}, {}, []):
        refused(world.deliver(LEAD, "sum-proofs", canonical.canonical(body)), ErrorCode.MALFORMED)
    for odd in (
        {"proof": to_base64(bytes(113))},
        {"proof": "x" * 4_000},
        {"total": to_base64(bytes(47))},
        {"contributors": ["alpha", "beta", "beta"]},
        {"contributors": [f"org-{n}" for n in range(1_000)]},
        {"seq": -1},
        {"more": 1},
    ):
        said = world.say(LEAD, sums.KIND, good | odd).to_json()
        refused(world.deliver(LEAD, "sum-proofs", canonical.canonical({"proofs": [said]})), ErrorCode.MALFORMED)


def test_commitments_that_do_not_fit_stay_unproved(world, run, tmp_path):
    """A party that commits to another weight than it adds: the lead has nothing to prove, and nobody is named."""
    assert hand_in(world, "alpha", receipt(run, "alpha")) is None
    assert hand_in(world, "gamma", receipt(run, "gamma")) is None
    assert hand_in(world, "beta", receipt(run, "beta", weight=1)) is None
    refused(state(world, proof(run)), ErrorCode.CLAIM_UNPROVEN)
    assert verified(world, tmp_path)[11].note == "1 sums of committed weights that no lead proved"


@pytest.mark.parametrize("where", ["commitment", "set", "point"])
def test_a_receipt_with_an_odd_commitment(world, run, where):
    made = receipt(run, "beta")
    old = receipt(run, "beta", SECOND).weight
    if where == "point":
        for odd in (IDENTITY, to_base64(bytes(48)), to_base64(b"\xff" * 48)):
            bent = replace(made, weight=replace(made.weight, commitment=odd))
            refused(hand_in(world, "beta", bent), ErrorCode.CLAIM_UNPROVEN)
        return
    change = {"commitment": old.commitment} if where == "commitment" else {"contributors": old.contributors}
    replayed = replace(made.weight, **change)
    assert hand_in(world, "beta", replace(made, weight=replayed)) is None
    refused(hand_in(world, "beta", replace(made, journal_seq=9)), ErrorCode.ORDER_REPLAYED)  # a second receipt
    for org in ("alpha", "gamma"):
        assert hand_in(world, org, receipt(run, org)) is None
    code = ErrorCode.CLAIM_UNPROVEN if where == "commitment" else ErrorCode.ROSTER_MISMATCH
    refused(state(world, proof(run)), code)


def test_a_weight_where_nothing_is_summed(world):
    run = agree(world)
    refused(hand_in(world, "beta", receipt(run, "beta")), ErrorCode.CLAIM_UNPROVEN)
    assert hand_in(world, "beta", replace(receipt(run, "beta"), weight=None)) is None


def test_an_auditor_refuses_what_a_careless_coordinator_let_in(world, run, tmp_path, monkeypatch):
    all_in(world, run)
    monkeypatch.setattr("comity_coordinator.training.totals.sums.check", lambda *given: ())
    assert state(world, proof(run, total=5)) is None
    monkeypatch.undo()
    with pytest.raises(ComityError) as caught:
        verified(world, tmp_path)
    assert caught.value.code is ErrorCode.LEDGER_INVALID
    assert (caught.value.facts["obligation"], caught.value.facts["cause"]) == (11, "CLAIM_UNPROVEN")
