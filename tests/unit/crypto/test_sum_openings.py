"""Sums of committed weights: blindings that cancel but for the lead's own, and who can prove that it opens the sum."""

from __future__ import annotations

import os
from itertools import combinations

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.secagg.frame import blindings
from comity_crypto.zk import independent, openings, pedersen, schnorr
from comity_crypto.zk.binding import Binding
from comity_crypto.zk.group import ORDER, encode_scalar

AGREEMENT, ORDERED = "ab" * 32, "cd" * 32
LEAD, ORGS = "alpha", ("alpha", "beta", "delta", "gamma")
WEIGHTS = {"alpha": 7, "beta": 65_536, "delta": 1, "gamma": 300}
HERE = Binding(AGREEMENT, f"sum/{ORDERED}", LEAD)
IDENTITY = bytes([0xC0]) + bytes(47)


@pytest.fixture
def secrets():
    drawn = {pair: os.urandom(32) for pair in combinations(ORGS, 2)}
    return {me: {org: drawn[min(me, org), max(me, org)] for org in ORGS if org != me} for me in ORGS}


def lead_part(order=ORDERED):
    return blindings.lead_blinding(b"n" * 32, AGREEMENT, order)


def blinding_of(secrets, me, among, order=ORDERED):
    own = lead_part(order) if me == LEAD else 0
    return (blindings.pairs_blinding(me, secrets[me], AGREEMENT, order, among) + own) % ORDER


def committed(secrets, among=ORGS, order=ORDERED):
    return [pedersen.commit(WEIGHTS[me], blinding_of(secrets, me, among, order))[0] for me in among]


def proved(total, order=ORDERED, binding=HERE):
    commitment, opening = pedersen.commit(total, lead_part(order))
    return commitment, openings.prove_opening(commitment, opening, binding)


def refused(call, *given):
    with pytest.raises(ComityError) as caught:
        call(*given)
    assert caught.value.code is ErrorCode.CLAIM_UNPROVEN


@pytest.mark.parametrize("among", [ORGS, ORGS[:3], ("alpha", "delta", "gamma")])
def test_the_lead_alone_opens_the_sum_of_any_set(secrets, among):
    parts = committed(secrets, among)
    total, proof = proved(sum(WEIGHTS[org] for org in among))
    assert openings.sum_of(parts) == total
    openings.verify_opening(total, proof, HERE)
    independent.verify_sum_opening(parts, total, proof, HERE)


def test_less_than_the_whole_set_does_not_cancel(secrets):
    among = ORGS
    for left_out in ORGS[1:]:
        rest = [org for org in among if org != left_out]
        assert sum(blinding_of(secrets, org, among) for org in rest) % ORDER != lead_part()
    assert blinding_of(secrets, "beta", ORGS) != blinding_of(secrets, "beta", ORGS[:3])
    assert blinding_of(secrets, "beta", ORGS) != blinding_of(secrets, "beta", ORGS, "ef" * 32)


def test_two_who_do_not_collude_hide_how_they_share_their_sum(secrets):
    """What all others know (every secret but one, the lead's part, all weights but two) fits every split."""
    parts = dict(zip(ORGS, committed(secrets), strict=True))
    info = "the secret between delta and gamma is the only one that the others lack"
    known = {me: blinding_of({me: {**secrets[me]}}, me, ORGS) for me in ("alpha", "beta")}
    both = WEIGHTS["delta"] + WEIGHTS["gamma"]
    rest = openings.sum_of([parts["delta"], parts["gamma"]])
    blinding = (lead_part() - sum(known.values())) % ORDER
    assert pedersen.commit(both, blinding)[0] == rest, info
    other = {me: {**secrets[me]} for me in ORGS}
    other["delta"]["gamma"] = other["gamma"]["delta"] = os.urandom(32)
    changed = {me: pedersen.commit(WEIGHTS[me], blinding_of(other, me, ORGS))[0] for me in ORGS}
    assert [changed[me] == parts[me] for me in ORGS] == [True, True, False, False]
    assert openings.sum_of([changed["delta"], changed["gamma"]]) == rest
    # The weak variant, one constant instead of the secret: the other two find each weight by trying.
    other["delta"]["gamma"] = other["gamma"]["delta"] = bytes(32)
    weak = pedersen.commit(WEIGHTS["gamma"], blinding_of(other, "gamma", ORGS))[0]
    theirs = {org: secrets[org]["gamma"] for org in ("alpha", "beta")} | {"delta": bytes(32)}
    guess = blindings.pairs_blinding("gamma", theirs, AGREEMENT, ORDERED, ORGS)
    assert [each for each in range(400) if pedersen.commit(each, guess)[0] == weak] == [300]


