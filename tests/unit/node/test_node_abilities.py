"""Terms that this node cannot enforce are refused by name; who takes part is counted by legal owner."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_node.abilities import Abilities, check_company, check_purpose, check_sight
from comity_policies.charter import Charter, Member
from comity_policies.documents import AggregateStep, AppRef, Query, TrainStep
from comity_policies.terms import TABLE, Terms

OWNERS = {"clinic-a": "north", "clinic-b": "north", "clinic-c": "south", "clinic-d": "east"}
KEYS = {org: OrgKeys.generate() for org in OWNERS}
CHARTER = Charter(
    version=1,
    consortium="net",
    previous=None,
    members=tuple(Member(org, org, owner, KEYS[org].public) for org, owner in OWNERS.items()),
    log_name="net/log",
    log_key=base64.b64encode(OrgKeys.generate().public.statement).decode(),
    quorum={},
    max_checkpoint_age_s=600,
    defaults=Terms(),
)
ABLE = Abilities(frozenset({"plain", "lead-key"}), "sandbox")

REFUSED: dict[str, Any] = {
    "privacy": {"epsilon": "1", "delta": "0.00001"},
    "release_quorum": 2,
    "min_copies": 1,
    "attestation": "required",
    "isolation": "container",
}
KEPT: dict[str, Any] = {
    "purposes": ["research"],
    "columns": {"clinic-a/patients": ["age"]},
    "min_cohort": {"clinic-a/patients": 5},
    "min_participants": 2,
    "independent_peers": {"clinic-a": {"count": 1, "among": ["clinic-c"]}},
    "aggregation": "lead-key",
    "clip_norm": "1",
    "range": "1",
    "weight_max": 10,
    "rounds": 1,
    "uses": 1,
    "retention_s": 60,
    "releases": 1,
    "egress_bytes": 1,
    "not_after": "2099-01-01T00:00:00Z",
    "isolation": "sandbox",
    "attestation": "none",
    "egress": ["model"],
    "human_review": ["agreement", "dispatch", "egress"],
    "round_recipients": ["clinic-a"],
    "result_recipients": ["clinic-a"],
}


def refusal(act: Any, *arguments: Any) -> ComityError:
    with pytest.raises(ComityError) as caught:
        act(*arguments)
    return caught.value


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_what_nothing_enforces_is_refused_by_name(field: str) -> None:
    error = refusal(ABLE.check, Terms.parse({field: REFUSED[field]}))
    if field == "isolation":
        assert (error.code, error.facts["asked"]) == (ErrorCode.ISOLATION_TOO_WEAK, "container")
    else:
        assert (error.code, error.facts["field"]) == (ErrorCode.UNSUPPORTED, field)


def test_every_term_is_either_enforced_or_refused() -> None:
    ABLE.check(Terms.parse(KEPT))
    assert set(KEPT) | set(REFUSED) == set(TABLE)


@pytest.mark.parametrize("profile", ["masked", "threshold"])
def test_a_profile_that_is_not_here_is_refused(profile: str) -> None:
    error = refusal(ABLE.check, Terms.parse({"aggregation": profile}))
    assert (error.code, error.facts["field"]) == (ErrorCode.UNSUPPORTED, "aggregation")


def test_a_quorum_is_promised_only_where_shares_open_a_sum() -> None:
    able = Abilities(frozenset({"plain", "lead-key", "masked", "threshold"}), "sandbox")
    able.check(Terms.parse({"release_quorum": 3, "aggregation": "threshold"}))
    for profile in ("plain", "lead-key", "masked"):
        error = refusal(able.check, Terms.parse({"release_quorum": 3, "aggregation": profile}))
        assert (error.code, error.facts["field"]) == (ErrorCode.UNSUPPORTED, "release_quorum")
    error = refusal(
        check_company, Terms.parse({"release_quorum": 4, "aggregation": "threshold"}), list(OWNERS)[:3], CHARTER
    )
    assert (error.code, error.facts["field"]) == (ErrorCode.PARTICIPANTS_TOO_FEW, "release_quorum")


@pytest.mark.parametrize("field", ["clip_norm", "range", "weight_max"])
@pytest.mark.parametrize("stated", [{}, {"aggregation": "plain"}])
def test_bounds_on_an_update_need_a_profile_that_applies_them(field: str, stated: dict[str, str]) -> None:
    error = refusal(ABLE.check, Terms.parse({field: 1, **stated}))
    assert (error.code, error.facts["field"]) == (ErrorCode.UNSUPPORTED, field)


@pytest.mark.parametrize("aggregation", ["plain", "lead-key", "masked", "threshold"])
def test_only_a_profile_that_keeps_to_it_lets_others_open_sums(aggregation: str) -> None:
    able = Abilities(frozenset({"plain", "lead-key", "masked", "threshold"}), "sandbox")
    alone = TrainStep("fit", "clinic-a", AppRef("5f" * 32, 1, "x", "clinic-a", "1"), 1, {}, 60)
    beside, terms = replace(alone, opened_by=("clinic-b",)), Terms.parse({"aggregation": aggregation})
    able.check(terms, (alone,))
    if aggregation == "threshold":
        able.check(terms, (beside,))
        return
    error = refusal(able.check, terms, (beside,))
    assert (error.code, error.facts["field"]) == (ErrorCode.UNSUPPORTED, "opened_by")


def test_a_node_without_a_sandbox_refuses_to_promise_one() -> None:
    weak = Abilities(frozenset({"plain"}), "process")
    weak.check(Terms.parse({"isolation": "process"}))
    assert refusal(weak.check, Terms.parse({"isolation": "sandbox"})).code is ErrorCode.ISOLATION_TOO_WEAK


def test_a_purpose_outside_the_terms_is_a_conflict() -> None:
    check_purpose(Terms(), "marketing")
    check_purpose(Terms.parse({"purposes": ["research", "marketing"]}), "marketing")
    error = refusal(check_purpose, Terms.parse({"purposes": ["research"]}), "marketing")
    assert (error.code, error.facts["field"]) == (ErrorCode.TERMS_CONFLICT, "purposes")


def test_who_takes_part_sees_each_round_so_the_terms_have_to_let_it() -> None:
    """The term permits: whoever else it names is no matter; whoever takes part and is left out is named."""
    check_sight(Terms(), tuple(OWNERS))
    seen = Terms.parse({"round_recipients": ["clinic-a", "clinic-b", "clinic-z"], "aggregation": "threshold"})
    check_sight(seen, ("clinic-a", "clinic-b", "clinic-a"))
    error = refusal(check_sight, seen, tuple(OWNERS))
    assert (error.code, error.facts["field"]) == (ErrorCode.TERMS_CONFLICT, "round_recipients")
    assert error.facts["organisations"] == "clinic-c,clinic-d"


def test_too_few_participants() -> None:
    terms = Terms.parse({"min_participants": 3})
    check_company(terms, ("clinic-a", "clinic-b", "clinic-c"), CHARTER)
    error = refusal(check_company, terms, ("clinic-a", "clinic-b", "clinic-b"), CHARTER)
    assert (error.code, error.facts["field"]) == (ErrorCode.PARTICIPANTS_TOO_FEW, "min_participants")


def test_an_encrypted_sum_of_two_protects_nobody() -> None:
    terms = Terms.parse({"aggregation": "lead-key"})
    check_company(terms, ("clinic-a", "clinic-b", "clinic-c"), CHARTER)
    error = refusal(check_company, terms, ("clinic-a", "clinic-b"), CHARTER)
    assert (error.code, error.facts["field"]) == (ErrorCode.PARTICIPANTS_TOO_FEW, "aggregation")
    assert "--aggregation plain" in error.detail


def test_peers_of_one_owner_count_once_and_nobody_is_its_own_peer() -> None:
    def terms(asker: str, count: int) -> Terms:
        return Terms.parse({"independent_peers": {asker: {"count": count, "among": sorted(OWNERS)}}})

    check_company(terms("clinic-a", 2), tuple(OWNERS), CHARTER)  # south and east
    check_company(terms("clinic-c", 2), tuple(OWNERS), CHARTER)  # north and east
    for asker in ("clinic-a", "clinic-c"):
        error = refusal(check_company, terms(asker, 3), tuple(OWNERS), CHARTER)
        assert (error.code, error.facts["field"]) == (ErrorCode.PARTICIPANTS_TOO_FEW, "independent_peers")
    # The sister clinic alone is no independent peer.
    assert refusal(check_company, terms("clinic-a", 1), ("clinic-a", "clinic-b"), CHARTER).facts["here"] == 0


def test_only_named_peers_count() -> None:
    terms = Terms.parse({"independent_peers": {"clinic-a": {"count": 1, "among": ["clinic-d"]}}})
    check_company(terms, ("clinic-a", "clinic-d"), CHARTER)
    assert refusal(check_company, terms, ("clinic-a", "clinic-c"), CHARTER).code is ErrorCode.PARTICIPANTS_TOO_FEW


def test_a_step_of_a_kind_that_this_node_cannot_run_is_refused_by_name() -> None:
    step = AggregateStep("ask", "clinic-a", Query("count"), 1, 60)
    Abilities(frozenset({"plain"}), "process", frozenset({"train", "aggregate"})).check_steps((step,))
    with pytest.raises(ComityError, match="kind aggregate") as caught:
        Abilities(frozenset({"plain"}), "process", frozenset({"train"})).check_steps((step,))
    assert caught.value.code == ErrorCode.UNSUPPORTED


@pytest.mark.parametrize("field", ["privacy", "clip_norm", "range", "weight_max"])
def test_terms_follow_the_kind_of_step(field: str) -> None:
    """Noise is added to statistics alone, and updates alone are bounded."""
    ask = AggregateStep("ask", "clinic-a", Query("count"), 1, 60)
    able = Abilities(frozenset({"lead-key"}), "process", frozenset({"train", "aggregate"}))
    value = {"privacy": {"epsilon": "1", "delta": "0.00001"}, "weight_max": 10}.get(field, "1")
    terms = Terms.parse({"aggregation": "lead-key", field: value})
    steps, others = ((), (ask,)) if field != "privacy" else ((ask,), ())
    able.check(terms, steps)
    with pytest.raises(ComityError, match=field) as caught:
        able.check(terms, others)
    assert caught.value.code == ErrorCode.UNSUPPORTED
