"""The oracle of the fault tests: the ledger's invariants, and that negotiations and runs agree with it.

1. to 5. as in `ledger/fsck.py`;
6. a final or withdrawn agreement has its entry, its negotiation is FINALIZED with it, and no negotiation has two;
7. an open negotiation has a draft exactly while it is being signed, a terminated one none;
8. a run belongs to an agreement that was final, has the name that follows from its use, and is closed only at an end;
9. a run's counts of receipts are those of the receipts that were noted, and each of these was appended;
10. charters follow one another and have their entries, as have proposals and votes; what is open would follow the
   charter in force, and what is carried came into force.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import Connection, select

from comity_coordinator.governance import store as governance_store
from comity_coordinator.ledger import fsck as ledger_fsck
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.ledger.fsck import FINDINGS_MAX
from comity_coordinator.ledger.service import Ledger
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.negotiation.states import Phase
from comity_coordinator.training import store as training_store
from comity_coordinator.training.model import ENDINGS
from comity_crypto.statements import Statement
from comity_policies.charter import Charter
from comity_policies.charter_votes import Outcome
from comity_policies.documents import run_id

PAGE = 256


def check(conn: Connection, ledger: Ledger, log_key: bytes) -> list[str]:
    """Return what is wrong, one sentence each, at most 100; empty if all invariants hold."""
    found = ledger_fsck.check(conn, ledger, log_key)
    found.extend((*_charters(conn), *_negotiations(conn), *_runs(conn)))
    return found[:FINDINGS_MAX]


def _charters(conn: Connection) -> Iterator[str]:
    previous, version, in_force = None, 1, set[str]()
    while page := governance_store.charters_from(conn, version, PAGE):
        for data in page:
            said = Statement.from_bytes(data)
            charter = Charter.from_json(said.body["charter"])
            if charter.version != version or charter.previous != previous:
                yield f"charter {charter.version}: it does not follow from the one before"
            if not ledger_store.has(conn, said.digest):
                yield f"charter {charter.version}: it was never appended"
            previous, version = charter.digest, version + 1
            in_force.add(charter.digest)
    columns = governance_store.proposals.c
    for digest, state, data in conn.execute(select(columns.charter_digest, columns.state, columns.statement)):
        said = Statement.from_bytes(bytes(data))
        if not ledger_store.has(conn, said.digest):
            yield f"charter proposal {digest}: it was never appended"
        proposed = said.body.get("charter")
        if state == Outcome.OPEN and (not isinstance(proposed, dict) or proposed.get("previous") != previous):
            yield f"charter proposal {digest}: it is open and another charter is in force"
        if state == Outcome.CARRIED and digest not in in_force:
            yield f"charter proposal {digest}: it is carried and its charter is not in force"
    votes = governance_store.votes.c
    for org, data in conn.execute(select(votes.org, votes.statement)):
        if not ledger_store.has(conn, Statement.from_bytes(bytes(data)).digest):
            yield f"a vote of {org} was never appended"


def _negotiations(conn: Connection) -> Iterator[str]:
    after = ""
    while page := negotiation_store.listed(conn, after, PAGE, open_only=False):
        for record in page:
            negotiation = record.negotiation
            name, digest = negotiation.proposal_id, negotiation.agreement
            row = negotiation_store.agreement(conn, digest) if digest else None
            if not ledger_store.has(conn, record.statement):
                yield f"negotiation {name}: its proposal was never appended"
            signing = negotiation.phase in (Phase.SIGNING, Phase.VERIFIED)
            if signing and (row is None or row.state != negotiation_store.DRAFT):
                yield f"negotiation {name}: it is being signed and has no draft"
            if negotiation.phase is Phase.FINALIZED:
                if row is None or row.state not in (negotiation_store.FINAL, negotiation_store.WITHDRAWN):
                    yield f"negotiation {name}: it is final and its agreement is not"
                elif not ledger_store.has(conn, row.statement):
                    yield f"negotiation {name}: its agreement was never appended"
            if negotiation.phase in (Phase.ANSWERING, Phase.TERMINATED) and digest:
                yield f"negotiation {name}: it names an agreement in phase {negotiation.phase}"
        last, after = after, page[-1].negotiation.proposal_id
        if after <= last:
            yield f"negotiation {after}: its row has another name"
            break
    final = select(negotiation_store.agreements.c.proposal_id).where(
        negotiation_store.agreements.c.state.in_([negotiation_store.FINAL, negotiation_store.WITHDRAWN])
    )
    counts = Counter(row[0] for row in conn.execute(final))
    yield from (f"negotiation {name}: it led to {count} agreements" for name, count in counts.items() if count > 1)


def _runs(conn: Connection) -> Iterator[str]:
    after = ""
    while page := training_store.listed(conn, after, PAGE):
        for _, run in page:
            row = negotiation_store.agreement(conn, run.agreement)
            if row is None or row.state not in (negotiation_store.FINAL, negotiation_store.WITHDRAWN):
                yield f"run {run.run}: its agreement was never final"
            if run.run != run_id(run.agreement, run.use):
                yield f"run {run.run}: its name does not follow from its agreement and use"
            if run.closed and run.state not in ENDINGS:
                yield f"run {run.run}: it is closed and has not ended"
            if run.finished and not ledger_store.has(conn, run.finished):
                yield f"run {run.run}: its lead's statement was never appended"
            yield from _receipts(conn, run.run, dict(run.received), closed=run.closed)
        last, after = after, page[-1][1].run
        if after <= last:
            yield f"run {after}: its row has another name"
            break


def _receipts(conn: Connection, run: str, received: dict[str, int], *, closed: bool) -> Iterator[str]:
    columns = training_store.receipts.c
    noted: Counter[str] = Counter()
    for org, statement in conn.execute(select(columns.org, columns.statement).where(columns.run == run)):
        noted[org] += 1
        if not ledger_store.has(conn, statement):
            yield f"run {run}: a receipt of {org} was never appended"
    for org in sorted({*noted, *received}):
        # A receipt that came after the closing is on the ledger and counted by nobody.
        if received.get(org, 0) > noted[org] or (not closed and received.get(org, 0) != noted[org]):
            yield f"run {run}: {received.get(org, 0)} receipts of {org} are counted and {noted[org]} noted"
