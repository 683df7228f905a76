"""The tables of replicas: living processes, their streams, who keeps a run's sums."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
KIND = "expand"


def upgrade() -> None:
    """Create the tables. Each statement may run again where an earlier attempt ended half way."""
    op.create_table(
        "replicas",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("until", sa.String(20), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        if_not_exists=True,
    )
    op.create_table(
        "replica_streams",
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("replica", sa.String(63), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org"),
        if_not_exists=True,
    )
    op.create_table(
        "replica_sums",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("replica", sa.String(63), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("run"),
        if_not_exists=True,
    )
