"""Succession under any rule, any difference and any signers: what the charter promises holds for all of them."""

from __future__ import annotations

import base64
import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_policies.charter import (
    DECISION_KINDS,
    Adopted,
    AgentRef,
    Charter,
    Member,
    PolicyRef,
    QuorumRule,
    TrustRoot,
    changes,
    enough,
    reachable,
    verify_successor,
)
from comity_policies.charter_witnesses import WitnessRule
from comity_policies.terms import Terms

ORGS = tuple(f"org-{name}" for name in "abcde")
KEYS = {org: OrgKeys.generate() for org in (*ORGS, "org-f", "org-g")}
LOG = base64.b64encode(OrgKeys.generate().public.statement).decode()
D1, D2 = "1a" * 32, "2b" * 32
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def member(org: str) -> Member:
    return Member(org, org, f"{org} ltd", KEYS[org].public)


def charter(**values: Any) -> Charter:
    given_values: dict[str, Any] = {
        "version": 1,
        "consortium": "demo",
        "previous": None,
        "members": tuple(member(org) for org in ORGS),
        "log_name": "log.example/demo",
        "log_key": LOG,
        "quorum": {},
        "max_checkpoint_age_s": 600,
        "defaults": Terms(),
    }
    return Charter(**(given_values | values))


def certificate(successor: Charter, signers: tuple[str, ...]) -> Any:
    message = message_for("charter", successor.digest)
    return make_certificate(successor.digest, {org: KEYS[org].bls_sign(message) for org in signers})


@st.composite
def rules(draw: Any) -> QuorumRule:
    kind = draw(st.sampled_from(("all", "count", "fraction", "named", "weighted")))
    if kind == "count":
        return QuorumRule("count", draw(st.integers(1, 9)))
    if kind == "fraction":
        n = draw(st.integers(1, 9))
        return QuorumRule("fraction", draw(st.integers(1, n)), n)
    if kind == "named":
        return QuorumRule("named", members=tuple(draw(st.sets(st.sampled_from(ORGS), min_size=1))))
    if kind == "weighted":
        weights = draw(st.dictionaries(st.sampled_from(ORGS), st.integers(1, 20), min_size=1))
        return QuorumRule("weighted", draw(st.integers(1, sum(weights.values()))), weights=weights)
    return QuorumRule("all")


some_orgs = st.sets(st.sampled_from(ORGS))


@quick
@given(rules(), some_orgs, some_orgs)
def test_no_rule_is_met_by_half(rule: QuorumRule, signers: set[str], suspended: set[str]) -> None:
    """More than half of all members or of all weight, of members that may vote, and everyone whom the rule names."""
    if not rule.met(signers, ORGS, suspended):
        return
    assert signers
    assert not signers & suspended
    assert set(rule.members) <= signers
    if rule.kind == "weighted":
        assert 2 * sum(rule.weights.get(org, 0) for org in signers) > sum(rule.weights.values())
        assert sum(rule.weights.get(org, 0) for org in signers) >= rule.k
    else:
        assert 2 * len(signers) > len(ORGS)
        assert len(signers) >= min(rule.needed(len(ORGS)), len(ORGS) - len(suspended))


@quick
@given(rules(), some_orgs, some_orgs)
def test_two_quorums_share_a_member(rule: QuorumRule, one: set[str], other: set[str]) -> None:
    """So that two successors of one charter would need a member that signed both."""
    if rule.met(one, ORGS) and rule.met(other, ORGS):
        assert one & other


@quick
@given(rules(), some_orgs, st.sampled_from(ORGS))
def test_one_more_voice_never_undoes_a_quorum(rule: QuorumRule, signers: set[str], more: str) -> None:
    if rule.met(signers, ORGS):
        assert rule.met(signers | {more}, ORGS)


@quick
@given(rules())
def test_a_rule_has_one_spelling_for_people_and_one_for_programs(rule: QuorumRule) -> None:
    assert QuorumRule.from_text(str(rule)) == rule
    assert QuorumRule.from_json(rule.to_json()) == rule
    assert rule.met(ORGS, ORGS), "all members together can always decide"


