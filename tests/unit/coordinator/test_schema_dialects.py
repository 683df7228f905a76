"""The schema of negotiation, ledger and training compiles for every database that the design names."""

import pytest
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy_cockroachdb.psycopg import CockroachDBDialect_psycopg

from comity_coordinator import db
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.negotiation import store as negotiation_store
from comity_coordinator.training import store as training_store

DIALECTS = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),
    "cockroachdb": CockroachDBDialect_psycopg(),
}
OWNERS = (ledger_store, negotiation_store, training_store)


@pytest.mark.parametrize("name", DIALECTS)
def test_every_table_compiles(name):
    assert OWNERS
    tables = db.metadata.sorted_tables
    assert {"ledger_statements", "ledger_entries", "negotiations", "training_runs"} <= {table.name for table in tables}
    for table in tables:
        text = str(CreateTable(table).compile(dialect=DIALECTS[name]))
        assert f"CREATE TABLE {table.name}" in text
        # No serial ids in the hot path (ledger.md section 3).
        assert "SERIAL" not in text
        for index in table.indexes:
            assert "CREATE" in str(CreateIndex(index).compile(dialect=DIALECTS[name]))
