"""The tables of negotiation. Statements themselves stand in the ledger's table, once; here are states and digests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from comity.wire import canonical
from comity_coordinator.db import awaited, catch_up, metadata, put_off
from comity_coordinator.negotiation import states
from comity_coordinator.negotiation.states import OPEN, Negotiation, Phase
from comity_policies.documents import Agreement

negotiations = Table(
    "negotiations",
    metadata,
    Column("proposal_id", String(128), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("proposal_digest", String(64), nullable=False, unique=True),
    Column("statement", String(64), nullable=False),
    Column("proposer", String(63), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("until", String(20), nullable=False),
    Column("opened_at", String(20), nullable=False),
    Column("document", Text, nullable=False),
    Column("told", Boolean, nullable=False),  # whether the nodes concerned were sent this state
    Index("negotiations_phase", "phase", "until"),
    Index("negotiations_told", "told", "proposal_id"),
    Index("negotiations_opened", "opened_at", "proposal_id"),
)
# Revisions that a newer one has taken the place of, each as it ended.
revisions = Table(
    "negotiation_revisions",
    metadata,
    Column("proposal_digest", String(64), primary_key=True),
    Column("proposal_id", String(128), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("statement", String(64), nullable=False),
    Column("opened_at", String(20), nullable=False),
    Column("document", Text, nullable=False),
    Index("negotiation_revisions_proposal", "proposal_id", "revision"),
)
agreements = Table(
    "negotiation_agreements",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("proposal_id", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("document", Text, nullable=False),
    Column("statement", String(64), nullable=False),
    Column("changed_at", String(20), nullable=False),
    Column("withdrawal", Text, nullable=False),
    Index("negotiation_agreements_proposal", "proposal_id"),
)
signatures = Table(
    "negotiation_signatures",
    metadata,
    Column("agreement", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("signature", LargeBinary(96), nullable=False),
)

_KIND = "negotiation"
REVISIONS_SHOWN_MAX = 50
READ_KEPT = 64
DRAFT, FINAL, WITHDRAWN, VOID = "draft", "final", "withdrawn", "void"


@dataclass(frozen=True, slots=True)
class Record:
    """A negotiation as it is kept: `statement` is the digest of the proposal's statement."""

    negotiation: Negotiation
    proposal_digest: str
    statement: str
    opened_at: str


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """An agreement: `document` is its canonical JSON, `statement` the digest of its ledger entry, empty before that."""

    digest: str
    proposal_id: str
    state: str
    document: str
    statement: str
    withdrawal: str


_PAST = (revisions.c.document, revisions.c.proposal_digest, revisions.c.statement, revisions.c.opened_at)
_COLUMNS = (negotiations.c.document, negotiations.c.proposal_digest, negotiations.c.statement, negotiations.c.opened_at)


class _Read:
    """Negotiations by their documents, as they were written or read last: with fifty legs reading costs milliseconds.

    What a document says depends on nothing else, so a stale or foreign entry cannot be found by it.
    """

    def __init__(self) -> None:
        self._by_text: OrderedDict[str, Negotiation] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, document: str) -> Negotiation:
        with self._lock:
            known = self._by_text.get(document)
        if known is None:
            known = states.from_json(canonical.parse(document.encode()))
            self.keep(document, known)
        return known

    def keep(self, document: str, negotiation: Negotiation) -> None:
        with self._lock:
            self._by_text[document] = negotiation
            while len(self._by_text) > READ_KEPT:
                self._by_text.popitem(last=False)


_READ = _Read()


def _record(document: str, proposal_digest: str, statement: str, opened_at: str) -> Record:
    return Record(_READ.read(document), proposal_digest, statement, opened_at)


def _text(negotiation: Negotiation) -> str:
    document = canonical.canonical(states.to_json(negotiation)).decode()
    _READ.keep(document, negotiation)
    return document


