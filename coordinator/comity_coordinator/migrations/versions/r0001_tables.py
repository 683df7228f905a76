"""The tables of the first release.

A revision is a record of what was done: it never changes, and never imports what does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
KIND = "expand"


def upgrade() -> None:
    """Create every table. Each statement may run again where an earlier attempt ended half way."""
    _membership()
    _governance()
    _transport()
    _ledger()
    _negotiation()
    _attestation()
    _training()


def _membership() -> None:
    op.create_table(
        "membership_members",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("title", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("keys", sa.Text(), nullable=False),
        sa.Column("serial", sa.String(64), nullable=False),
        sa.Column("next_serial", sa.String(64), nullable=True),
        sa.Column("enrolled_at", sa.String(20), nullable=False),
        sa.Column("revoked_at", sa.String(20), nullable=True),
        sa.PrimaryKeyConstraint("org"),
        if_not_exists=True,
    )
    op.create_table(
        "membership_tokens",
        sa.Column("token_id", sa.String(63), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("sponsor", sa.String(63), nullable=False),
        sa.Column("certificate_fingerprint", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.String(20), nullable=False),
        sa.Column("request_digest", sa.String(64), nullable=True),
        sa.Column("certificate_pem", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("token_id"),
        if_not_exists=True,
    )


def _governance() -> None:
    op.create_table(
        "governance_charters",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        sa.UniqueConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "governance_proposals",
        sa.Column("statement_digest", sa.String(64), nullable=False),
        sa.Column("charter_digest", sa.String(64), nullable=False),
        sa.Column("proposer", sa.String(63), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("deadline", sa.String(20), nullable=False),
        sa.Column("opened_at", sa.String(20), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("statement_digest"),
        if_not_exists=True,
    )
    op.create_table(
        "governance_signatures",
        sa.Column("charter_digest", sa.String(64), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("charter_digest", "org"),
        if_not_exists=True,
    )
    op.create_table(
        "governance_votes",
        sa.Column("charter_digest", sa.String(64), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("allow", sa.Boolean(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("charter_digest", "org"),
        if_not_exists=True,
    )


def _transport() -> None:
    op.create_table(
        "transport_cursors",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("received_seq", sa.BigInteger(), nullable=False),
        sa.Column("sent_seq", sa.BigInteger(), nullable=False),
        sa.Column("acked_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org"),
        if_not_exists=True,
    )
    op.create_table(
        "transport_outbox",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("kind", sa.String(80), nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("org", "seq"),
        if_not_exists=True,
    )
    op.create_table(
        "transport_taken",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("id", sa.String(80), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org", "id"),
        if_not_exists=True,
    )


def _ledger() -> None:
    op.create_table(
        "ledger_checkpoints",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("note", sa.String(4096), nullable=False),
        sa.Column("made_at", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("size"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_entries",
        sa.Column("idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("idx"),
        sa.UniqueConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_lease",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("holder", sa.String(80), nullable=False),
        sa.Column("until", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_pending",
        sa.Column("place", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("issuer", sa.String(63), nullable=False),
        sa.Column("leaf_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("recipients", sa.String(8192), nullable=False),
        sa.PrimaryKeyConstraint("place"),
        sa.UniqueConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_statements",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("issuer", sa.String(63), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("appended_at", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_tiles",
        sa.Column("level", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("idx", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("level", "idx"),
        if_not_exists=True,
    )


def _negotiation() -> None:
    op.create_table(
        "negotiation_agreements",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("proposal_id", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.Column("changed_at", sa.String(20), nullable=False),
        sa.Column("withdrawal", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "negotiation_revisions",
        sa.Column("proposal_digest", sa.String(64), nullable=False),
        sa.Column("proposal_id", sa.String(128), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.Column("opened_at", sa.String(20), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("proposal_digest"),
        if_not_exists=True,
    )
    op.create_table(
        "negotiation_signatures",
        sa.Column("agreement", sa.String(64), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("signature", sa.LargeBinary(96), nullable=False),
        sa.PrimaryKeyConstraint("agreement", "org"),
        if_not_exists=True,
    )
    op.create_table(
        "negotiations",
        sa.Column("proposal_id", sa.String(128), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("proposal_digest", sa.String(64), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.Column("proposer", sa.String(63), nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("until", sa.String(20), nullable=False),
        sa.Column("opened_at", sa.String(20), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("proposal_id"),
        sa.UniqueConstraint("proposal_digest"),
        if_not_exists=True,
    )


def _attestation() -> None:
    op.create_table(
        "attestation_asks",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("agreement", sa.String(64), nullable=False),
        sa.Column("asker", sa.String(63), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("asked_at", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("digest"),
        if_not_exists=True,
    )
    op.create_table(
        "attestation_evidence",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("agreement", sa.String(64), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("proposal_id", sa.String(128), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("digest"),
        if_not_exists=True,
    )


def _training() -> None:
    op.create_table(
        "training_receipts",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("journal_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("executed", sa.String(64), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("org", "journal_seq"),
        if_not_exists=True,
    )
    op.create_table(
        "training_runs",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("agreement", sa.String(64), nullable=False),
        sa.Column("use_number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("until", sa.String(20), nullable=False),
        sa.Column("created_at", sa.String(20), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("run"),
        if_not_exists=True,
    )
