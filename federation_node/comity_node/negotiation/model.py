"""What a node checks before it answers an offer and before it signs an agreement: pure functions.

The coordinator may be lying about everything but the other organisations' signatures. Obligations, in this order:

Offer     O1 the proposal is signed by a member, in this consortium, and this organisation is asked
          O2 its deadline lies ahead
Agreement A1 it belongs to the charter in force here, and this organisation is a party
          A2 it holds exactly a proposal revision that this organisation answered with `allow`
          A3 every party's answer is there, signed by that party, for this proposal, and allows it
          A4 the agreement's terms are the meet of the proposal's and all answers'; at least as strict as our own
          A5 the deadline has not passed
          A6 nothing else was signed for this proposal with other terms or more parties
Both      B1 its terms permit its purpose, its parties are enough and independent enough, and this node can enforce
             every term: what nobody here enforces is refused by name instead of promised
Final     F1 every party signed the digest, by one certificate over the charter's keys
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate, message_for, verify_certificate
from comity_crypto.statements import Statement, verify_statement
from comity_node.abilities import Abilities, check_company, check_purpose
from comity_policies.charter import Charter
from comity_policies.documents import Agreement, Answer, Proposal
from comity_policies.terms import Terms, conforms, meet, meet_all


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that holds: the proposal and, if the app was sent along, its sealed payload's reference."""

    proposal: Proposal
    statement: Statement
    app_payload: dict[str, Any] | None


def read_proposal(statement: Statement, charter: Charter) -> tuple[Proposal, dict[str, Any] | None]:
    """Read and check a signed proposal. Returns the proposal and the app's payload reference.

    Raises:
        ComityError: `NOT_A_MEMBER`, `SIGNATURE_INVALID`, `MALFORMED`.
    """
    proposer = charter.member(statement.issuer)
    verify_statement(statement, proposer.keys.statement, kind="proposal", consortium=charter.consortium)
    body = dict(statement.body)
    payload = body.pop("app_payload", None)
    if payload is not None and not isinstance(payload, dict):
        raise ComityError(ErrorCode.MALFORMED, "app_payload is a payload reference")
    proposal = Proposal.from_json(body)
    if proposal.proposer != statement.issuer or proposal.consortium != charter.consortium:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the proposer is not who signed", issuer=statement.issuer)
    return proposal, payload


def check_offer(statement: Statement, charter: Charter, me: str, now: str) -> Offer:
    """Check obligations O1 and O2. Raises what `read_proposal` raises, `FORBIDDEN`, `DEADLINE_PASSED`."""
    proposal, payload = read_proposal(statement, charter)  # O1
    if me not in proposal.asked:
        raise ComityError(ErrorCode.FORBIDDEN, "this organisation is not asked")
    if proposal.deadline <= now:  # O2
        raise ComityError(ErrorCode.DEADLINE_PASSED, "the proposal's deadline has passed", deadline=proposal.deadline)
    return Offer(proposal, statement, payload)


def check_promises(
    proposal: Proposal, terms: Terms, parties: Collection[str], charter: Charter, abilities: Abilities
) -> None:
    """Check obligation B1 before this organisation asks for, allows or signs `terms`.

    Raises:
        ComityError: `UNSUPPORTED`, `ISOLATION_TOO_WEAK`, `TERMS_CONFLICT`, `PARTICIPANTS_TOO_FEW`, naming the term.
    """
    check_purpose(terms, proposal.purpose)
    check_company(terms, parties, charter)
    abilities.check(terms)


def read_answer(statement: Statement, charter: Charter) -> Answer:
    """Read and check a signed answer. Raises `NOT_A_MEMBER`, `SIGNATURE_INVALID`, `MALFORMED`."""
    verify_statement(
        statement, charter.member(statement.issuer).keys.statement, kind="answer", consortium=charter.consortium
    )
    return Answer.from_json(statement.body)