def create(conn: Connection, record: Record) -> None:
    """Write a new negotiation."""
    negotiation = record.negotiation
    conn.execute(
        insert(negotiations).values(
            proposal_id=negotiation.proposal_id,
            revision=negotiation.revision,
            proposal_digest=record.proposal_digest,
            statement=record.statement,
            proposer=negotiation.proposer,
            phase=str(negotiation.phase),
            until=negotiation.until,
            opened_at=record.opened_at,
            document=_text(negotiation),
            told=False,
        )
    )


def supersede(conn: Connection, record: Record) -> None:
    """Put a revision as it ended behind a newer one, which takes its row."""
    catch_up(conn)
    negotiation = record.negotiation
    conn.execute(delete(negotiations).where(negotiations.c.proposal_id == negotiation.proposal_id))
    conn.execute(
        insert(revisions).values(
            proposal_digest=record.proposal_digest,
            proposal_id=negotiation.proposal_id,
            revision=negotiation.revision,
            statement=record.statement,
            opened_at=record.opened_at,
            document=_text(negotiation),
        )
    )


def superseded(conn: Connection, proposal_id: str) -> list[Record]:
    """Return the earlier revisions of a proposal, the newest `REVISIONS_SHOWN_MAX` of them, oldest first."""
    query = select(*_PAST).where(revisions.c.proposal_id == proposal_id)
    rows = conn.execute(query.order_by(revisions.c.revision.desc()).limit(REVISIONS_SHOWN_MAX)).all()
    return [_record(*row) for row in reversed(rows)]


def save(conn: Connection, record: Record) -> None:
    """Keep a negotiation's new state: fifty answers that are taken in one transaction are one writing of it."""
    put_off(conn, (_KIND, record.negotiation.proposal_id), record, lambda conn: _write(conn, record.negotiation))


def _unwritten(conn: Connection) -> list[Record]:
    return awaited(conn, _KIND)


def _write(conn: Connection, negotiation: Negotiation) -> None:
    conn.execute(
        update(negotiations)
        .where(negotiations.c.proposal_id == negotiation.proposal_id)
        .values(phase=str(negotiation.phase), until=negotiation.until, document=_text(negotiation), told=False)
    )


def untold(conn: Connection, limit: int) -> list[Negotiation]:
    """Return negotiations whose state the nodes concerned were not sent yet."""
    catch_up(conn)
    query = select(negotiations.c.document).where(negotiations.c.told.is_(False))
    rows = conn.execute(query.order_by(negotiations.c.proposal_id).limit(limit)).scalars()
    return [_READ.read(document) for document in rows]


def set_told(conn: Connection, proposal_id: str, revision: int) -> None:
    """Note that the nodes concerned were sent a negotiation's state."""
    catch_up(conn)
    this = (negotiations.c.proposal_id == proposal_id, negotiations.c.revision == revision)
    conn.execute(update(negotiations).where(*this).values(told=True))


def by_id(conn: Connection, proposal_id: str) -> Record | None:
    """Return the negotiation of a proposal."""
    for record in _unwritten(conn):
        if record.negotiation.proposal_id == proposal_id:
            return record
    row = conn.execute(select(*_COLUMNS).where(negotiations.c.proposal_id == proposal_id)).first()
    return None if row is None else _record(*row)


def by_proposal_digest(conn: Connection, digest: str) -> Record | None:
    """Return the negotiation of the proposal revision with this digest, also of one that was superseded."""
    for record in _unwritten(conn):
        if record.proposal_digest == digest:
            return record
    row = conn.execute(select(*_COLUMNS).where(negotiations.c.proposal_digest == digest)).first()
    if row is None:
        row = conn.execute(select(*_PAST).where(revisions.c.proposal_digest == digest)).first()
    return None if row is None else _record(*row)


def listed(conn: Connection, after: str, limit: int, open_only: bool) -> list[Record]:
    """Return negotiations in the order of their ids, those after `after`."""
    catch_up(conn)
    query = select(*_COLUMNS).where(negotiations.c.proposal_id > after)
    if open_only:
        query = query.where(negotiations.c.phase.in_([str(phase) for phase in OPEN]))
    return [_record(*row) for row in conn.execute(query.order_by(negotiations.c.proposal_id).limit(limit))]


