"""An order as it came, what the journal knows around it, and the transaction that starts it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_node.context import NodeContext
from comity_node.training import enforcement, grants, store
from comity_node.training.blobs import Blob
from comity_node.training.enforcement import History
from comity_node.training.ports import FINAL, Agreements, Stored
from comity_node.training.tables import OrderRow, RunRow
from comity_policies.documents import Agreement, OrderHeader


class Trust(Protocol):
    """Says whether work may rest on an agreement."""

    def __call__(self, conn: Connection, stored: Stored | None) -> None:
        """Raise why nothing new may be begun."""


def trusting(node: NodeContext) -> Trust:
    """Return the check that ledger, charter in force and agreement are such that work may rest on them.

    It raises `LEDGER_INVALID`, `JOURNAL_BEHIND`, `CHECKPOINT_STALE`, `NOT_FINAL`.
    """

    def trust(conn: Connection, stored: Stored | None) -> None:
        node.ledger.check(conn)
        said = None if stored is None else stored.statement
        digests = (*node.charters.statements_in_force(), *(() if said is None else (said.digest,)))
        node.ledger.check_final(conn, node.charters.current(), digests, node.clock())

    return trust


@dataclass(frozen=True, slots=True)
class Received:
    """An order with its signed form; `blob` is its content where the lead is this very node."""

    header: OrderHeader
    statement: Statement
    inline: bytes
    blob: Blob | None

    @property
    def digest(self) -> str:
        """The digest of the signed order."""
        return self.statement.digest


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal says of an order, read in one transaction."""

    row: OrderRow | None
    refusal: bytes | None
    stored: Stored | None
    history: History
    ledger: ComityError | None = None


class Intake:
    """Reads and starts orders within transactions. `trust` refuses while something an order rests on is not final."""

    def __init__(self, agreements: Agreements, trust: Trust, now: Callable[[], str]) -> None:
        """`now` gives the present as RFC 3339 text."""
        self._agreements = agreements
        self._trust = trust
        self._now = now

    def look(self, conn: Connection, order: Received) -> Known:
        """Read everything around an order in one transaction."""
        header = order.header
        try:
            stored: Stored | None = self._agreements.find(conn, header.agreement)
        except ComityError:
            stored = None
        word = enforcement.word_of(header.message_type)
        before, after, in_round, has_orders = store.around(conn, header.run, header.seq, word, header.round)
        history = History(store.spent(conn, header.agreement), not has_orders, before, after, in_round)
        return Known(
            row=store.find_order(conn, header.run, header.seq),
            refusal=store.find_refusal(conn, order.digest),
            stored=stored,
            history=history,
            ledger=self._distrust(conn, stored),
        )

    def _distrust(self, conn: Connection, stored: Stored | None) -> ComityError | None:
        try:
            self._trust(conn, stored)
        except ComityError as error:
            return error
        return None

    def charge(self, conn: Connection, order: Received, agreement: Agreement) -> None:
        """Start an order: read the grant again, charge it, and take the order's number. Raises what was missed."""
        header = order.header
        stored = self._agreements.find(conn, header.agreement)
        self._trust(conn, stored)
        if stored.state != FINAL:
            raise ComityError(ErrorCode.WITHDRAWN, agreement=header.agreement)
        run = store.find_run(conn, header.run)
        if run is not None and run.closed:
            raise ComityError(ErrorCode.RUN_CANCELLED, "the run has ended", run=header.run)
        row = store.find_order(conn, header.run, header.seq)
        if row is not None:
            if row.digest != order.digest:
                raise ComityError(ErrorCode.ORDER_REPLAYED, run=header.run, seq=header.seq)
            return
        if run is None:
            store.put_run(conn, RunRow.known(header.run, agreement, header.lead, self._now()))
        word = enforcement.word_of(header.message_type)
        *_, has_orders = store.around(conn, header.run, header.seq, word, header.round)
        spent = store.spent(conn, header.agreement)
        cost = grants.cost_of_start(word, first_of_run=not has_orders) | grants.cost_of_noise(agreement, spent)
        grants.check(agreement, spent, cost)
        store.spend(conn, header.agreement, cost)
        store.start_order(conn, OrderRow.started(header, word, order.digest, self._now()))
