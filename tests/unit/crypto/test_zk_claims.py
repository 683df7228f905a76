"""Claims about hidden numbers: what is true can be shown, what is false or said elsewhere cannot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from py_arkworks_bls12381 import G1Point

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.zk import bulletproofs, claims, group, independent, pedersen, schnorr
from comity_crypto.zk.binding import Binding

HERE = Binding("ab" * 32, "cd" * 32, "hospital-a")
ELSEWHERE = [
    replace(HERE, agreement="ac" * 32),
    replace(HERE, round="cc" * 32),
    replace(HERE, organisation="hospital-b"),
]


def refused(call, *args):
    with pytest.raises(ComityError) as caught:
        call(*args)
    assert caught.value.code is ErrorCode.CLAIM_UNPROVEN, caught.value


@pytest.mark.parametrize("value", [20, 21, 180, 20 + 2**32 - 1])
def test_a_cohort_is_large_enough_without_its_size(value):
    proven = claims.prove_at_least(value, 20, HERE)
    assert len(proven.proof) == 832
    claims.verify_at_least(proven.commitment, 20, proven.proof, HERE)
    assert pedersen.opens(proven.commitment, proven.opening)
    for other in (19, 21, -1, 2**62):
        refused(claims.verify_at_least, proven.commitment, other, proven.proof, HERE)
    for binding in ELSEWHERE:
        refused(claims.verify_at_least, proven.commitment, 20, proven.proof, binding)


def test_a_cohort_beyond_the_range_is_shown_as_the_largest():
    proven = claims.prove_at_least(2**40, 5, HERE)
    assert proven.opening.values == (5 + 2**32 - 1,)
    claims.verify_at_least(proven.commitment, 5, proven.proof, HERE)


def test_what_is_false_cannot_be_proven_and_no_other_number_can_be_slipped_in():
    with pytest.raises(ValueError, match="less than"):
        claims.prove_at_least(19, 20, HERE)
    proven = claims.prove_at_least(25, 20, HERE)
    smaller, _ = pedersen.commit(19, proven.opening.blinding)
    refused(claims.verify_at_least, smaller, 20, proven.proof, HERE)


def test_a_prover_who_skips_its_own_check_proves_nothing():
    """A number below the minimum is a difference next to the group's order: its 32 low bits do not make it up."""
    commitment, opening = pedersen.commit(19)
    transcript = claims._at_least(20, HERE)
    low = (19 - 20) % group.ORDER % 2**32
    proof = bulletproofs.prove(transcript, [commitment], [low], [opening.blinding], 32)
    refused(claims.verify_at_least, commitment, 20, proof, HERE)


def test_two_commitments_to_one_number_look_different():
    first, second = claims.prove_at_least(180, 20, HERE), claims.prove_at_least(180, 20, HERE)
    assert first.commitment != second.commitment
    assert first.proof != second.proof


def test_openings_stay_out_of_texts():
    proven = claims.prove_at_least(123456789, 20, HERE)
    assert "123456789" not in repr(proven)
    assert str(proven.opening.blinding) not in repr(proven)


@pytest.mark.parametrize(("low", "high", "values"), [(-5, 20, (-5, 0, 20)), (0, 255, (0, 255)), (7, 7, (7,))])
def test_statistics_lie_in_their_range(low, high, values):
    made = [pedersen.commit(value) for value in values]
    commitments, openings = [each for each, _ in made], [each for _, each in made]
    proof = claims.prove_between(commitments, openings, low, high, HERE)
    claims.verify_between(commitments, low, high, proof, HERE)
    refused(claims.verify_between, commitments, low, high + 1, proof, HERE)
    refused(claims.verify_between, commitments, low - 1, high, proof, HERE)
    refused(claims.verify_between, [*commitments, commitments[0]], low, high, proof, HERE)
    refused(claims.verify_between, commitments[:-1], low, high, proof, HERE)
    if len(set(values)) > 1:
        refused(claims.verify_between, commitments[::-1], low, high, proof, HERE)
    for binding in ELSEWHERE:
        refused(claims.verify_between, commitments, low, high, proof, binding)
    with pytest.raises(ValueError, match="outside"):
        claims.prove_between(commitments, openings, low, max(values) - 1, HERE)


def test_a_range_has_bounds_of_its_own():
    one, _ = pedersen.commit(1)
    refused(claims.verify_between, [], 0, 1, b"", HERE)
    refused(claims.verify_between, [one] * 65, 0, 1, b"", HERE)
    refused(claims.verify_between, [one], 2, 1, b"", HERE)
    refused(claims.verify_between, [one], 0, 2**62, b"", HERE)


def test_equal_openings():
    (first, of_first), (second, of_second), (third, of_third) = (pedersen.commit(each) for each in (7, 7, 8))
    proof = schnorr.prove_same(first, second, of_first, of_second, HERE)
    assert len(proof) == 80
    schnorr.verify_same(first, second, proof, HERE)
    refused(schnorr.verify_same, first, third, proof, HERE)
    refused(schnorr.verify_same, second, first, proof, HERE)
    refused(schnorr.verify_same, first, first, proof, HERE)
    for binding in ELSEWHERE:
        refused(schnorr.verify_same, first, second, proof, binding)
    with pytest.raises(ValueError, match="one number"):
        schnorr.prove_same(first, third, of_first, of_third, HERE)


