"""What makes a receipt fit for the ledger: the rules by which an auditor will judge it years later.

The same rules as obligation 6 of `comity_policies.history`: a receipt that an export could not be verified with never
gets in, so that no party can spoil the record of the others.
"""

from __future__ import annotations

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.attestation import service as evidence
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.training import store
from comity_coordinator.training.model import Run
from comity_coordinator.training.totals import agreement_of
from comity_crypto.statements import Statement
from comity_policies import cohorts, sums
from comity_policies.documents import Receipt
from comity_policies.history_runs import check_opened

# A party that floods the ledger is stopped; a run of 10,000 rounds with train and evaluate stays well below.
RECEIPTS_PER_PARTY_MAX = 100_000


def enter_receipt(conn: Connection, run: Run, org: str, receipt: Receipt, digest: str) -> bool:
    """Note a receipt of `org` whose signature holds; `digest` is that of its statement.

    Returns:
        False if this very receipt was noted before, which changes nothing.

    Raises:
        ComityError: `AGREEMENT_UNKNOWN`, `NOT_A_MEMBER`, `ORDER_MISMATCH` if it does not belong to the run;
            `GRANT_EXHAUSTED` beyond the agreement; `CONFLICT` for a number and `ORDER_REPLAYED` for an order that has
            another receipt; `TOO_LARGE` for too many; `CLAIM_UNPROVEN` for a proof that does not hold (about 4 ms);
            `FORBIDDEN` for a sum that it does not open by the agreement; `ATTESTATION_MISSING` for a result without
            the evidence that the agreement asks for.
    """
    _check_place(run, org, receipt)
    known = store.receipt_numbered(conn, org, receipt.journal_seq)
    if known == digest:
        return False
    if known is not None:
        raise ComityError(ErrorCode.CONFLICT, "another receipt has this number", number=receipt.journal_seq)
    if run.received.get(org, 0) >= RECEIPTS_PER_PARTY_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "too many receipts for one run", limit=RECEIPTS_PER_PARTY_MAX)
    if receipt.opened is not None:
        check_opened(receipt, org, agreement_of(conn, run))
    if receipt.cohort is not None:
        cohorts.verify(receipt, org, cohorts.minimum_of(agreement_of(conn, run), org))
        cohorts.verify_same(receipt, org, _before(conn, run, org, receipt))
    if receipt.weight is not None:
        sums.check_weight(receipt, agreement_of(conn, run))
    executed = receipt.outcome == "result"
    evidence.check_receipt(conn, run.agreement, org, receipt.evidence, result=executed)
    if executed and store.is_executed(conn, org, receipt.order):
        raise ComityError(ErrorCode.ORDER_REPLAYED, "this order was executed before")
    store.put_receipt(conn, org, receipt.journal_seq, run.run, receipt.order if executed else digest, digest)
    return True


def _check_place(run: Run, org: str, receipt: Receipt) -> None:
    """Check that a receipt belongs to the run and spends no more than it grants."""
    if receipt.agreement != run.agreement:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "the run belongs to another agreement")
    if org not in run.parties:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is no party of this run")
    if receipt.step not in run.steps:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "the agreement has no such step")
    for name, spent in sorted(receipt.grants.items()):
        if spent > run.limits.get(name, spent):
            raise ComityError(ErrorCode.GRANT_EXHAUSTED, f"more {name} than the agreement grants", spent=spent)


def _before(conn: Connection, run: Run, org: str, receipt: Receipt) -> str | None:
    """Return the commitment that a receipt compares its own with: that of an earlier result of its run."""
    if receipt.cohort is None or receipt.cohort.before in (None, receipt.order):
        return None
    digest = store.receipt_of_order(conn, org, run.run, str(receipt.cohort.before))
    content = None if digest is None else ledger_store.content(conn, digest)
    if content is None:
        return None
    earlier = Receipt.from_json(Statement.from_bytes(content).body)
    return None if earlier.cohort is None else earlier.cohort.commitment
