"""Obligation 10 of `history.py`: the evidence of agreements under `attestation: required`, from the ledger alone.

Rules:
1. right after such an agreement stands one evidence of each party, before anything is done under it;
2. each is bound to its party's statement key and to the nonce of the agreement and its answers, or, later, to a
   question that stands here, of a party to that party;
3. each chains, at the instant that its party signed it, to a root and a workload that the charter trusts (the
   agreement's; for a later question the one in force there), and shows no debugging (`evidence.check_on_record`);
4. a result's receipt names one evidence of each other party, all of which stand here before it.

A quote needs dcap-qvl; without it everything but rule 3 is checked, and the report counts the quotes that were left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.documents import Agreement
from comity_policies.evidence import (
    EVIDENCE,
    EvidenceAsk,
    EvidenceGiven,
    asked_nonce,
    check_on_record,
    required,
    signing_nonce,
)
from comity_policies.orders import receipt_of


@dataclass(slots=True)
class _Attested:
    """One agreement: what its evidence has to be bound to, who gave it, and every evidence by its digest."""

    agreement: Agreement
    charter: Charter
    nonce: bytes
    given: set[str] = field(default_factory=set)
    evidence: dict[str, str] = field(default_factory=dict)
    # Questions by digest: (who asks, whom).
    asks: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class EvidenceBook:
    """Agreements under `attestation: required` and what was shown for them so far."""

    agreements: dict[str, _Attested] = field(default_factory=dict)
    held: int = 0
    # Quotes that could not be checked again for want of the library.
    left: int = 0

    def add(self, agreement: Agreement, answers: Sequence[Statement], charter: Charter) -> None:
        """Expect evidence of a verified agreement's parties, if its terms ask for it."""
        if required(agreement.terms):
            nonce = signing_nonce(agreement.digest, (each.digest for each in answers))
            self.agreements[agreement.digest] = _Attested(agreement, charter, nonce)

    def enter(self, statement: Statement, charter: Charter) -> int:
        """Check a statement of evidence, or a question, while `charter` is in force; return how many held.

        Raises:
            ComityError: `LEDGER_INVALID`, `ATTESTATION_INVALID`, and what the documents raise.
        """
        if statement.kind == EVIDENCE:
            return self._give(statement, charter)
        self._ask(statement)
        return 0

    def check_work(self, statement: Statement) -> None:
        """Check what is done under an agreement (rules 1 and 4). Raises `LEDGER_INVALID`."""
        if not self.agreements and "evidence" not in statement.body:
            return
        if statement.kind == "receipt":
            self._check_receipt(statement)
        elif statement.kind == "ready":
            self._check_use(str(statement.body["agreement"]))

    def _ask(self, statement: Statement) -> None:
        """Note a question of one party to another. Raises `LEDGER_INVALID`."""
        ask, issuer = EvidenceAsk.from_json(statement.body), statement.issuer
        known = self._known(ask.agreement)
        if not {issuer, ask.org} <= set(known.agreement.parties) or issuer == ask.org:
            raise _broken("evidence is asked for by one party of another")
        known.asks[statement.digest] = (issuer, ask.org)

    def _give(self, statement: Statement, charter: Charter) -> int:
        """Check one evidence (rules 2 and 3); return 1. Raises `LEDGER_INVALID`, `ATTESTATION_INVALID`."""
        given, org = EvidenceGiven.from_json(statement.body), statement.issuer
        known = self._known(given.agreement)
        if org not in known.agreement.parties:
            raise _broken(f"{org} is no party of this agreement", org=org)
        if given.ask is None:
            if org in known.given:
                raise _broken(f"{org} shows two evidences for one agreement", org=org)
            self._judge(given, statement, known.charter, known.nonce)
        else:
            if known.asks.get(given.ask) != (given.asker, org):
                raise _broken(f"nobody asked {org} for this evidence", org=org)
            self._judge(given, statement, charter, asked_nonce(given.agreement, given.ask))
        if given.ask is None:
            known.given.add(org)
        known.evidence[statement.digest] = org
        self.held += 1
        return 1

    def _check_use(self, digest: str) -> None:
        """Check rule 1 on whatever is done under an agreement. Raises `LEDGER_INVALID`."""
        known = self.agreements.get(digest)
        if known is not None and known.given != set(known.agreement.parties):
            org = min(set(known.agreement.parties) - known.given)
            raise _broken(f"{org} never showed the evidence that the agreement asks for", org=org)

    def _check_receipt(self, statement: Statement) -> None:
        """Check rule 4. Raises `LEDGER_INVALID`."""
        receipt, org = receipt_of(statement), statement.issuer
        known = self.agreements.get(receipt.agreement)
        if known is None:
            if receipt.evidence is not None:
                raise _broken("evidence is named where the terms ask for none", org=org)
            return
        self._check_use(receipt.agreement)
        if receipt.outcome != "result":
            return
        shown = sorted(known.evidence.get(each, "") for each in receipt.evidence or ())
        if shown != sorted(set(known.agreement.parties) - {org}):
            raise _broken(f"{org} gave a result without evidence of every other party", org=org)

    def note(self) -> str:
        """Return what the report says of what could not be checked."""
        return f"{self.left} quotes were not checked again: that needs comity[attestation]" if self.left else ""

    def _judge(self, given: EvidenceGiven, statement: Statement, charter: Charter, nonce: bytes) -> None:
        try:
            check_on_record(given, statement, charter, nonce)
        except ComityError as error:
            if error.code is not ErrorCode.UNSUPPORTED:
                raise
            self.left += 1

    def _known(self, digest: str) -> _Attested:
        known = self.agreements.get(digest)
        if known is None:
            raise _broken("evidence is about an agreement that asks for it, and comes after it")
        return known


def _broken(detail: str, **facts: str | int) -> ComityError:
    return ComityError(ErrorCode.LEDGER_INVALID, detail, **facts)
