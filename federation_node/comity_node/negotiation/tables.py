"""The tables of negotiation in the node's journal; `store.py` reads and writes them."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, String, Table, Text

from comity_node.journal import metadata

proposals = Table(
    "negotiation_proposals",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("proposal_id", String(128), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("role", String(16), nullable=False),  # proposer or asked
    Column("statement", LargeBinary, nullable=False),
    Column("news", Text),  # the coordinator's last negotiation.update
    Column("received_at", String(20), nullable=False),
    Index("negotiation_proposals_by_id", "proposal_id", "revision"),
)
answers = Table(
    "negotiation_answers",
    metadata,
    Column("proposal_digest", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),  # an answer `review` is followed by another one
    Column("statement", LargeBinary, nullable=False),
    Column("answered_at", String(20), nullable=False),
)
# What this organisation answers if its people approve: the policy's decision, with its terms.
prepared = Table(
    "negotiation_prepared",
    metadata,
    Column("proposal_digest", String(64), primary_key=True),
    Column("answer", LargeBinary, nullable=False),
    Column("document", String(64), nullable=False),
    Column("round", Integer, nullable=False),  # another document than before is shown in another round
    Column("decided_at", String(20), nullable=False),
)
# Other organisations' signed counter-offers to our own proposals.
counters = Table(
    "negotiation_counters",
    metadata,
    Column("answer_digest", String(64), primary_key=True),
    Column("proposal_digest", String(64), nullable=False),
    Column("org", String(63), nullable=False),
    Column("statement", LargeBinary, nullable=False),
    Column("received_at", String(20), nullable=False),
    Column("accepted_at", String(20)),
    Index("negotiation_counters_by_proposal", "proposal_digest", "org"),
)
# Offers and agreements that could not be judged yet.
pending = Table(
    "negotiation_pending",
    metadata,
    Column("subject", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),  # offer or agreement
    Column("proposal_digest", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("until", String(20), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_at", String(20), nullable=False),
    Column("why", Text, nullable=False),
    Index("negotiation_pending_due", "next_at"),
)
agreements = Table(
    "negotiation_agreements",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("proposal_digest", String(64), nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),  # signed, final or withdrawn
    Column("certificate", Text),
    Column("statement", LargeBinary),
    Column("signed_at", String(20), nullable=False),
    Column("final_at", String(20)),
    Index("negotiation_agreements_by_proposal", "proposal_digest"),
)
