"""The schema's history: one revision a step, in `versions/`; `schema.py` brings a database to the newest one.

Rules
1. Expand and contract: a release adds what the next one needs, and drops only what the release before it no longer
   uses, so that two neighbouring releases run side by side on one database. `KIND` says which of the two a revision is.
2. One kind of DDL a revision (tables, indexes, columns, constraints, data): CockroachDB changes a schema outside the
   transaction, so a step has to be whole by itself. Each statement may run again (`if_not_exists`).
3. A revision never changes once released, and imports nothing of ours.
4. No way down: what a contracting step dropped is in the backup only.
"""
