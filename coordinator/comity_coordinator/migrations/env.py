"""What Alembic runs to apply revisions over the connection that `schema.py` gives it."""

from __future__ import annotations

from alembic import context

from comity_coordinator.migrations.schema import note_applied

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    transaction_per_migration=True,
    on_version_apply=note_applied,
    version_table="schema_version",
    # SQLite undoes DDL as it undoes everything else, once the driver does not commit before it (`db.py`).
    transactional_ddl=True if connection.dialect.name == "sqlite" else None,
)
with context.begin_transaction():
    context.run_migrations()
