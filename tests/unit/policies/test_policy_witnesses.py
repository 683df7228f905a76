"""The witness rule: any two sets that make a checkpoint final meet in an honest witness."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from comity.wire.errors import ComityError
from comity_crypto.keys import OrgKeys
from comity_crypto.merkle import leaf_hash
from comity_crypto.notes import Checkpoint, cosign_note, sign_note
from comity_policies.charter import WitnessRule, changes
from comity_policies.charter_witnesses import judge

ORGS = tuple(f"org-{number:02d}" for number in range(7))
LOG = "log.demo"


@pytest.mark.parametrize("n", range(1, 8))
def test_the_default_is_the_smallest_set_that_always_meets_in_somebody_honest(n) -> None:
    rule = WitnessRule.of(ORGS[:n])
    assert rule.f == (n - 1) // 3
    sets = [set(each) for each in combinations(rule.orgs, rule.k)]
    assert min(len(one & other) for one in sets for other in sets) > rule.f
    if rule.k > 1:
        with pytest.raises(ComityError, match=f"k has to be {rule.k} at least"):
            WitnessRule(rule.orgs, rule.k - 1, rule.f)


@pytest.mark.parametrize(
    ("text", "k", "f"),
    [("a1,b1,c1", 2, 0), ("3:a1,b1,c1", 3, 0), ("4/1:a1,b1,c1,d1", 4, 1), ("3:a1,b1,c1,d1,e1", 3, 0)],
)
def test_rules_as_people_write_them(text, k, f) -> None:
    rule = WitnessRule.from_text(text)
    assert (rule.k, rule.f) == (k, f)
    assert WitnessRule.from_text(str(rule)) == rule
    assert WitnessRule.from_json(rule.to_json()) == rule


@pytest.mark.parametrize("text", ["", "x:a1,b1", "0:a1", "2:a1,b1,c1,d1", "1/1:a1,b1", "a1,a1", ",".join(ORGS * 3)])
def test_rules_that_do_not_hold_cannot_exist(text) -> None:
    with pytest.raises(ComityError, match="MALFORMED"):
        WitnessRule.from_text(text)


def test_who_goes_is_no_witness_any_more(world) -> None:
    charter = world.charter
    named = replace(charter, witnesses=WitnessRule.of(charter.organisations))
    assert named.from_json(named.to_json()) == named
    assert "witnesses" not in charter.to_json()
    gone = charter.organisations[-1]
    assert named.witness_rule is not None
    left = replace(named, suspended=(gone,)).witness_rule
    assert left is not None
    assert gone not in left.orgs
    next_one = {"version": named.version + 1, "previous": named.digest}
    removed = replace(
        named,
        **next_one,
        members=tuple(member for member in named.members if member.org != gone),
        witnesses=named.witnesses.without((gone,)),
        quorum={},
        roles={},
    )
    assert "suspend-member" in changes(named, removed)
    assert changes(named, replace(named, **next_one, witnesses=None)) == ("change-charter",)
    with pytest.raises(ComityError, match="a witness is a member"):
        replace(named, witnesses=WitnessRule.of(("stranger",)))


def test_cosignatures_make_a_checkpoint_final_at_a_time_that_one_honest_witness_saw() -> None:
    log, keys = OrgKeys.generate(), {org: OrgKeys.generate() for org in ORGS[:4]}
    public = {org: each.public.statement for org, each in keys.items()}
    rule = WitnessRule.of(tuple(keys))
    note = sign_note(Checkpoint(LOG, 1, leaf_hash(b"x")).text(), LOG, log)

    def seen(note: str) -> tuple[bool, int]:
        found = judge(note, LOG, log.public.statement, rule, public, latest_s=1_000)
        return found.final, found.at_s

    assert seen(note) == (False, 0)
    for org, at_s in zip(ORGS[:3], (100, 300, 200), strict=True):
        assert seen(note) == (False, 0)
        note = cosign_note(note, org, keys[org], at_s)
    assert seen(note) == (True, 100)
    # A witness that lies about the time changes nothing, nor does one whose clock is ahead of what is believed.
    assert seen(cosign_note(note, ORGS[3], keys[ORGS[3]], 999)) == (True, 200)
    assert seen(cosign_note(note, ORGS[3], keys[ORGS[3]], 1_001)) == (True, 100)
    # Nor a stranger, nor a second line of the same one.
    assert seen(cosign_note(note, "org-99", OrgKeys.generate(), 900)) == (True, 100)
    with pytest.raises(ComityError, match="SIGNATURE_INVALID"):
        seen(note.replace("AAAA", "AAAB", 1)) if "AAAA" in note else judge(
            note, LOG, OrgKeys.generate().public.statement, rule, public, latest_s=1_000
        )