@pytest.mark.parametrize(
    "text", ["", "0", "half", "3/2", "0/3", "named:", "named:x,x", "weighted:9:a=1", "weighted:1:a=0"]
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ComityError) as refused:
        QuorumRule.from_text(text)
    assert refused.value.code is ErrorCode.MALFORMED


# One difference for each field of a charter, with the kind of decision that covers it; None: it cannot change.
DIFFERENCES: dict[str, list[tuple[str | None, Any]]] = {
    "version": [(None, 3)],
    "consortium": [(None, "others")],
    "previous": [(None, "0c" * 32)],
    "members": [
        ("admit-member", (*(member(org) for org in ORGS), member("org-f"))),
        ("suspend-member", tuple(member(org) for org in ORGS[:4])),
        ("rotate-key", (*(member(org) for org in ORGS[:4]), replace(member("org-e"), keys=KEYS["org-g"].public))),
        ("change-charter", (*(member(org) for org in ORGS[:4]), replace(member("org-e"), owner="org-a ltd"))),
    ],
    "suspended": [("suspend-member", ("org-e",))],
    "quorum": [("change-charter", {"admit-member": QuorumRule("count", 3)})],
    "max_checkpoint_age_s": [("change-charter", 60)],
    "witnesses": [("change-charter", WitnessRule.of(ORGS[:4]))],
    "defaults": [("change-charter", Terms.parse({"rounds": 3}))],
    "roles": [("change-charter", {"accountant": ("org-a",)})],
    "policy": [("change-policy", PolicyRef(D1, "house rules"))],
    "agents": [("publish-agent", (AgentRef(D1, "tumours", "1.0", "org-a"),))],
    "trust_roots": [("trust-root", (TrustRoot("sev-snp", "milan", D1),))],
    "log_name": [("change-coordinator", "next.example/demo")],
    "log_key": [("change-coordinator", base64.b64encode(KEYS["org-g"].public.statement).decode())],
    "adopted": [(None, Adopted("log.example/demo", 9, D2))],
    "attempt": [(None, 2)],
}
LEGAL = [(name, kind, value) for name, found in DIFFERENCES.items() for kind, value in found if kind is not None]


def following(previous: Charter, /, **values: Any) -> Charter:
    if {"log_name", "log_key"} & set(values):
        values.setdefault("adopted", Adopted(previous.log_name, 9, D2))
    return replace(previous, **{"version": previous.version + 1, "previous": previous.digest, **values})


def verdict(previous: Charter, successor: Charter, signers: tuple[str, ...]) -> ErrorCode | None:
    try:
        verify_successor(previous, successor, certificate(successor, signers))
    except ComityError as error:
        return error.code
    return None


def test_every_field_is_covered_by_a_kind_or_cannot_change() -> None:
    assert set(DIFFERENCES) == {each.name for each in fields(Charter)}
    assert {kind for _, kind, _ in LEGAL} == set(DECISION_KINDS)
    genesis = charter()
    for name, found in DIFFERENCES.items():
        for kind, value in found:
            if kind is not None:
                assert changes(genesis, following(genesis, **{name: value})) == (kind,), name
                continue
            successor = following(genesis, **{name: value})
            assert verdict(genesis, successor, ORGS) is ErrorCode.CHARTER_INVALID, name


def test_lifting_a_suspension_is_an_admission_and_a_log_is_not_rewritten_later() -> None:
    barred = charter(suspended=("org-e",))
    assert changes(barred, following(barred, suspended=())) == ("admit-member",)
    moved = following(charter(), log_name="next.example/demo")
    for bad in (None, Adopted("log.example/demo", 8, D2)):
        with pytest.raises(ComityError, match="CHARTER_INVALID"):
            changes(moved, replace(moved, version=3, previous=moved.digest, max_checkpoint_age_s=9, adopted=bad))
    with pytest.raises(ComityError, match="CHARTER_INVALID"):
        changes(charter(), following(charter(), log_name="next.example/demo", adopted=Adopted("lies", 9, D2)))


