"""`comity node recover`: go on with a journal that was restored from a backup, at the price of every open grant.

What happened between the backup and now is unknown here: orders that ran, agreements that were signed, keys that were
used. So, in one transaction:
1. every agreement of ours is booked as used up, and every open run as ended;
2. every key and part of a sum under way is dropped;
3. receipts are numbered on from the newest one that the ledger has, and the stream from where it stands;
4. proposals made before this moment are not answered or signed any more: their agreements may be spent already.
Data, policies, keys of the organisation, results and the record of what is known stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from sqlalchemy import Connection

from comity.v1 import ledger_pb2
from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.keystore import FileKeyStore
from comity_crypto.statements import Statement, key_id, verify_statement
from comity_node import journal as journals
from comity_node.governance.store import CharterStore
from comity_node.journal import Journal
from comity_node.ledger.store import LedgerStore
from comity_node.settings import NodeSettings
from comity_node.transport.dial import Dialer, ask
from comity_policies.documents import Receipt

# Whoever defines tables of the journal; they have to exist before they are written.
TABLES = (
    "governance.store",
    "ledger.store",
    "negotiation.store",
    "retention.store",
    "reviews.store",
    "training.profiles.sum_store",
    "training.profiles.threshold_store",
    "training.tables",
    "transport.store",
)


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many agreements were booked as used up, how many runs ended, and the last receipt number given away."""

    agreements: int
    runs: int
    receipt: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What others know of this node: its newest receipt's number, and how far the stream has come both ways."""

    receipt: int
    received_seq: int
    acked_seq: int


async def recover(settings: NodeSettings) -> Recovered:
    """Do it; the node must not run.

    Raises:
        ComityError: `UNAVAILABLE` if the coordinator cannot be asked, `SIGNATURE_INVALID` if it shows a receipt that is
            not ours, `JOURNAL_UNWRITABLE`.
    """
    keystore = FileKeyStore(settings.keys_folder)
    dialer = Dialer(settings.coordinator, keystore)
    try:
        found = await ask(dialer.ledger().GetStanding, ledger_pb2.GetStandingRequest())
    finally:
        await dialer.close()
    for name in TABLES:
        import_module(f"comity_node.{name}")
    journal = Journal.open(settings.journal_file)
    try:
        journal.create_all()
        charters = CharterStore(settings, journal)
        charters.load()
        ours = {keystore.load().public.statement, *charters.statement_keys(settings.org)}
        remembered = Remembered(_number(found.receipt, settings, ours), found.received_seq, found.acked_seq)
        now = instants.now_text()
        return journal.transact(lambda conn: book(conn, remembered, now))
    finally:
        journal.close()


def _number(receipt: bytes, settings: NodeSettings, ours: set[bytes]) -> int:
    """Return the number of a receipt that one of our statement keys, past or present, signed; 0 for no receipt."""
    if not receipt:
        return 0
    statement = Statement.from_bytes(receipt)
    key = next((key for key in ours if key_id(key) == statement.key_id), None)
    if statement.issuer != settings.org or key is None:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the receipt is not ours")
    verify_statement(statement, key, kind="receipt", consortium=settings.consortium)
    return Receipt.from_json(statement.body).journal_seq


def book(conn: Connection, remembered: Remembered, now: str) -> Recovered:
    """Book everything that is open as spent and go on from what others remember, in the transaction of `conn`."""
    from comity_node.negotiation import store as negotiation
    from comity_node.reviews import store as reviews
    from comity_node.training import grants
    from comity_node.training import store as training
    from comity_node.training.profiles import sum_store, threshold_store
    from comity_node.transport import store as transport

    held = list(negotiation.every_agreement(conn))
    for agreement in held:
        training.spend_all(conn, agreement.digest, grants.limits(agreement))
    runs = training.end_all(conn, now, ComityError(ErrorCode.JOURNAL_BEHIND, "the node was recovered from a backup"))
    sum_store.forget_all(conn)
    threshold_store.forget_all(conn)
    reviews.end_with_runs(conn, "the node was recovered from a backup", now)
    number = max(remembered.receipt, training.next_receipt_no(conn) - 1)
    journals.set_mark(conn, training.RECEIPT_FLOOR, str(number))
    transport.skip_to(conn, remembered.received_seq, remembered.acked_seq)
    LedgerStore().recovered(conn, now)
    return Recovered(len(held), runs, number)
