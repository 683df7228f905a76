"""What makes a lead's statement on a sum fit for the ledger: the rules of obligation 11 (`comity_policies.sums`)."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.training import store
from comity_coordinator.training.model import Run
from comity_crypto.statements import Statement
from comity_policies import sums
from comity_policies.documents import Agreement, Receipt
from comity_policies.orders import SumProof

PER_BATCH_MAX = 64


def enter_sum(conn: Connection, run: Run, org: str, said: SumProof, digest: str) -> bool:
    """Note a statement of `org` whose signature holds, if it does against the receipts that are here.

    Returns:
        False if this very statement, whose digest is `digest`, was noted before, which changes nothing.

    Raises:
        ComityError: `NOT_A_MEMBER`, `ORDER_REPLAYED` and what `sums.check` raises.
    """
    if org not in run.parties:
        raise ComityError(ErrorCode.NOT_A_MEMBER, f"{org} is no party of this run")
    if ledger_store.has(conn, digest):
        return False
    sums.check_next(said, run.proved)
    found = {each: _receipt(conn, run, each, said.order) for each in run.parties}
    known = {each: receipt for each, receipt in found.items() if receipt is not None}
    sums.check(said, org, agreement_of(conn, run), known)
    store.save(conn, replace(run, proved=said.seq))
    return True


def agreement_of(conn: Connection, run: Run) -> Agreement:
    """Return a run's agreement. Raises `AGREEMENT_UNKNOWN`."""
    row = negotiation_store.agreement(conn, run.agreement)
    if row is None:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "the run's agreement is not here")
    return negotiation_store.read_agreement(row.document)


def _receipt(conn: Connection, run: Run, org: str, order: str) -> Receipt | None:
    digest = store.receipt_of_order(conn, org, run.run, order)
    content = None if digest is None else ledger_store.content(conn, digest)
    return None if content is None else Receipt.from_json(Statement.from_bytes(content).body)