@quick
@given(st.lists(st.sampled_from(LEGAL), min_size=1, max_size=3, unique_by=lambda row: row[0]), st.data())
def test_every_kind_that_occurs_has_its_quorum(found: list[tuple[str, str, Any]], data: Any) -> None:
    quorum = {kind: data.draw(rules(), kind) for _, kind, _ in found}
    previous = charter(quorum=quorum)
    values = {name: value for name, _, value in found}
    try:
        successor = following(previous, **values)
    except ComityError:
        assume(False)  # a rule of the successor names whom it suspends or removes
    kinds = changes(previous, successor)
    assert {kind for _, kind, _ in found} <= set(kinds)
    signers = tuple(sorted(data.draw(st.sets(st.sampled_from(ORGS), min_size=1), "signers")))
    wanted = all(previous.rule(kind).met(signers, ORGS) for kind in kinds)
    assert enough(previous, successor, signers) == wanted
    assert verdict(previous, successor, signers) is (None if wanted else ErrorCode.QUORUM_MISSING)


@quick
@given(rules(), some_orgs)
def test_denials_end_it_exactly_when_no_quorum_is_left(rule: QuorumRule, denied: set[str]) -> None:
    previous = charter(quorum={"admit-member": rule})
    successor = following(previous, members=(*previous.members, member("org-f")))
    left = sorted(set(ORGS) - denied)
    possible = any(
        enough(previous, successor, some)
        for size in range(1, len(left) + 1)
        for some in itertools.combinations(left, size)
    )
    assert reachable(previous, successor, denied) == possible


def test_signers_that_do_not_count() -> None:
    """Forged, missing, strange or suspended signers; a certificate about another charter; an old charter's keys."""
    previous = charter(quorum={"admit-member": QuorumRule("count", 3)}, suspended=("org-e",))
    successor = following(previous, members=(*previous.members, member("org-f")))
    good = certificate(successor, ORGS[:3])
    verify_successor(previous, successor, good)
    for bad in (
        certificate(successor, ORGS[:2]),
        certificate(successor, (*ORGS[:2], "org-e")),
        certificate(successor, (*ORGS[:2], "org-f")),
        replace(good, signers=ORGS[1:4]),
        replace(good, signature=certificate(previous, ORGS[:3]).signature),
        certificate(previous, ORGS[:3]),
    ):
        with pytest.raises(ComityError) as refused:
            verify_successor(previous, successor, bad)
        assert refused.value.code is ErrorCode.QUORUM_MISSING
    rotated = following(previous, members=(replace(member("org-a"), keys=KEYS["org-g"].public), *previous.members[1:]))
    later = following(rotated, max_checkpoint_age_s=60)
    with pytest.raises(ComityError, match="QUORUM_MISSING"):
        verify_successor(rotated, later, certificate(later, ORGS[:4]))


def test_a_charter_says_nothing_of_strangers() -> None:
    for bad in (
        {"suspended": ("org-f",)},
        {"suspended": ORGS[:3]},
        {"roles": {"accountant": ("org-f",)}},
        {"roles": {"accountant": ()}},
        {"quorum": {"admit-member": QuorumRule("named", members=("org-f",))}},
        {"quorum": {"admit-member": QuorumRule("named", members=("org-a",))}, "suspended": ("org-a",)},
        {"quorum": {"x": QuorumRule("weighted", 1, weights={"org-a": 5})}},
        {
            "quorum": {"rotate-key": QuorumRule("weighted", 9, weights={"org-a": 8, "org-b": 1})},
            "suspended": ("org-b",),
        },
        {"agents": (AgentRef(D1, "a", "1", "x"), AgentRef(D2, "a", "1", "y"))},
    ):
        with pytest.raises(ComityError) as refused:
            charter(**bad)
        assert refused.value.code is ErrorCode.MALFORMED, bad