def test_an_aggregate_is_the_sum_of_what_was_committed_to():
    made = [pedersen.commit(value) for value in (5, -3, 40)]
    commitments, blinding = [each for each, _ in made], sum(each.blinding for _, each in made)
    pedersen.verify_sum(commitments, 42, blinding)
    independent.verify_sum(commitments, 42, blinding)
    for verify in (pedersen.verify_sum, independent.verify_sum):
        refused(verify, commitments, 43, blinding)
        refused(verify, commitments[:2], 42, blinding)
        refused(verify, commitments, 42, blinding + 1)
        refused(verify, commitments, 42 + group.ORDER, blinding)
        refused(verify, [], 0, 0)


def test_a_vector_aggregate_that_was_altered_in_one_place_is_refused():
    vectors = [[1, 2, 3, -4], [10, 20, 30, 40], [0, 0, 0, 1]]
    made = [pedersen.commit_vector(each) for each in vectors]
    commitments, blinding = [each for each, _ in made], sum(each.blinding for _, each in made)
    totals = [sum(column) for column in zip(*vectors, strict=True)]
    for verify in (pedersen.verify_vector_sum, independent.verify_vector_sum):
        verify(commitments, totals, blinding)
        refused(verify, commitments, [*totals[:-1], totals[-1] + 1], blinding)
        refused(verify, commitments, totals[::-1], blinding)
        refused(verify, commitments, [], blinding)


def off_the_subgroup():
    for x in range(1, 100):
        data = bytes([0x80]) + x.to_bytes(47, "big")
        try:
            point = G1Point.from_compressed_bytes_unchecked(data)
        except ValueError:
            continue
        if not point.is_in_subgroup():
            return data
    raise AssertionError("no such point among the first")


def test_points_that_are_refused():
    good = group.encode_point(group.VALUE)
    assert group.encode_point(group.decode_point(good)) == good
    prime = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
    x = int.from_bytes(good, "big") & (1 << 381) - 1
    above = (x + prime).to_bytes(48, "big")
    bad = [
        b"",
        good[:-1],
        good + b"\0",
        bytes(48),
        bytes([0xC0]) + bytes(47),
        bytes([0xC0]) + bytes(46) + b"\1",
        b"\xff" * 48,
        off_the_subgroup(),
        bytes([good[0] & 0x7F]) + good[1:],
        bytes([above[0] | 0x80]) + above[1:],
    ]
    for data in bad:
        refused(group.decode_point, data)
        refused(independent._point, data)
    refused(group.decode_scalar, group.ORDER.to_bytes(32, "big"))
    refused(group.decode_scalar, b"\0" * 31)


def test_both_engines_derive_the_same_generators():
    ours = {"value": group.VALUE, "blinding": group.BLINDING, "inner": group.INNER}
    for series, name in ((group.LEFT, "left"), (group.RIGHT, "right"), (group.VECTOR, "vector")):
        ours |= {f"{name}/{at}": point for at, point in enumerate(series.first(9))}
    assert {name: independent.generator_bytes(name) for name in ours} == {
        name: group.encode_point(point) for name, point in ours.items()
    }
    assert len({group.encode_point(point) for point in ours.values()}) == len(ours)


def test_the_independent_verifier_agrees():
    proven = claims.prove_at_least(180, 20, HERE)
    independent.verify_at_least(proven.commitment, 20, proven.proof, HERE)
    refused(independent.verify_at_least, proven.commitment, 21, proven.proof, HERE)
    made = [pedersen.commit(value) for value in (3, 9, 12)]
    commitments, openings = [each for each, _ in made], [each for _, each in made]
    proof = claims.prove_between(commitments, openings, 3, 12, HERE)
    independent.verify_between(commitments, 3, 12, proof, HERE)
    refused(independent.verify_between, commitments, 3, 11, proof, HERE)
    (first, of_first), (second, of_second) = pedersen.commit(7), pedersen.commit(7)
    same = schnorr.prove_same(first, second, of_first, of_second, HERE)
    independent.verify_same(first, second, same, HERE)
    for binding in ELSEWHERE:
        refused(independent.verify_same, first, second, same, binding)
    refused(independent.verify_same, first, first, same, HERE)


def test_the_independent_verifier_loads_no_engine_and_keeps_the_recursion_limit():
    code = (
        "import sys; limit = sys.getrecursionlimit(); import comity_crypto.zk.independent;"
        "assert sys.getrecursionlimit() == limit;"
        "assert not [name for name in sys.modules if 'arkworks' in name or name.startswith('comity_crypto.zk.group')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bindings_are_checked():
    for changes in ({"agreement": "xy"}, {"round": ""}, {"round": "a" * 129}, {"round": "ä"}, {"organisation": "A B"}):
        with pytest.raises(ComityError):
            replace(HERE, **changes)


def test_statements_that_are_not_offered():
    for bits, count in ((33, 1), (0, 1), (32, 0), (32, 129)):
        refused(bulletproofs.proof_bytes, bits, count)
