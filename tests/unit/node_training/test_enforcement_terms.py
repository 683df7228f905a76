"""Check (3) and the egress check, term by term: what an agreement says is enforced, or refused by name."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import sign_statement
from comity_node.abilities import Abilities
from comity_node.training.enforcement import Case, Certificates, History, Verdict, check_egress, judge, run_id
from comity_policies.charter import Charter, Member
from comity_policies.decisions import Decision
from comity_policies.documents import Agreement, AppRef, DatasetAsk, OrderHeader, Proposal, TrainStep
from comity_policies.terms import Terms

ORGS = ("hospital-a", "hospital-b", "hospital-c")
ME, NOW, LATER = "hospital-b", "2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z"
KEYS = {org: OrgKeys.generate() for org in ORGS}
CHARTER = Charter(
    version=1,
    consortium="oncology",
    previous=None,
    members=tuple(Member(org, org, org, KEYS[org].public) for org in ORGS),
    log_name="log",
    log_key=base64.b64encode(OrgKeys.generate().public.statement).decode(),
    quorum={},
    max_checkpoint_age_s=600,
    defaults=Terms(),
)
ABLE = Abilities(frozenset({"plain"}), "process")
NOTHING_YET = History({}, True, 0, None, 0)
CATALOGUE = {"patients": {"name": "patients", "classification": "internal", "records": 40, "columns": ["age", "name"]}}


class Held:
    """An agreement in the node's own store."""

    def __init__(self, terms: dict[str, Any]) -> None:
        step = TrainStep("fit", ORGS[0], AppRef("ab" * 32, 1, "app", "us", "1"), 3, {}, 60)
        asks = tuple(DatasetAsk(org, "patients", ("age", "name")) for org in ORGS)
        wanted = Terms.parse({"aggregation": "plain", **terms})
        proposal = Proposal(
            "p-1", 1, "oncology", ORGS[0], "research", "t", (step,), ORGS, (), 3, asks, wanted, "2099-01-01T00:00:00Z"
        )
        self.agreement = Agreement("agr-1", "oncology", CHARTER.digest, proposal, ORGS, wanted)
        message = message_for("agreement", self.agreement.digest)
        self.certificate = make_certificate(self.agreement.digest, {org: KEYS[org].bls_sign(message) for org in ORGS})
        self.state = "final"


def allow(stage: str, document: dict[str, Any]) -> Decision:
    return Decision("allow")


def judged(
    terms: dict[str, Any],
    history: History = NOTHING_YET,
    decide: Any = allow,
    now: str = NOW,
    abilities: Abilities = ABLE,
    attested: ComityError | None = None,
    **changes: Any,
) -> Verdict:
    """Judge an order under terms, from a node that could do everything else."""
    stored = Held(terms)
    order = OrderHeader(
        agreement=stored.agreement.digest,
        run=run_id(stored.agreement.digest, 1),
        step="fit",
        round=1,
        seq=0,
        message_type="train",
        lead=ORGS[0],
        receivers=ORGS,
        payload={"digest": "ab" * 32, "size": 100, "boxes": {}},
        content_digest="cd" * 32,
        reply_by=LATER,
    )
    order = replace(order, **changes)
    statement = sign_statement(KEYS[ORGS[0]], kind="order", consortium="oncology", issuer=ORGS[0], body=order.to_json())
    case = Case(order, statement, stored, CHARTER, history, ME, now, abilities, CATALOGUE, False, attested=attested)
    return judge(case, Certificates(), decide)


def test_an_order_that_conforms_passes() -> None:
    assert judged({}).error is None


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"privacy": {"epsilon": "1", "delta": "0.00001"}}, ErrorCode.UNSUPPORTED),
        ({"attestation": "required"}, ErrorCode.UNSUPPORTED),
        ({"min_copies": 1}, ErrorCode.UNSUPPORTED),
        ({"release_quorum": 2}, ErrorCode.UNSUPPORTED),
        ({"clip_norm": "1"}, ErrorCode.UNSUPPORTED),
        ({"range": "1"}, ErrorCode.UNSUPPORTED),
        ({"weight_max": 1}, ErrorCode.UNSUPPORTED),
        ({"aggregation": "masked"}, ErrorCode.UNSUPPORTED),
        ({"isolation": "container"}, ErrorCode.ISOLATION_TOO_WEAK),
        ({"isolation": "sandbox"}, ErrorCode.ISOLATION_TOO_WEAK),
        ({"purposes": ["statistics"]}, ErrorCode.TERMS_CONFLICT),
        ({"round_recipients": [ME]}, ErrorCode.TERMS_CONFLICT),
        ({"min_participants": 4}, ErrorCode.PARTICIPANTS_TOO_FEW),
        ({"independent_peers": {ME: {"count": 2, "among": ["hospital-a"]}}}, ErrorCode.PARTICIPANTS_TOO_FEW),
        ({"columns": {f"{ME}/patients": ["height"]}}, ErrorCode.MALFORMED),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_terms_that_cannot_be_kept_fail_check_3(terms: dict[str, Any], code: ErrorCode) -> None:
    verdict = judged(terms)
    assert verdict.error is not None
    assert verdict.error.code is code
    assert verdict.predicates["conforms"] is False
    assert "grant_left" not in verdict.predicates