def check_agreement(
    agreement: Agreement,
    answers: Sequence[Statement],
    *,
    charter: Charter,
    me: str,
    mine: Answer,
    signed_before: Sequence[Agreement],
    now: str,
) -> None:
    """Check obligations A1 to A6 before signing.

    Args:
        agreement: what the coordinator asks this organisation to sign.
        answers: the signed answers it rests on.
        charter: the charter in force at this node.
        mine: this organisation's own answer, from its own journal.
        signed_before: agreements that this organisation signed for the same proposal revision.
        now: the present instant.

    Raises:
        ComityError: `AGREEMENT_INVALID`, `TERMS_TOO_WEAK`, `DEADLINE_PASSED`, `SIGNATURE_INVALID`.
    """
    proposal = agreement.proposal
    if agreement.charter_digest != charter.digest or me not in agreement.parties:  # A1
        raise _invalid("it is not made under the charter in force here, or this organisation is no party")
    if mine.proposal_digest != proposal.digest or mine.decision != "allow":  # A2
        raise _invalid("this organisation did not allow that proposal")
    read = {statement.issuer: read_answer(statement, charter) for statement in answers}  # A3
    if set(read) != set(agreement.parties) or len(answers) != len(read):
        raise _invalid("it does not rest on exactly one answer of each party")
    for org, answer in read.items():
        if answer.proposal_digest != proposal.digest or answer.decision != "allow":
            raise _invalid(f"{org} did not allow that proposal")
    if read[me] != mine:
        raise _invalid("it rests on another answer than this organisation gave")
    _check_terms(agreement, read, mine)  # A4
    if proposal.deadline <= now:  # A5
        raise ComityError(ErrorCode.DEADLINE_PASSED, "the proposal's deadline has passed", deadline=proposal.deadline)
    for other in signed_before:  # A6
        if other.digest != agreement.digest and not set(agreement.parties) < set(other.parties):
            raise _invalid("this organisation signed another agreement for the same proposal")


def check_final(statement: Statement, charter: Charter) -> tuple[Agreement, QuorumCertificate]:
    """Check obligation F1 on the coordinator's `agreement` statement.

    Raises:
        ComityError: `QUORUM_MISSING`, `SIGNATURE_INVALID`, `NOT_A_MEMBER`, `MALFORMED`.
    """
    # The log signs what it enters: this very statement is then expected in the ledger.
    verify_statement(statement, charter.log_public_key, kind="agreement", consortium=charter.consortium)
    body = statement.body
    agreement = Agreement.from_json(body.get("agreement"))
    certificate = QuorumCertificate.from_json(body.get("certificate"))
    if certificate.digest != agreement.digest or set(certificate.signers) != set(agreement.parties):
        raise ComityError(ErrorCode.QUORUM_MISSING, "not every party signed this agreement")
    keys: Mapping[str, bytes] = {org: charter.member(org).keys.certificate for org in agreement.parties}
    verify_certificate(certificate, message_for("agreement", agreement.digest), keys)
    return agreement, certificate


def _check_terms(agreement: Agreement, read: Mapping[str, Answer], mine: Answer) -> None:
    asked = {org: answer.terms for org, answer in read.items()}
    # The proposal speaks for the proposer too; meet is idempotent, so speaking twice is harmless.
    proposer = agreement.proposal.proposer
    voices = {**asked, proposer: meet(agreement.proposal.terms, asked.get(proposer, agreement.proposal.terms))}
    wanted = meet_all(voices, parties=agreement.parties)
    if agreement.terms != wanted:
        raise _invalid("its terms are not the meet of all parties' terms")
    weaker = conforms(agreement.terms, mine.terms)
    if weaker:
        raise ComityError(ErrorCode.TERMS_TOO_WEAK, f"weaker than our own terms in {weaker[0]}", field=weaker[0])


def _invalid(detail: str) -> ComityError:
    return ComityError(ErrorCode.AGREEMENT_INVALID, detail)
