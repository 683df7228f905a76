"""Two coordinators' worth of lies, on the pure rules: each is refused with its own code before anything is signed."""

from __future__ import annotations

import base64
import copy
from dataclasses import replace
from typing import Any

import pytest

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keys import OrgKeys
from comity_crypto.quorum import QuorumCertificate, make_certificate, message_for
from comity_crypto.statements import Statement, sign_statement
from comity_node.negotiation import model
from comity_policies.charter import Charter, Member, QuorumRule
from comity_policies.documents import Agreement, Answer, AppRef, Proposal, TrainStep
from comity_policies.terms import Terms, meet_all

ORGS = ("clinic-a", "clinic-b", "clinic-c")
ME, PROPOSER = "clinic-b", "clinic-a"
KEYS = {org: OrgKeys.generate() for org in (*ORGS, "log", "stranger")}
NOW, DEADLINE = "2026-11-22T10:00:00Z", "2026-11-22T12:00:00Z"
ZERO = "0" * 64


def charter(version: int = 1, **members: OrgKeys) -> Charter:
    return Charter(
        version=version,
        consortium="net",
        previous=None if version == 1 else "ab" * 32,
        members=tuple(Member(org, org, org, members.get(org.replace("-", "_"), KEYS[org]).public) for org in ORGS),
        log_name="net/log",
        log_key=base64.b64encode(KEYS["log"].public.statement).decode(),
        quorum={"admit-member": QuorumRule("all")},
        max_checkpoint_age_s=600,
        defaults=Terms(),
    )


def proposal(**changes: Any) -> Proposal:
    step = TrainStep("train", PROPOSER, AppRef("ab" * 32, 10, "app", "me", "1"), 3, {}, 60)
    plain = Proposal(
        proposal_id="prop-1",
        revision=1,
        consortium="net",
        proposer=PROPOSER,
        purpose="research",
        title="t",
        steps=(step,),
        required=ORGS,
        optional=(),
        minimum=3,
        datasets=(),
        terms=Terms.parse({"purposes": ["research"], "rounds": 10}),
        deadline=DEADLINE,
        accepts="within",
        bounds=Terms.parse({"rounds": 6}),
    )
    return replace(plain, **changes)


def answers(wanted: Proposal, **rounds: int) -> dict[str, Answer]:
    asked = {
        "clinic-a": 10,
        "clinic-b": 8,
        "clinic-c": 7,
        **{key.replace("_", "-"): item for key, item in rounds.items()},
    }
    return {
        org: Answer(wanted.digest, "allow", (), Terms.parse({"rounds": asked[org]}), ZERO, ZERO, "embedded")
        for org in ORGS
    }


def signed(org: str, answer: Answer, by: str | None = None) -> Statement:
    return sign_statement(KEYS[by or org], kind="answer", consortium="net", issuer=org, body=answer.to_json())


def agreement(wanted: Proposal, given: dict[str, Answer], **changes: Any) -> Agreement:
    terms = meet_all({"proposal": wanted.terms, **{org: answer.terms for org, answer in given.items()}}, parties=ORGS)
    return replace(Agreement("agr-1", "net", charter().digest, wanted, ORGS, terms), **changes)


def check(held: Agreement, statements: list[Statement], mine: Answer, me: str = ME, **changes: Any) -> None:
    values = {"charter": charter(), "me": me, "mine": mine, "signed_before": (), "now": NOW, **changes}
    model.check_agreement(held, statements, **values)


def code_of(act: Any, *arguments: Any, **named: Any) -> ErrorCode:
    with pytest.raises(ComityError) as error:
        act(*arguments, **named)
    return error.value.code


WANTED = proposal()
GIVEN = answers(WANTED)
SAID = [signed(org, answer) for org, answer in GIVEN.items()]


def test_the_honest_agreement_holds_at_every_party() -> None:
    for org in ORGS:
        check(agreement(WANTED, GIVEN), SAID, GIVEN[org], org)