def test_machines_that_cannot_be_relied_on_fail_check_3() -> None:
    verdict = judged({}, attested=ComityError(ErrorCode.ATTESTATION_STALE, org="hospital-c"))
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.ATTESTATION_STALE
    assert verdict.predicates["conforms"] is False
    able = Abilities(frozenset({"plain"}), "process", attests=True)
    assert judged({"attestation": "required"}, abilities=able).error is None


def test_a_subset_below_the_terms_is_refused() -> None:
    pair = {"receivers": (ORGS[0], ME)}
    assert judged({"min_participants": 2}, **pair).error is None
    verdict = judged({"min_participants": 3}, **pair)
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.PARTICIPANTS_TOO_FEW


@pytest.mark.parametrize(
    ("terms", "history", "field"),
    [
        ({"rounds": 2}, History({"rounds": 2}, False, 0, None, 0), "rounds"),
        ({"releases": 2}, History({"releases": 2}, False, 0, None, 0), "releases"),
        ({"egress_bytes": 5}, History({"egress_bytes": 5}, False, 0, None, 0), "egress_bytes"),
        ({"uses": 1}, History({"uses": 1}, True, 0, None, 0), "uses"),
    ],
    ids=["rounds", "releases", "egress_bytes", "uses"],
)
def test_a_grant_that_is_used_up_fails_check_4(terms: dict[str, Any], history: History, field: str) -> None:
    verdict = judged(terms, history)
    assert verdict.error is not None
    assert (verdict.error.code, verdict.error.facts["field"]) == (ErrorCode.GRANT_EXHAUSTED, field)
    assert verdict.predicates["grant_left"] is False


def test_an_expired_agreement_fails_check_4() -> None:
    verdict = judged({"not_after": "2026-11-22T09:59:59Z"})
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.GRANT_EXPIRED


def test_the_time_of_a_decision_is_our_own() -> None:
    """A lead whose clock runs behind or ahead moves nothing here: only the node's own present is compared and asked."""
    asked: list[str] = []

    def decide(stage: str, document: dict[str, Any]) -> Decision:
        asked.append(document["now"])
        return Decision("allow")

    for reply_by in ("2026-11-22T10:00:01Z", "2099-01-01T00:00:00Z"):
        assert judged({}, decide=decide, reply_by=reply_by).error is None
        expired = judged({"not_after": NOW}, decide=decide, now=LATER, reply_by="2099-01-01T00:00:00Z")
        assert expired.error is not None
        assert expired.error.code is ErrorCode.GRANT_EXPIRED
    late = judged({}, decide=decide, reply_by=NOW)
    assert late.error is not None
    assert late.error.code is ErrorCode.DEADLINE_PASSED
    assert asked == [NOW, NOW]


def test_a_clock_that_was_put_back_gives_no_grant_back() -> None:
    spent = History({"rounds": 2, "uses": 1}, False, 2, None, 0)
    verdict = judged({"rounds": 2}, spent, now="2020-01-01T00:00:00Z", round=3, seq=2)
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.GRANT_EXHAUSTED


def test_columns_outside_the_terms_are_not_given() -> None:
    verdicts = [judged({"columns": {f"{ME}/patients": ["age"]}}), judged({"columns": {f"{ME}/patients": ["age", "x"]}})]
    assert [verdict.error for verdict in verdicts] == [None, None]


@pytest.mark.parametrize(
    ("terms", "facts", "refused"),
    [
        ({"egress": ["statistic"]}, {}, True),
        ({"egress": ["model"]}, {}, False),
        ({"min_cohort": {f"{ME}/patients": 41}}, {}, True),
        ({"min_cohort": {f"{ME}/patients": 40}}, {}, False),
        ({"min_cohort": {"hospital-a/patients": 41}}, {}, False),
    ],
)
def test_what_leaves_is_measured_against_the_terms(terms: dict[str, Any], facts: dict[str, Any], refused: bool) -> None:
    stored = Held(terms)
    digest = stored.agreement.digest
    payload = {"digest": "ab" * 32, "size": 100, "boxes": {}}
    order = OrderHeader(digest, run_id(digest, 1), "fit", 1, 0, "train", ORGS[0], ORGS, payload, "cd" * 32, LATER)
    measured = {"kind": "model", "cohort": 40, "size_bytes": 1, "metrics": [], "clipped": 0, "noise": False, **facts}

    def check() -> None:
        check_egress(stored.agreement, order, measured, ME, NOW, lambda stage, document: Decision("allow"))

    if not refused:
        check()
        return
    with pytest.raises(ComityError) as caught:
        check()
    assert caught.value.code is ErrorCode.EGRESS_DENIED
