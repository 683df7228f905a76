"""The table of deletions: which party has said of which run that its data is gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
KIND = "expand"


def upgrade() -> None:
    """Create the table. The statement may run again where an earlier attempt ended half way."""
    op.create_table(
        "training_deletions",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("org", sa.String(63), nullable=False),
        sa.Column("statement", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("run", "org"),
        if_not_exists=True,
    )
