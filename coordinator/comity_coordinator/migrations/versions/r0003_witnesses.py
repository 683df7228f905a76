"""The tables of witnesses: rounds of cosigning, and what was cosigned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
KIND = "expand"


def upgrade() -> None:
    """Create both tables. Each statement may run again where an earlier attempt ended half way."""
    op.create_table(
        "ledger_rounds",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("asked_at", sa.String(20), nullable=False),
        sa.Column("final_at", sa.String(20), nullable=True),
        sa.PrimaryKeyConstraint("size"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_cosignatures",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("line", sa.String(512), nullable=False),
        sa.Column("signed_s", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("size", "org"),
        if_not_exists=True,
    )
