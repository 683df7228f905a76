"""Bringing a restored log forward: entries that came after the backup, from a member's or an auditor's export.

Rules
1. The whole export is verified from the genesis name on, and must begin with the very entries of the backup: what
   differs is a fork and is refused.
2. What was waiting in the backup is put behind: statements that the export has take the places that it gives them.
3. Charters, proposals and votes on them, receipts, closed runs and agreements are brought forward with their entries.
   What was said in private since (answers, signatures under drafts, messages) is not in an export and is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.backup import store
from comity_coordinator.governance import adoption
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.negotiation.states import Phase
from comity_coordinator.training import store as training_store
from comity_coordinator.training.model import RunState
from comity_crypto.statements import Statement
from comity_policies.documents import Agreement, Receipt
from comity_policies.history import Report

HOLDER = "restore"


@dataclass(frozen=True, slots=True)
class Added:
    """How many entries came from the export, and how many statements wait behind them."""

    entries: int
    waiting: int


def add(conn: Connection, ledger: Ledger, export: Path, report: Report, tell: Callable[[str], None]) -> Added:
    """Add what a verified export has beyond the log in the database of `conn`.

    Raises:
        ComityError: `LEDGER_INVALID` if the two logs differ.
    """
    head = ledger_store.newest_checkpoint(conn)
    had = head.size if head else 0
    if report.size <= had:
        tell(f"the export ends at {report.size}, the backup at {had}: nothing is missing that the export has")
        _compare(conn, export, report.size)
        return Added(0, 0)
    waiting = store.take_pending(conn)
    index = 0
    for page in adoption.pages(export):
        new = [said for at, said in enumerate(page, index) if at >= had]
        _check_same(conn, index, page[: len(page) - len(new)])
        index += len(page)
        if not new:
            continue
        for said in new:
            if waiting.pop(said.digest, None) is not None:
                ledger.append(conn, said)  # what follows from it is in the backup
                continue
            adoption.take(conn, ledger, [said])
            _bring_forward(conn, said)
        while ledger.integrate(conn, HOLDER):
            pass  # bounded by the page
        tell(f"entries: {index} of {report.size}")
    after = ledger_store.newest_checkpoint(conn)
    if after is None or (after.size, after.root.hex()) != (report.size, report.root):
        raise ComityError(ErrorCode.LEDGER_INVALID, "the entries do not lead to the export's root", size=report.size)
    for said, recipients in waiting.values():
        ledger.append(conn, said, recipients)
    ledger_store.release_lease(conn, HOLDER)
    return Added(report.size - had, len(waiting))


def _compare(conn: Connection, export: Path, size: int) -> None:
    index = 0
    for page in adoption.pages(export):
        _check_same(conn, index, page)
        index += len(page)
    assert index == size, "a verified export has as many entries as it says"


def _check_same(conn: Connection, index: int, page: list[Statement]) -> None:
    have = [row[1] for row in ledger_store.page(conn, index, index + len(page))]
    for at, said in enumerate(page):
        if at >= len(have) or have[at] != said.digest:
            raise ComityError(
                ErrorCode.LEDGER_INVALID, "the export has another entry than the backup: a fork", index=index + at
            )


def _bring_forward(conn: Connection, said: Statement) -> None:
    """Let the tables of runs and agreements follow an entry that they did not know."""
    now = instants.now_text()
    if said.kind == "agreement":
        _agreed(conn, said, now)
    elif said.kind == "withdrawal" and said.body.get("agreement"):
        row = negotiation_store.agreement(conn, str(said.body["agreement"]))
        if row is not None and row.state == negotiation_store.FINAL:
            negotiation_store.set_agreement(conn, row.digest, negotiation_store.WITHDRAWN, now)
    elif said.kind == "receipt":
        receipt = Receipt.from_json(said.body)
        run = training_store.get(conn, receipt.run)
        if run is not None:
            received = {**run.received, said.issuer: run.received.get(said.issuer, 0) + 1}
            training_store.save(conn, replace(run, received=received))
    elif said.kind == "run-closed":
        run = training_store.get(conn, str(said.body["run"]))
        if run is not None:
            state = RunState(said.body["state"])
            training_store.save(conn, replace(run, state=state, closed=True, finished=said.body["finished"] or ""))


def _agreed(conn: Connection, said: Statement, now: str) -> None:
    agreement = Agreement.from_json(said.body["agreement"])
    record = negotiation_store.by_id(conn, agreement.proposal.proposal_id)
    if record is None:
        return
    if negotiation_store.agreement(conn, agreement.digest) is None:
        document = canonical.canonical(agreement.to_json()).decode()
        negotiation_store.put_agreement(conn, agreement.digest, agreement.proposal.proposal_id, document, now)
    negotiation_store.set_agreement(conn, agreement.digest, negotiation_store.FINAL, now, statement=said.digest)
    ended = replace(record.negotiation, phase=Phase.FINALIZED, agreement=agreement.digest)
    negotiation_store.save(conn, replace(record, negotiation=ended))
