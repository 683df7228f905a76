"""The trace that a message belongs to, kept with it until it is acknowledged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
KIND = "expand"


def upgrade() -> None:
    """Add the column, unless it is there. SQLite has no such words and is looked at; others may be asked twice."""
    column = sa.Column("trace", sa.String(55), nullable=True)
    conn = op.get_bind()
    if conn.dialect.name != "sqlite":
        op.add_column("transport_outbox", column, if_not_exists=True)
    elif "trace" not in {each["name"] for each in sa.inspect(conn).get_columns("transport_outbox")}:
        op.add_column("transport_outbox", column)