@pytest.mark.parametrize("rounds", [8, 9, 10])
def test_an_agreement_weaker_than_a_partys_terms(rounds: int) -> None:
    weak = agreement(WANTED, GIVEN, terms=Terms.parse({"purposes": ["research"], "rounds": rounds}))
    for org in ORGS:
        assert code_of(check, weak, SAID, GIVEN[org], org) is ErrorCode.AGREEMENT_INVALID


def test_another_partys_answer_altered_or_swapped_for_another_of_its_own() -> None:
    softer = replace(GIVEN["clinic-c"], terms=Terms.parse({"rounds": 10}))
    forged = [SAID[0], SAID[1], signed("clinic-c", softer, by="stranger")]
    held = agreement(WANTED, {**GIVEN, "clinic-c": softer})
    assert code_of(check, held, forged, GIVEN[ME]) is ErrorCode.SIGNATURE_INVALID
    content = copy.deepcopy(SAID[2].to_json())
    content["content"]["body"]["terms"] = {"rounds": 10}
    assert code_of(check, held, [*SAID[:2], Statement.from_json(content)], GIVEN[ME]) is ErrorCode.SIGNATURE_INVALID
    other = replace(GIVEN["clinic-c"], proposal_digest=proposal(title="another").digest)
    assert code_of(check, held, [*SAID[:2], signed("clinic-c", other)], GIVEN[ME]) is ErrorCode.AGREEMENT_INVALID
    review = replace(GIVEN["clinic-c"], decision="review")
    assert code_of(check, held, [*SAID[:2], signed("clinic-c", review)], GIVEN[ME]) is ErrorCode.AGREEMENT_INVALID


def test_the_own_answer_altered() -> None:
    other = replace(GIVEN[ME], terms=Terms.parse({"rounds": 9}))
    held = agreement(WANTED, {**GIVEN, ME: other})
    assert code_of(check, held, [SAID[0], signed(ME, other), SAID[2]], GIVEN[ME]) is ErrorCode.AGREEMENT_INVALID


def test_a_swapped_code_digest() -> None:
    step = replace(WANTED.steps[0], app=replace(WANTED.steps[0].app, digest="cd" * 32))
    swapped = agreement(replace(WANTED, steps=(step,)), GIVEN)
    assert code_of(check, swapped, SAID, GIVEN[ME]) is ErrorCode.AGREEMENT_INVALID


def test_an_old_charter_and_one_from_another_chain() -> None:
    now_in_force = charter(2)
    assert code_of(check, agreement(WANTED, GIVEN), SAID, GIVEN[ME], charter=now_in_force) is (
        ErrorCode.AGREEMENT_INVALID
    )
    foreign = charter(clinic_c=KEYS["stranger"])
    held = agreement(WANTED, GIVEN, charter_digest=foreign.digest)
    assert code_of(check, held, SAID, GIVEN[ME]) is ErrorCode.AGREEMENT_INVALID


def test_a_counter_offer_beyond_the_bounds_that_nobody_accepted() -> None:
    given = answers(WANTED, clinic_c=5)
    said = [signed(org, answer) for org, answer in given.items()]
    held = agreement(WANTED, given)
    check(held, said, given[ME])
    assert code_of(check, held, said, given[PROPOSER], PROPOSER) is ErrorCode.AGREEMENT_INVALID
    check(held, said, given[PROPOSER], PROPOSER, accepted=[said[2].digest])
    other = signed("clinic-c", replace(given["clinic-c"], terms=Terms.parse({"rounds": 4})))
    assert code_of(check, held, said, given[PROPOSER], PROPOSER, accepted=[other.digest]) is (
        ErrorCode.AGREEMENT_INVALID
    )


def test_a_revision_that_the_proposer_has_put_aside() -> None:
    held = agreement(WANTED, GIVEN)
    assert code_of(check, held, SAID, GIVEN[ME], newest_revision=2) is ErrorCode.SUPERSEDED


def test_a_second_agreement_for_one_proposal() -> None:
    held, other = agreement(WANTED, GIVEN), agreement(WANTED, GIVEN, agreement_id="agr-2")
    assert code_of(check, other, SAID, GIVEN[ME], signed_before=[held]) is ErrorCode.AGREEMENT_INVALID
    # Another charter came into force while signatures were collected: the draft under it may be signed too.
    under_new = agreement(WANTED, GIVEN, charter_digest=charter(2).digest)
    check(under_new, SAID, GIVEN[ME], charter=charter(2), signed_before=[held])