def in_phase(conn: Connection, phase: Phase) -> list[Record]:
    """Return all negotiations in `phase`."""
    catch_up(conn)
    query = select(*_COLUMNS).where(negotiations.c.phase == str(phase)).order_by(negotiations.c.proposal_id)
    return [_record(*row) for row in conn.execute(query)]


def open_until(conn: Connection) -> list[tuple[str, int, str]]:
    """Return (proposal id, revision, deadline) of all open negotiations."""
    catch_up(conn)
    query = select(negotiations.c.proposal_id, negotiations.c.revision, negotiations.c.until).where(
        negotiations.c.phase.in_([str(phase) for phase in OPEN])
    )
    return [(row[0], row[1], row[2]) for row in conn.execute(query)]


def open_count(conn: Connection, proposer: str, limit: int) -> int:
    """Return how many negotiations `proposer` has open, counted up to `limit`."""
    catch_up(conn)
    query = select(negotiations.c.proposal_id).where(
        negotiations.c.proposer == proposer, negotiations.c.phase.in_([str(phase) for phase in OPEN])
    )
    return len(conn.execute(query.limit(limit)).all())


def void_drafts(conn: Connection, proposal_id: str, now: str) -> None:
    """Drafts of the proposal and their signatures count no more."""
    old = select(agreements.c.digest).where(agreements.c.proposal_id == proposal_id, agreements.c.state == DRAFT)
    stale = [row[0] for row in conn.execute(old)]
    if stale:
        conn.execute(update(agreements).where(agreements.c.digest.in_(stale)).values(state=VOID, changed_at=now))
        conn.execute(delete(signatures).where(signatures.c.agreement.in_(stale)))


def put_agreement(conn: Connection, digest: str, proposal_id: str, document: str, now: str) -> None:
    """Write a draft; earlier drafts of the proposal are void."""
    void_drafts(conn, proposal_id, now)
    conn.execute(
        insert(agreements).values(
            digest=digest,
            proposal_id=proposal_id,
            state=DRAFT,
            document=document,
            statement="",
            changed_at=now,
            withdrawal="",
        )
    )


def set_agreement(
    conn: Connection, digest: str, state: str, now: str, *, statement: str = "", withdrawal: str = ""
) -> None:
    """Write an agreement's new state."""
    values: dict[str, str] = {"state": state, "changed_at": now}
    if statement:
        values["statement"] = statement
    if withdrawal:
        values["withdrawal"] = withdrawal
    conn.execute(update(agreements).where(agreements.c.digest == digest).values(**values))


def agreement(conn: Connection, digest: str) -> AgreementRow | None:
    """Return an agreement."""
    row = conn.execute(
        select(
            agreements.c.digest,
            agreements.c.proposal_id,
            agreements.c.state,
            agreements.c.document,
            agreements.c.statement,
            agreements.c.withdrawal,
        ).where(agreements.c.digest == digest)
    ).first()
    return None if row is None else AgreementRow(*row)


@lru_cache(maxsize=32)
def read_agreement(document: str) -> Agreement:
    """Read an agreement once: every party's signature asks for its draft."""
    return Agreement.from_json(canonical.parse(document.encode()))


def put_signature(conn: Connection, agreement_digest: str, org: str, signature: bytes) -> None:
    """Keep one party's BLS signature."""
    conn.execute(insert(signatures).values(agreement=agreement_digest, org=org, signature=signature))


def signatures_of(conn: Connection, agreement_digest: str) -> dict[str, bytes]:
    """Return the BLS signatures over an agreement, by organisation."""
    rows = conn.execute(
        select(signatures.c.org, signatures.c.signature).where(signatures.c.agreement == agreement_digest)
    )
    return {row[0]: bytes(row[1]) for row in rows}
