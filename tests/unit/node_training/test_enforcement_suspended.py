"""Check (0) under a later charter: suspended members stop the work, rotated keys do not void what was signed."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import make_certificate, message_for
from comity_crypto.statements import sign_statement
from comity_node.abilities import Abilities
from comity_node.training.enforcement import Case, Certificates, Decide, History, Verdict, judge, run_id
from comity_policies.charter import Charter, Member
from comity_policies.charter_document import AgentRef, TrustRoot
from comity_policies.decisions import Decision, Stage, validate_input
from comity_policies.documents import Agreement, AppRef, DatasetAsk, OrderHeader, Proposal, TrainStep
from comity_policies.terms import Terms

ORGS = ("hospital-a", "hospital-b", "hospital-c")
LEAD, ME, NOW, LATER = ORGS[0], ORGS[1], "2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z"
KEYS = {org: OrgKeys.generate() for org in ORGS}
FRESH = OrgKeys.generate()
FIRST = Charter(
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
CATALOGUE = {"patients": {"name": "patients", "classification": "internal", "records": 40, "columns": ["age"]}}


class Held:
    """An agreement under the first charter, in the node's own store."""

    def __init__(self) -> None:
        step = TrainStep("fit", LEAD, AppRef("ab" * 32, 1, "app", "us", "1"), 3, {}, 60)
        asks = tuple(DatasetAsk(org, "patients", ("age",)) for org in ORGS)
        terms = Terms.parse({"aggregation": "plain"})
        proposal = Proposal(
            "p-1", 1, "oncology", LEAD, "research", "t", (step,), ORGS, (), 3, asks, terms, "2099-01-01T00:00:00Z"
        )
        self.agreement = Agreement("agr-1", "oncology", FIRST.digest, proposal, ORGS, terms)
        message = message_for("agreement", self.agreement.digest)
        self.certificate = make_certificate(self.agreement.digest, {org: KEYS[org].bls_sign(message) for org in ORGS})
        self.state = "final"


def second(**values: Any) -> Charter:
    return replace(FIRST, version=2, previous=FIRST.digest, **values)


def judged(
    charter: Charter,
    keys: OrgKeys = KEYS[LEAD],
    made_under: Charter | None = FIRST,
    decide: Decide = lambda stage, document: Decision("allow"),
) -> Verdict:
    stored = Held()
    order = OrderHeader(
        agreement=stored.agreement.digest,
        run=run_id(stored.agreement.digest, 1),
        step="fit",
        round=1,
        seq=0,
        message_type="train",
        lead=LEAD,
        receivers=ORGS,
        payload={"digest": "ab" * 32, "size": 100, "boxes": {}},
        content_digest="cd" * 32,
        reply_by=LATER,
    )
    statement = sign_statement(keys, kind="order", consortium="oncology", issuer=LEAD, body=order.to_json())
    case = Case(
        order=order,
        statement=statement,
        stored=stored,
        charter=charter,
        history=History({}, True, 0, None, 0),
        me=ME,
        now=NOW,
        abilities=Abilities(frozenset({"plain"}), "process"),
        catalogue=CATALOGUE,
        started=False,
        made_under=made_under,
    )
    return judge(case, Certificates(), decide)


def test_the_agreement_holds_under_the_next_charter() -> None:
    assert judged(FIRST).error is None
    assert judged(second(max_checkpoint_age_s=60)).error is None


@pytest.mark.parametrize("org", ORGS)
def test_one_suspended_party_stops_everybody(org: str) -> None:
    verdict = judged(second(suspended=(org,)))
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.SUSPENDED
    assert verdict.predicates == {"signed_by_lead": False}


def test_a_member_that_was_removed_stops_it_too() -> None:
    verdict = judged(second(members=FIRST.members[:2]))
    assert verdict.error is not None
    assert verdict.error.code is ErrorCode.NOT_A_MEMBER


def test_after_a_rotation_only_the_new_key_gives_orders_and_the_old_certificate_holds() -> None:
    rotated = second(members=(replace(FIRST.members[0], keys=FRESH.public), *FIRST.members[1:]))
    assert judged(rotated, FRESH).error is None
    stolen = judged(rotated, KEYS[LEAD])
    assert stolen.error is not None
    assert stolen.error.code is ErrorCode.SIGNATURE_INVALID
    # Without the charter that it was made under, nobody can tell: it does not hold.
    lost = judged(rotated, FRESH, made_under=None)
    assert lost.error is not None
    assert lost.error.code is ErrorCode.QUORUM_MISSING


def test_the_policy_sees_the_charter_in_force_and_not_the_one_agreed_under() -> None:
    published = AgentRef("ab" * 32, "app", "1", "us")
    seen: list[dict[str, Any]] = []

    def decide(stage: Stage, document: dict[str, Any]) -> Decision:
        validate_input(stage, document)
        seen.append(document["charter"])
        return Decision("allow")

    root = TrustRoot("sev-snp", "amd-milan", "cd" * 32)
    agents = (published, AgentRef("ef" * 32, "another", "1", "us"))
    later = second(agents=agents, roles={"accountant": (ME,)}, trust_roots=(root,))
    assert judged(FIRST, decide=decide).error is judged(later, decide=decide).error is None
    nobody = {org: [] for org in ORGS}
    assert seen == [
        {"version": 1, "roles": nobody, "published": [], "trust_roots": []},
        {
            "version": 2,
            "roles": {**nobody, ME: ["accountant"]},
            "published": [published.to_json()],
            "trust_roots": [root.to_json()],
        },
    ]
