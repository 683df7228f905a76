"""The tables of training in the node's journal, and their rows as values. `store.py` holds every statement on them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Boolean, Column, Index, Integer, LargeBinary, String, Table, Text

from comity_node.journal import metadata
from comity_policies.documents import Agreement, OrderHeader

# A sealed payload of at most this size travels in its message and lives in its row (protos/comity/v1/exchange.proto).
INLINE_BYTES_MAX = 256 * 1024

STARTED, FINISHED = "started", "finished"
OPEN, CLOSED = "open", "closed"
# States of a run at a node; the last four are terminal.
PREPARING, READY, RUNNING = "PREPARING", "READY", "RUNNING"
COMPLETED, FAILED, DIVERGED, CANCELLED = "COMPLETED", "FAILED", "DIVERGED", "CANCELLED"

runs = Table(
    "training_runs",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False, index=True),
    Column("lead", String(63), nullable=False),
    Column("parties", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("prepared_at", String(20), nullable=False),
    Column("ended_at", String(20)),
    Column("error", Text),
    Column("result", Text),
    Column("closed", Boolean, nullable=False, default=False),
)

orders = Table(
    "training_orders",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("agreement", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("word", String(16), nullable=False),
    Column("lead", String(63), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", String(20), nullable=False),
    Column("outcome", String(16)),
    Column("reply", LargeBinary),
    Column("inline", LargeBinary),
    Column("file", String(128)),
    Column("size_bytes", Integer),
    Column("acked", Boolean, nullable=False, default=False),
    Index("training_orders_by_round", "run", "word", "seq", "round"),
    Index("training_orders_by_digest", "digest"),
)

refusals = Table(
    "training_refusals",
    metadata,
    Column("order_digest", String(64), primary_key=True),
    Column("run", String(64), nullable=False, index=True),
    Column("reply", LargeBinary, nullable=False),
)

grants = Table(
    "training_grants",
    metadata,
    Column("agreement", String(64), primary_key=True),
    Column("field", String(32), primary_key=True),
    Column("spent", Integer, nullable=False),
)

receipts = Table(
    "training_receipts",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("run", String(64), nullable=False, index=True),
    Column("statement", LargeBinary, nullable=False),
    Column("sent", Boolean, nullable=False, default=False, index=True),
)

# What a receipt that was not sent yet will prove; the records behind a result are named nowhere else in the journal.
claims = Table(
    "training_claims",
    metadata,
    Column("no", Integer, primary_key=True),
    Column("minimum", Integer, nullable=False),
    Column("cohort", Integer, nullable=False),
)

questions = Table(
    "training_questions",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("message_type", String(128), nullable=False),
    Column("round", Integer, nullable=False),
    Column("receivers", Text, nullable=False),
    Column("content_sha256", String(64), nullable=False),
    Column("salt", LargeBinary, nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("inline", LargeBinary),
    Column("file", String(128)),
    Column("state", String(16), nullable=False),
    Column("asked_at", String(20), nullable=False),
)

answers = Table(
    "training_answers",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("outcome", String(16), nullable=False),
    Column("error", Text),
    Column("reference", Text),
    Column("inline", LargeBinary),
    Column("file", String(128)),
    Column("size_bytes", Integer),
)

events = Table(
    "training_events",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("no", Integer, primary_key=True),
    Column("at", String(20), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),
)

results = Table(
    "training_results",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("agreement", String(64), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("file", String(128)),
    Column("inline", LargeBinary),
    Column("stored_at", String(20), nullable=False),
)

copies = Table(
    "training_result_copies",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("org", String(63), primary_key=True),
    Column("acked", Boolean, nullable=False, default=False),
)


@dataclass(frozen=True, slots=True)
class OrderRow:
    """One order as this party's journal knows it; `word` is the first word of its message type."""

    run: str
    seq: int
    digest: str
    agreement: str
    round: int
    word: str
    lead: str
    state: str
    started_at: str
    outcome: str | None
    reply: bytes | None
    inline: bytes | None
    file: str | None
    size_bytes: int | None
    acked: bool

    @classmethod
    def started(cls, order: OrderHeader, word: str, digest: str, now: str) -> OrderRow:
        """Return the row of an order that starts."""
        return cls(
            run=order.run,
            seq=order.seq,
            digest=digest,
            agreement=order.agreement,
            round=order.round,
            word=word,
            lead=order.lead,
            state=STARTED,
            started_at=now,
            outcome=None,
            reply=None,
            inline=None,
            file=None,
            size_bytes=None,
            acked=False,
        )


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One recorded question of a ServerApp."""

    run: str
    seq: int
    message_type: str
    round: int
    receivers: str
    content_sha256: str
    salt: bytes
    statement: bytes
    inline: bytes | None
    file: str | None
    state: str
    asked_at: str


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One recorded answer to a question. `reference` is the sealed payload's JSON, None for the lead's own answer."""

    run: str
    seq: int
    org: str
    outcome: str
    error: str | None
    reference: str | None
    inline: bytes | None
    file: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One result of a run that this organisation led: its signed announcement and its sealed payload."""

    run: str
    agreement: str
    statement: bytes
    file: str | None
    inline: bytes | None
    stored_at: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as this node knows it; JSON columns are still text."""

    run: str
    agreement: str
    lead: str
    parties: str
    state: str
    prepared_at: str
    ended_at: str | None
    error: str | None
    result: str | None
    closed: bool

    @classmethod
    def known(cls, run: str, agreement: Agreement, lead: str, now: str) -> RunRow:
        """Return the row of a run that this node hears of."""
        parties = json.dumps(list(agreement.parties))
        return cls(run, agreement.digest, lead, parties, PREPARING, now, None, None, None, False)
