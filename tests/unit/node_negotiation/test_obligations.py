"""Obligations before this organisation answers or signs: each one, broken by a lying coordinator, is refused."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import QuorumCertificate, make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.abilities import Abilities
from comity_node.negotiation import model
from comity_policies.charter import Charter, Member, QuorumRule
from comity_policies.documents import Agreement, Answer, AppRef, DatasetAsk, Proposal, TrainStep
from comity_policies.terms import Terms, meet_all

ORGS = ("clinic-a", "clinic-b", "clinic-c")
ME = "clinic-b"
NOW, DEADLINE, LATER = "2026-11-22T10:00:00Z", "2026-11-22T12:00:00Z", "2026-11-22T13:00:00Z"
KEYS = {org: OrgKeys.generate() for org in (*ORGS, "stranger")}
ZERO = "0" * 64


def charter(version_title: str = "") -> Charter:
    return Charter(
        version=1,
        consortium="net",
        previous=None,
        members=tuple(Member(org, org + version_title, org, KEYS[org].public) for org in ORGS),
        log_name="net/log",
        log_key=base64.b64encode(KEYS["stranger"].public.statement).decode(),
        quorum={"admit-member": QuorumRule("all")},
        max_checkpoint_age_s=600,
        defaults=Terms(),
    )


def proposal(**changes: Any) -> Proposal:
    step = TrainStep("train", "clinic-a", AppRef("ab" * 32, 10, "app", "me", "1"), 3, {"num-server-rounds": 3}, 60)
    asks = tuple(DatasetAsk(org, "patients", ("age",)) for org in ORGS)
    plain = Proposal(
        proposal_id="prop-1",
        revision=1,
        consortium="net",
        proposer="clinic-a",
        purpose="research",
        title="t",
        steps=(step,),
        required=ORGS,
        optional=(),
        minimum=3,
        datasets=asks,
        terms=Terms.parse({"purposes": ["research"], "rounds": 10}),
        deadline=DEADLINE,
    )
    return replace(plain, **changes)


def answer_of(org: str, rounds: int = 10, decision: str = "allow", asked: Proposal | None = None) -> Answer:
    wanted = asked or proposal()
    return Answer(wanted.digest, decision, (), Terms.parse({"rounds": rounds}), ZERO, ZERO, "embedded")


def said(org: str, answer: Answer, key: str | None = None) -> Statement:
    return sign_statement(KEYS[key or org], kind="answer", consortium="net", issuer=org, body=answer.to_json())


def agreement(answers: dict[str, Answer], **changes: Any) -> Agreement:
    voices = {org: answer.terms for org, answer in answers.items()}
    terms = meet_all({**voices, "clinic-a": meet_all({"x": proposal().terms, "y": voices["clinic-a"]}, parties=ORGS)})
    plain = Agreement("agr-1", "net", charter().digest, proposal(), tuple(answers), terms)
    return replace(plain, **changes)


def check(wanted: Agreement, answers: dict[str, Answer], **changes: Any) -> None:
    given: dict[str, Any] = {
        "charter": charter(),
        "me": ME,
        "mine": answers[ME],
        "signed_before": [],
        "now": NOW,
        "statements": [said(org, answer) for org, answer in answers.items()],
    }
    given.update(changes)
    model.check_agreement(wanted, given.pop("statements"), **given)


def refusal(act: Any, *arguments: Any, **named: Any) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        act(*arguments, **named)
    return error.value.code


ANSWERS = {"clinic-a": answer_of("clinic-a"), ME: answer_of(ME, 5), "clinic-c": answer_of("clinic-c", 7)}


def test_what_holds_is_signed() -> None:
    check(agreement(ANSWERS), ANSWERS)
    assert agreement(ANSWERS).terms["rounds"] == 5


def test_a1_another_charter_or_not_a_party() -> None:
    assert refusal(check, agreement(ANSWERS), ANSWERS, charter=charter("x")) is ErrorCode.AGREEMENT_INVALID
    assert refusal(check, agreement(ANSWERS), ANSWERS, me="stranger") is ErrorCode.AGREEMENT_INVALID


def test_a2_another_proposal_than_the_one_allowed() -> None:
    other = answer_of(ME, 5, asked=proposal(title="other"))
    assert refusal(check, agreement(ANSWERS), ANSWERS, mine=other) is ErrorCode.AGREEMENT_INVALID
    denied = answer_of(ME, 5, "deny")
    assert refusal(check, agreement(ANSWERS), ANSWERS, mine=denied) is ErrorCode.AGREEMENT_INVALID


def test_a3_answers_missing_doubled_forged_or_denying() -> None:
    statements = [said(org, answer) for org, answer in ANSWERS.items()]
    wanted = agreement(ANSWERS)
    for given in (statements[:2], [*statements, statements[0]]):
        assert refusal(check, wanted, ANSWERS, statements=given) is ErrorCode.AGREEMENT_INVALID
    forged = [statements[0], statements[1], said("clinic-c", ANSWERS["clinic-c"], key="stranger")]
    assert refusal(check, wanted, ANSWERS, statements=forged) is ErrorCode.SIGNATURE_INVALID
    denying = [statements[0], statements[1], said("clinic-c", answer_of("clinic-c", 7, "deny"))]
    assert refusal(check, wanted, ANSWERS, statements=denying) is ErrorCode.AGREEMENT_INVALID
    swapped = [statements[0], said(ME, answer_of(ME, 6)), statements[2]]
    assert refusal(check, wanted, ANSWERS, statements=swapped) is ErrorCode.AGREEMENT_INVALID


@pytest.mark.parametrize("rounds", [6, 10])
def test_a4_terms_weaker_than_the_meet(rounds: int) -> None:
    weak = agreement(ANSWERS, terms=Terms.parse({"purposes": ["research"], "rounds": rounds}))
    assert refusal(check, weak, ANSWERS) is ErrorCode.AGREEMENT_INVALID


def test_a4_even_stricter_terms_are_not_what_was_negotiated() -> None:
    strict = agreement(ANSWERS, terms=Terms.parse({"purposes": ["research"], "rounds": 2}))
    assert refusal(check, strict, ANSWERS) is ErrorCode.AGREEMENT_INVALID


def test_a5_the_deadline() -> None:
    assert refusal(check, agreement(ANSWERS), ANSWERS, now=LATER) is ErrorCode.DEADLINE_PASSED


def test_a6_one_agreement_for_one_proposal() -> None:
    signed = agreement(ANSWERS, agreement_id="agr-0")
    assert refusal(check, agreement(ANSWERS), ANSWERS, signed_before=[signed]) is ErrorCode.AGREEMENT_INVALID
    check(agreement(ANSWERS), ANSWERS, signed_before=[agreement(ANSWERS)])


def offer_statement(key: str = "clinic-a", issuer: str = "clinic-a", **changes: Any) -> Statement:
    body = {**proposal(**changes).to_json(), "app_payload": None}
    return sign_statement(KEYS[key], kind="proposal", consortium="net", issuer=issuer, body=body)


def test_offers() -> None:
    offer = model.check_offer(offer_statement(), charter(), ME, NOW)
    assert offer.proposal == proposal()
    assert refusal(model.check_offer, offer_statement(), charter(), ME, LATER) is ErrorCode.DEADLINE_PASSED
    assert refusal(model.check_offer, offer_statement(), charter(), "clinic-z", NOW) is ErrorCode.FORBIDDEN
    forged = offer_statement(key="stranger")
    assert refusal(model.check_offer, forged, charter(), ME, NOW) is ErrorCode.SIGNATURE_INVALID
    stranger = offer_statement(key="stranger", issuer="stranger")
    assert refusal(model.check_offer, stranger, charter(), ME, NOW) is ErrorCode.NOT_A_MEMBER
    in_anothers_name = offer_statement(key="clinic-c", issuer="clinic-c")
    assert refusal(model.check_offer, in_anothers_name, charter(), ME, NOW) is ErrorCode.SIGNATURE_INVALID


def final_statement(wanted: Agreement, certificate: QuorumCertificate) -> Statement:
    body = {"agreement": wanted.to_json(), "certificate": certificate.to_json(), "answers": []}
    return sign_statement(KEYS["stranger"], kind="agreement", consortium="net", issuer="coordinator", body=body)


def certificate_of(wanted: Agreement, signers: tuple[str, ...], digest: str | None = None) -> QuorumCertificate:
    about = digest or wanted.digest
    return make_certificate(about, {org: KEYS[org].bls_sign(message_for("agreement", about)) for org in signers})


def test_f1_every_party_signed_this_agreement() -> None:
    wanted = agreement(ANSWERS)
    assert model.check_final(final_statement(wanted, certificate_of(wanted, ORGS)), charter())[0] == wanted
    for certificate in (certificate_of(wanted, ORGS[:2]), certificate_of(wanted, ORGS, digest="cd" * 32)):
        assert refusal(model.check_final, final_statement(wanted, certificate), charter()) is ErrorCode.QUORUM_MISSING
    altered = replace(wanted, terms=Terms.parse({"purposes": ["research"], "rounds": 4}))
    statement = final_statement(altered, certificate_of(wanted, ORGS))
    assert refusal(model.check_final, statement, charter()) is ErrorCode.QUORUM_MISSING


ABLE = Abilities(frozenset({"plain", "lead-key"}), "process")


def test_b1_terms_that_cannot_be_kept_are_not_promised() -> None:
    def promise(terms: dict[str, Any], purpose: str = "research") -> None:
        model.check_promises(proposal(purpose=purpose), Terms.parse(terms), ORGS, charter(), ABLE)

    promise({"purposes": ["research"], "rounds": 3, "aggregation": "lead-key", "clip_norm": "1"})
    promise({"human_review": ["agreement", "dispatch", "egress"]})
    assert refusal(promise, {"privacy": {"epsilon": "1", "delta": "0.1"}}) is ErrorCode.UNSUPPORTED
    assert refusal(promise, {"aggregation": "threshold"}) is ErrorCode.UNSUPPORTED
    assert refusal(promise, {"isolation": "sandbox"}) is ErrorCode.ISOLATION_TOO_WEAK
    assert refusal(promise, {"purposes": ["research"]}, "marketing") is ErrorCode.TERMS_CONFLICT
    assert refusal(promise, {"min_participants": 4}) is ErrorCode.PARTICIPANTS_TOO_FEW
    promise({"round_recipients": list(ORGS)})
    assert refusal(promise, {"round_recipients": [*ORGS[1:], "stranger"]}) is ErrorCode.TERMS_CONFLICT  # not the lead


def test_b1_who_need_not_take_part_need_not_see_rounds() -> None:
    """An optional party that the terms leave out is left out of the agreement, by A4; the proposal stands."""
    asked = proposal(required=ORGS[:2], optional=ORGS[2:], minimum=2)
    terms = Terms.parse({"round_recipients": ORGS[:2]})
    model.check_promises(asked, terms, asked.asked, charter(), ABLE)
    with pytest.raises(ComityError, match=f"leaves out {ORGS[1]}:") as caught:
        model.check_promises(asked, Terms.parse({"round_recipients": ORGS[:1]}), asked.asked, charter(), ABLE)
    assert caught.value.facts["field"] == "round_recipients"
