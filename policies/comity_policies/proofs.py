"""Does an agreement hold? For whoever was not there: a node at each order, an auditor years later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate, message_for, verify_certificate
from comity_crypto.statements import Statement, verify_statement
from comity_policies.charter import Charter
from comity_policies.documents import Agreement, Answer
from comity_policies.terms import conforms


def verify_agreement(
    body: dict[str, Any], answers: Sequence[Statement], charter: Charter
) -> tuple[Agreement, QuorumCertificate]:
    """Check an agreement under the charter that it names.

    Args:
        body: `{"agreement", "certificate", ...}` of an `agreement` statement.
        answers: exactly one signed answer of each party.
        charter: the charter whose digest the agreement names.

    Raises:
        ComityError: `AGREEMENT_INVALID`, `TERMS_TOO_WEAK`, `QUORUM_MISSING`, `SIGNATURE_INVALID`, `NOT_A_MEMBER`,
            `MALFORMED`.
    """
    agreement = Agreement.from_json(body["agreement"])
    certificate = QuorumCertificate.from_json(body["certificate"])
    if agreement.charter_digest != charter.digest or agreement.consortium != charter.consortium:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, "it is made under another charter")
    if certificate.digest != agreement.digest or certificate.signers != agreement.parties:
        raise ComityError(ErrorCode.QUORUM_MISSING, "not exactly the parties signed it")
    charter.member(agreement.proposal.proposer)
    verify_certificate(certificate, message_for("agreement", agreement.digest), charter.certificate_keys)
    if tuple(sorted(each.issuer for each in answers)) != agreement.parties:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, "it does not rest on one answer of each party")
    for each in answers:
        _check_answer(each, agreement, charter)
    return agreement, certificate


def _check_answer(statement: Statement, agreement: Agreement, charter: Charter) -> None:
    org = statement.issuer
    key = charter.member(org).keys.statement
    verify_statement(statement, key, kind="answer", consortium=charter.consortium)
    answer = Answer.from_json(statement.body)
    if answer.decision != "allow" or answer.proposal_digest != agreement.proposal.digest:
        raise ComityError(ErrorCode.AGREEMENT_INVALID, f"{org} did not allow this proposal", org=org)
    weaker = conforms(agreement.terms, answer.terms)
    if weaker:
        raise ComityError(
            ErrorCode.TERMS_TOO_WEAK, f"the terms are weaker than {org}'s in {weaker[0]}", org=org, field=weaker[0]
        )
