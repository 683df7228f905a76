"""The indexes of the first release."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
KIND = "expand"
# Name, table, columns, unique.
INDEXES = (
    ("attestation_asks_pair", "attestation_asks", ["agreement", "asker", "org", "asked_at"], False),
    ("attestation_evidence_agreement", "attestation_evidence", ["agreement", "org"], False),
    ("attestation_evidence_proposal", "attestation_evidence", ["proposal_id"], False),
    ("governance_proposals_charter", "governance_proposals", ["charter_digest"], False),
    ("governance_proposals_state", "governance_proposals", ["state", "deadline"], False),
    ("ledger_entries_kind", "ledger_entries", ["kind", "idx"], False),
    ("negotiation_agreements_proposal", "negotiation_agreements", ["proposal_id"], False),
    ("negotiation_revisions_proposal", "negotiation_revisions", ["proposal_id", "revision"], False),
    ("negotiations_opened", "negotiations", ["opened_at", "proposal_id"], False),
    ("negotiations_phase", "negotiations", ["phase", "until"], False),
    ("negotiations_told", "negotiations", ["told", "proposal_id"], False),
    ("training_receipts_executed", "training_receipts", ["org", "executed"], True),
    ("training_runs_agreement", "training_runs", ["agreement", "use_number"], True),
    ("training_runs_open", "training_runs", ["closed", "until"], False),
)


def upgrade() -> None:
    """Create every index. Each statement may run again where an earlier attempt ended half way."""
    for name, table, columns, unique in INDEXES:
        op.create_index(name, table, columns, unique=unique, if_not_exists=True)