def test_an_agreement_held_back_until_long_after_the_deadline() -> None:
    held = agreement(WANTED, GIVEN)
    check(held, SAID, GIVEN[ME], now="2026-11-22T12:59:59Z")
    assert code_of(check, held, SAID, GIVEN[ME], now="2026-11-22T13:00:00Z") is ErrorCode.DEADLINE_PASSED


# The certificate.


def certificate(held: Agreement, by: dict[str, str]) -> QuorumCertificate:
    message = message_for("agreement", held.digest)
    return make_certificate(held.digest, {org: KEYS[key].bls_sign(message) for org, key in by.items()})


def final(held: Agreement, made: Any, by: str = "log") -> Statement:
    body = {"agreement": held.to_json(), "certificate": made, "answers": [each.to_json() for each in SAID]}
    return sign_statement(KEYS[by], kind="agreement", consortium="net", issuer="coordinator", body=body)


HELD = agreement(WANTED, GIVEN)
HONEST = certificate(HELD, {org: org for org in ORGS})


def test_the_honest_certificate_holds() -> None:
    assert model.check_final(final(HELD, HONEST.to_json()), charter())[0] == HELD


def test_a_certificate_with_a_forged_signer() -> None:
    forged = certificate(HELD, {"clinic-a": "clinic-a", "clinic-b": "stranger", "clinic-c": "clinic-c"})
    assert code_of(model.check_final, final(HELD, forged.to_json()), charter()) is ErrorCode.QUORUM_MISSING


def test_a_certificate_with_a_missing_signer() -> None:
    missing = certificate(HELD, {"clinic-a": "clinic-a", "clinic-b": "clinic-b"})
    assert code_of(model.check_final, final(HELD, missing.to_json()), charter()) is ErrorCode.QUORUM_MISSING
    claimed = {**missing.to_json(), "signers": list(ORGS)}
    assert code_of(model.check_final, final(HELD, claimed), charter()) is ErrorCode.QUORUM_MISSING


def test_a_certificate_with_a_signer_counted_twice() -> None:
    pair = certificate(HELD, {"clinic-a": "clinic-a", "clinic-b": "clinic-b"})
    doubled = {**pair.to_json(), "signers": ["clinic-a", "clinic-a", "clinic-b"]}
    assert code_of(model.check_final, final(HELD, doubled), charter()) in (
        ErrorCode.QUORUM_MISSING,
        ErrorCode.MALFORMED,
    )


def test_a_certificate_of_another_agreement_or_under_another_charter() -> None:
    other = agreement(WANTED, GIVEN, agreement_id="agr-2")
    assert code_of(model.check_final, final(other, HONEST.to_json()), charter()) is ErrorCode.QUORUM_MISSING
    rotated = charter(clinic_c=KEYS["stranger"])
    assert code_of(model.check_final, final(HELD, HONEST.to_json()), rotated) is ErrorCode.QUORUM_MISSING
    assert code_of(model.check_final, final(HELD, HONEST.to_json(), by="stranger"), charter()) is (
        ErrorCode.SIGNATURE_INVALID
    )


# Counter-offers as the coordinator hands them to the proposer.


def test_a_counter_offer_that_its_organisation_never_made() -> None:
    good = SAID[2]
    assert model.check_counter(good, WANTED, charter()) == GIVEN["clinic-c"]
    forged = signed("clinic-c", GIVEN["clinic-c"], by="stranger")
    assert code_of(model.check_counter, forged, WANTED, charter()) is ErrorCode.SIGNATURE_INVALID
    assert code_of(model.check_counter, good, proposal(title="another"), charter()) is ErrorCode.FORBIDDEN
    denial = signed("clinic-c", replace(GIVEN["clinic-c"], decision="deny"))
    assert code_of(model.check_counter, denial, WANTED, charter()) is ErrorCode.FORBIDDEN
