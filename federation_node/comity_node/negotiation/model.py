"""What a node checks before it answers an offer and before it signs an agreement: pure functions.

The coordinator may be lying about everything but the other organisations' signatures. Obligations, in this order:

Offer     O1 the proposal is signed by a member, in this consortium, and this organisation is asked
          O2 its deadline lies ahead
Agreement A1 it belongs to the charter in force here, and this organisation is a party
          A2 it holds exactly a proposal revision that this organisation answered with `allow`
          A3 every party's answer is there, signed by that party, for this proposal, and allows it
          A4 the agreement's terms are the meet of the proposal's and all answers'; at least as strict as our own
          A5 the deadline has not passed by more than the time in which signatures are given
          A6 nothing else was signed for this proposal under this charter, unless with more parties
          A7 if this organisation proposed: every stricter term is within the proposal's bounds or was accepted here
          A8 no newer revision of the proposal is known here
Both      B1 its terms permit its purpose, its parties are enough and independent enough, and this node can enforce
             every term: what nobody here enforces is refused by name instead of promised
Final     F1 every party signed the digest, by one certificate over the charter's keys
          F2 no other agreement of the same proposal is final here
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate, message_for, verify_certificate
from comity_crypto.statements import Statement, verify_statement
from comity_node.abilities import Abilities, check_company, check_purpose, check_sight
from comity_policies.charter import Charter
from comity_policies.documents import SIGNING_S, SIGNING_S_MAX, Agreement, Answer, Proposal
from comity_policies.evidence import check_attestable
from comity_policies.terms import Terms, conforms, meet, meet_all

# A word that leaves a node this long before an instant is judged by the coordinator before it.
MARGIN_S = 3


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
    offer = read_offer(statement, charter)  # O1
    proposal = offer.proposal
    if me not in proposal.asked:
        raise ComityError(ErrorCode.FORBIDDEN, "this organisation is not asked")
    if proposal.deadline <= now:  # O2
        raise ComityError(ErrorCode.DEADLINE_PASSED, "the proposal's deadline has passed", deadline=proposal.deadline)
    return offer


def read_offer(statement: Statement, charter: Charter) -> Offer:
    """Read an offer that was checked when it came. Raises what `read_proposal` raises."""
    proposal, payload = read_proposal(statement, charter)
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
    check_sight(terms, proposal.required)  # an optional party may still be left out; A4 looks at those who stay
    check_attestable(terms, charter)
    abilities.check(terms, proposal.steps)


def read_answer(statement: Statement, charter: Charter) -> Answer:
    """Read and check a signed answer. Raises `NOT_A_MEMBER`, `SIGNATURE_INVALID`, `MALFORMED`."""
    verify_statement(
        statement, charter.member(statement.issuer).keys.statement, kind="answer", consortium=charter.consortium
    )
    return Answer.from_checked(statement.body)


def check_agreement(
    agreement: Agreement,
    answers: Sequence[Statement],
    *,
    charter: Charter,
    me: str,
    mine: Answer,
    signed_before: Sequence[Agreement],
    now: str,
    accepted: Collection[str] = (),
    newest_revision: int = 0,
) -> None:
    """Check obligations A1 to A8 before signing.

    Args:
        agreement: what the coordinator asks this organisation to sign.
        answers: the signed answers it rests on.
        charter: the charter in force at this node.
        mine: this organisation's own answer, from its own journal.
        signed_before: agreements that this organisation signed for the same proposal revision.
        now: the present instant.
        accepted: digests of the answers whose stricter terms this organisation accepted as the proposer.
        newest_revision: the highest revision of the proposal known here.

    Raises:
        ComityError: `AGREEMENT_INVALID`, `TERMS_TOO_WEAK`, `DEADLINE_PASSED`, `SIGNATURE_INVALID`, `SUPERSEDED`.
    """
    proposal = agreement.proposal
    if proposal.revision < newest_revision:  # A8
        raise ComityError(ErrorCode.SUPERSEDED, "a newer revision is known here", revision=newest_revision)
    if agreement.charter_digest != charter.digest or me not in agreement.parties:  # A1
        raise _invalid("it is not made under the charter in force here, or this organisation is no party")
    if mine.proposal_digest != proposal.digest or mine.decision != "allow":  # A2
        raise _invalid("this organisation did not allow that proposal")
    read = _check_answers(agreement, answers, charter)  # A3
    if read[me] != mine:
        raise _invalid("it rests on another answer than this organisation gave")
    _check_terms(agreement, read, mine)  # A4
    if signing_ends(proposal.deadline) <= now:  # A5
        raise ComityError(ErrorCode.DEADLINE_PASSED, "the proposal's deadline has passed", deadline=proposal.deadline)
    for other in signed_before:  # A6
        smaller = set(agreement.parties) < set(other.parties)
        if other.digest != agreement.digest and not smaller and other.charter_digest == agreement.charter_digest:
            raise _invalid("this organisation signed another agreement for the same proposal")
    if me == proposal.proposer:  # A7
        _check_accepted(proposal, answers, read, accepted)


def signing_ends(deadline: str) -> str:
    """Return until when an agreement on a proposal with this deadline is signed here."""
    return instants.to_text(instants.parse(deadline) + timedelta(seconds=SIGNING_S_MAX))


def people_end(deadline: str, now: str) -> str:
    """Return until when people here may decide on an agreement: the coordinator waits a little longer."""
    window = instants.to_text(instants.parse(now) + timedelta(seconds=SIGNING_S))
    last = min(max(deadline, window), signing_ends(deadline))
    return before(last)


def before(instant: str) -> str:
    """Return the last instant at which a word of ours still arrives before `instant`."""
    return instants.to_text(instants.parse(instant) - timedelta(seconds=MARGIN_S))


def check_counter(statement: Statement, proposal: Proposal, charter: Charter) -> Answer:
    """Check a counter-offer to our own proposal: signed by an organisation that is asked, for this very revision.

    Raises:
        ComityError: `NOT_A_MEMBER`, `SIGNATURE_INVALID`, `MALFORMED`, `FORBIDDEN`.
    """
    answer = read_answer(statement, charter)
    if statement.issuer not in proposal.asked or answer.proposal_digest != proposal.digest:
        raise ComityError(ErrorCode.FORBIDDEN, "no answer of an organisation that this proposal asks")
    if answer.decision != "allow":
        raise ComityError(ErrorCode.FORBIDDEN, "only an organisation that allows makes a counter-offer")
    return answer


def read_agreement(value: Any) -> Agreement:
    """Read an agreement as the coordinator sends it: once to sign, once as final. Raises `MALFORMED`."""
    return _agreement_of(canonical.canonical(value))


@lru_cache(maxsize=16)
def _agreement_of(data: bytes) -> Agreement:
    return Agreement.from_json(canonical.read(data))


def check_final(statement: Statement, charter: Charter) -> tuple[Agreement, QuorumCertificate]:
    """Check obligation F1 on the coordinator's `agreement` statement.

    Raises:
        ComityError: `QUORUM_MISSING`, `SIGNATURE_INVALID`, `NOT_A_MEMBER`, `MALFORMED`.
    """
    # The log signs what it enters: this very statement is then expected in the ledger.
    verify_statement(statement, charter.log_public_key, kind="agreement", consortium=charter.consortium)
    body = statement.body
    agreement = read_agreement(body.get("agreement"))
    certificate = QuorumCertificate.from_json(body.get("certificate"))
    if certificate.digest != agreement.digest or set(certificate.signers) != set(agreement.parties):
        raise ComityError(ErrorCode.QUORUM_MISSING, "not every party signed this agreement")
    keys: Mapping[str, bytes] = {org: charter.member(org).keys.certificate for org in agreement.parties}
    verify_certificate(certificate, message_for("agreement", agreement.digest), keys)
    return agreement, certificate


def _check_answers(agreement: Agreement, answers: Sequence[Statement], charter: Charter) -> dict[str, Answer]:
    read = {statement.issuer: read_answer(statement, charter) for statement in answers}
    if set(read) != set(agreement.parties) or len(answers) != len(read):
        raise _invalid("it does not rest on exactly one answer of each party")
    for org, answer in read.items():
        if answer.proposal_digest != agreement.proposal.digest or answer.decision != "allow":
            raise _invalid(f"{org} did not allow that proposal")
    return read


def _check_accepted(
    proposal: Proposal, answers: Sequence[Statement], read: Mapping[str, Answer], accepted: Collection[str]
) -> None:
    for statement in answers:
        org = statement.issuer
        taken = org == proposal.proposer or proposal.takes(read[org].terms)
        if not taken and statement.digest not in accepted:
            raise _invalid(f"nobody here accepted the counter-offer of {org}")


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