def test_a_lead_that_claims_another_total_cannot_prove_it(secrets):
    parts = committed(secrets)
    true = openings.sum_of(parts)
    total, proof = proved(sum(WEIGHTS.values()) + 1)
    assert total != true
    refused(openings.verify_opening, true, proof, HERE)
    refused(independent.verify_sum_opening, parts, total, proof, HERE)
    refused(independent.verify_sum_opening, parts, true, proof, HERE)
    with pytest.raises(ValueError):
        openings.prove_opening(true, pedersen.Opening((sum(WEIGHTS.values()) + 1,), lead_part()), HERE)


def test_sameness_with_a_commitment_of_ones_own_would_prove_nothing(secrets):
    """The weak variant: for any sum, without knowing what is in it, there is a commitment that holds the same."""
    true = openings.sum_of(committed(secrets))
    shift = 12_345
    blank = pedersen.commit(0, shift)[0]
    own = openings.sum_of([true, blank])
    # The prover needs the difference of the blindings only: any two openings with that difference will do.
    proof = schnorr.prove_same(own, true, pedersen.Opening((0,), shift), pedersen.Opening((0,), 0), HERE)
    schnorr.verify_same(own, true, proof, HERE)


def test_a_proof_of_another_round_or_lead_does_not_hold(secrets):
    total, proof = proved(sum(WEIGHTS.values()))
    for elsewhere in (
        Binding(AGREEMENT, f"sum/{'ef' * 32}", LEAD),
        Binding(AGREEMENT, ORDERED, LEAD),
        Binding("12" * 32, f"sum/{ORDERED}", LEAD),
        Binding(AGREEMENT, f"sum/{ORDERED}", "beta"),
    ):
        refused(openings.verify_opening, total, proof, elsewhere)
    other, _ = proved(sum(WEIGHTS.values()), "ef" * 32)
    assert other != total


@pytest.mark.parametrize(
    "bent",
    [
        lambda proof: proof[:-1],
        lambda proof: proof + b"\x00",
        lambda proof: b"",
        lambda proof: IDENTITY + proof[48:],
        lambda proof: proof[:48] + b"\xff" * 32 + proof[80:],
        lambda proof: proof[:80] + encode_scalar(int.from_bytes(proof[80:], "big") + 1),
        lambda proof: proof[:48] + proof[80:] + proof[48:80],
        lambda proof: bytes(112),
    ],
)
def test_a_bent_proof_is_refused_twice(secrets, bent):
    parts = committed(secrets)
    total, proof = proved(sum(WEIGHTS.values()))
    refused(openings.verify_opening, total, bent(proof), HERE)
    refused(independent.verify_sum_opening, parts, total, bent(proof), HERE)


def test_identity_points_and_too_many_parts_are_refused(secrets):
    parts = committed(secrets)
    one, _ = pedersen.commit(5, 6)
    against, _ = pedersen.commit(-5, -6)
    total, proof = proved(sum(WEIGHTS.values()))
    for odd in ([], [*parts, IDENTITY], [one, against], [one] * 1_025, [one[:-1]]):
        refused(openings.sum_of, odd)
        refused(independent.verify_sum_opening, odd, total, proof, HERE)
    refused(openings.verify_opening, IDENTITY, proof, HERE)


def test_blindings_need_three_and_a_secret_with_each(secrets):
    for among, pairs, code in (
        (ORGS[:2], secrets["alpha"], ErrorCode.PARTICIPANTS_TOO_FEW),
        (ORGS[1:], secrets["alpha"], ErrorCode.ROSTER_MISMATCH),
        (ORGS, {"beta": bytes(32)}, ErrorCode.ROSTER_MISMATCH),
        (ORGS[:3], {"beta": bytes(31), "delta": bytes(32)}, ErrorCode.INTERNAL),
    ):
        with pytest.raises(ComityError) as caught:
            blindings.pairs_blinding("alpha", pairs, AGREEMENT, ORDERED, among)
        assert caught.value.code is code
