"""The consortium's constitution: drafts of the next charter, signatures, the charter in force."""
