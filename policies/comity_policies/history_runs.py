"""Obligations 6 and 7 of `history.py`: what was done under the agreements of a ledger export.

Runs are named by agreement and use: run id = `run-` and 26 hexadecimal characters of SHA-256(agreement digest / use).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_policies import cohorts, deletions
from comity_policies.deletions import DELETION, Deletion
from comity_policies.documents import Agreement, Answer, CounterAcceptance, Proposal, Receipt, run_id
from comity_policies.orders import receipt_of

ENDINGS = ("COMPLETED", "FAILED", "DIVERGED", "CANCELLED")


@dataclass(slots=True)
class RunBook:
    """Agreements, their runs, and what was said about them so far."""

    # By digest: who proposed what, who answered which proposal, and the answers that a proposer took by its word.
    proposers: dict[str, str] = field(default_factory=dict)
    answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    runs: dict[str, Agreement] = field(default_factory=dict)
    receipts: Counter[tuple[str, str]] = field(default_factory=Counter)
    numbers: set[tuple[str, int]] = field(default_factory=set)
    limits: dict[str, dict[str, int]] = field(default_factory=dict)
    minima: dict[str, dict[str, int]] = field(default_factory=dict)
    executed: set[tuple[str, str]] = field(default_factory=set)
    endings: dict[str, tuple[str, str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    # By party, run and order: the commitment in the result's receipt, for proofs of equality.
    committed: dict[tuple[str, str, str], str] = field(default_factory=dict)
    # Results whose party shows that enough records stand behind them, and those that only say so.
    shown: int = 0
    unshown: int = 0
    same: int = 0
    # By run and order, what its openers say of the sum.
    opened: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    @property
    def differing(self) -> list[str]:
        """Who is at odds with another opener about the sum of an order, sorted."""
        return sorted({org for said in self.opened.values() if len(set(said.values())) > 1 for org in said})

    def add(self, agreement: Agreement) -> None:
        """Note a verified agreement and the names of all its runs. Raises `AGREEMENT_INVALID` if it stands here."""
        if agreement.digest in self.agreements:
            raise ComityError(ErrorCode.AGREEMENT_INVALID, "the agreement stands here twice")
        self.agreements[agreement.digest] = agreement
        self.limits[agreement.digest] = agreement.limits
        self.minima[agreement.digest] = {org: cohorts.minimum_of(agreement, org) for org in agreement.parties}
        for use in range(1, agreement.limits["uses"] + 1):  # bounded: a proposal has at most 10,000 uses
            self.runs[run_id(agreement.digest, use)] = agreement

    def check_accepted(self, agreement: Agreement, answers: Sequence[Statement]) -> None:
        """Check that the proposer took each counter-offer, by its bounds or by its word before the agreement.

        Raises:
            ComityError: `AGREEMENT_INVALID`.
        """
        proposal = agreement.proposal
        for each in answers:
            taken = each.issuer == proposal.proposer or proposal.takes(Answer.from_json(each.body).terms)
            if not taken and each.digest not in self.accepted:
                raise ComityError(ErrorCode.AGREEMENT_INVALID, f"the proposer never took the terms of {each.issuer}")

    def enter(self, statement: Statement) -> int:
        """Check one statement; return 1 if its kind is known here, 0 if it only had to be signed.

        Raises:
            ComityError: `LEDGER_INVALID` and what the documents raise.
        """
        check = _CHECKS.get(statement.kind)
        if check is None:
            return 0
        check(self, statement)
        return 1

    def _proposal(self, statement: Statement) -> None:
        body = {key: value for key, value in statement.body.items() if key != "app_payload"}
        proposal = Proposal.from_json(body)
        if proposal.proposer != statement.issuer:
            raise _broken("a proposal is stated by its proposer")
        self.proposers[proposal.digest] = proposal.proposer

    def _answer(self, statement: Statement) -> None:
        self.answers[statement.digest] = (statement.issuer, Answer.from_json(statement.body).proposal_digest)

    def _counter_accepted(self, statement: Statement) -> None:
        taken = CounterAcceptance.from_json(statement.body)
        if self.proposers.get(taken.proposal) != statement.issuer:
            raise _broken("a counter-offer is accepted by the proposer")
        if self.answers.get(taken.answer) != (taken.org, taken.proposal):
            raise _broken("the answer that was accepted is not that organisation's", org=taken.org)
        self.accepted.add(taken.answer)

    def _deleted(self, statement: Statement) -> None:
        said, org = Deletion.from_json(statement.body), statement.issuer
        deletions.check(said, org, self._run(statement.body, org))
        if said.run not in self.closed or (said.run, org) in self.deleted:
            raise _broken(f"{org} deleted what is not closed, or twice", org=org)
        self.deleted.add((said.run, org))

    def _receipt(self, statement: Statement) -> None:
        receipt, org = receipt_of(statement), statement.issuer
        agreement = self._run(statement.body, org)
        agreement.proposal.step(receipt.step)
        limits = self.limits[agreement.digest]
        for name, spent in receipt.grants.items():
            if name in limits and spent > limits[name]:
                raise _broken(f"{org} spent more {name} than the agreement grants", org=org, spent=spent)
        check_opened(receipt, org, agreement)
        if receipt.opened is not None:
            self.opened.setdefault((receipt.run, receipt.order), {})[org] = receipt.opened
        minimum = self.minima[agreement.digest][org]
        cohorts.verify(receipt, org, minimum)
        cohorts.verify_same(receipt, org, self._before(receipt, org))
        if receipt.cohort is not None:
            self.committed[(org, receipt.run, receipt.order)] = receipt.cohort.commitment
            self.same += receipt.cohort.same is not None
        if minimum and receipt.outcome == "result":
            self.shown += receipt.cohort is not None
            self.unshown += receipt.cohort is None
        if (org, receipt.journal_seq) in self.numbers:
            raise _broken(f"{org} wrote two receipts under one number", org=org, number=receipt.journal_seq)
        self.numbers.add((org, receipt.journal_seq))
        if receipt.outcome == "result":
            if (org, receipt.order) in self.executed:
                raise _broken(f"{org} executed one order twice", org=org)
            self.executed.add((org, receipt.order))
        self.receipts[(receipt.run, org)] += 1

    def verify_independently(self, statement: Statement) -> int:
        """Check the proof in a receipt that stands here once more, with another implementation; return how many.

        Raises:
            ComityError: `CLAIM_UNPROVEN`.
        """
        receipt = receipt_of(statement)
        minimum = cohorts.minimum_of(self._agreement(receipt.agreement), statement.issuer)
        org = statement.issuer
        return cohorts.verify_independently(receipt, org, minimum, self._before(receipt, org))

    def agreement_of(self, digest: str, run: str, org: str) -> Agreement:
        """Return the agreement of a run of which `org` is a party. Raises `AGREEMENT_UNKNOWN`, `LEDGER_INVALID`."""
        return self._run({"agreement": digest, "run": run}, org)

    def _before(self, receipt: Receipt, org: str) -> str | None:
        """Return the commitment that a receipt compares its own with."""
        if receipt.cohort is None or receipt.cohort.before is None or receipt.cohort.before == receipt.order:
            return None
        return self.committed.get((org, receipt.run, receipt.cohort.before))

    def _ready(self, statement: Statement) -> None:
        self._run(statement.body, statement.issuer)

    def _withdrawal(self, statement: Statement) -> None:
        digest = statement.body.get("agreement")
        if digest is not None:
            self._party(self._agreement(digest), statement.issuer)

    def _finished(self, statement: Statement) -> None:
        agreement = self._run(statement.body, statement.issuer)
        if statement.issuer not in {step.lead for step in agreement.proposal.steps}:
            raise _broken("a run is finished by a lead")
        run, state = statement.body["run"], statement.body["state"]
        if state not in ENDINGS or run in self.endings:
            raise _broken("a run ends once, in a known state")
        self.endings[run] = (statement.digest, state)

    def _closed(self, statement: Statement) -> None:
        body = statement.body
        self._run(body, None)
        run, state = body["run"], body["state"]
        if state not in ENDINGS or run in self.closed:
            raise _broken("a run is closed once, in a known state")
        if body["finished"] is None:
            if state == "COMPLETED":
                raise _broken("a completed run rests on its lead's statement")
        elif self.endings.get(run) != (body["finished"], state):
            raise _broken("a run is closed as its lead finished it")
        for org, count in body["receipts"].items():
            if self.receipts[(run, org)] < count:
                raise _broken(f"receipts of {org} are missing", org=org, counted=count)
        self.closed.add(run)

    def _run(self, body: dict[str, Any], org: str | None) -> Agreement:
        """Return the agreement of the run that `body` names; `org`, if any, must be a party of it."""
        agreement = self._agreement(body["agreement"])
        if self.runs.get(body["run"]) is not agreement:
            raise _broken("the run is none of this agreement's")
        if org is not None:
            self._party(agreement, org)
        return agreement

    def _agreement(self, digest: str) -> Agreement:
        agreement = self.agreements.get(digest)
        if agreement is None:
            raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "it rests on an unknown agreement")
        return agreement

    def _party(self, agreement: Agreement, org: str) -> None:
        if org not in agreement.parties:
            raise _broken(f"{org} is no party of this agreement", org=org)


_CHECKS: dict[str, Callable[[RunBook, Statement], None]] = {
    "proposal": RunBook._proposal,
    "answer": RunBook._answer,
    "counter-acceptance": RunBook._counter_accepted,
    "receipt": RunBook._receipt,
    "ready": RunBook._ready,
    "withdrawal": RunBook._withdrawal,
    "run-finished": RunBook._finished,
    "run-closed": RunBook._closed,
    DELETION: RunBook._deleted,
}


def check_opened(receipt: Receipt, org: str, agreement: Agreement) -> None:
    """Refuse a receipt for an opened sum of somebody who opens none by the agreement. Raises `FORBIDDEN`."""
    if receipt.opened is not None and org not in agreement.proposal.step(receipt.step).openers:
        raise ComityError(ErrorCode.FORBIDDEN, f"{org} opens no sums of this agreement", org=org)


def _broken(detail: str, **facts: str | int) -> ComityError:
    return ComityError(ErrorCode.LEDGER_INVALID, detail, **facts)
