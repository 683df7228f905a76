"""Proposals, answers and agreements in the node's journal: the only SQL of this capability.

What this organisation signed is never updated or deleted; only the state beside it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Index, Integer, LargeBinary, String, Table, Text, select, update
from sqlalchemy.dialects.sqlite import insert

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.statements import Statement
from comity_node.journal import metadata
from comity_policies.documents import Agreement, Answer, Proposal

PROPOSALS_LISTED_MAX = 500

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
    Column("statement", LargeBinary, nullable=False),
    Column("answered_at", String(20), nullable=False),
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


@dataclass(frozen=True, slots=True)
class StoredProposal:
    """A proposal as this node knows it; `news` is the coordinator's last word, unverified, for display only."""

    proposal: Proposal
    role: str
    statement: Statement
    news: dict[str, Any] | None
    received_at: str


@dataclass(frozen=True, slots=True)
class StoredAgreement:
    """An agreement that this organisation signed; `certificate` and `statement` are there once it is final."""

    agreement: Agreement
    state: str
    certificate: QuorumCertificate | None
    statement: Statement | None
    signed_at: str
    final_at: str | None


def add_proposal(conn: Connection, proposal: Proposal, statement: Statement, role: str, now: str) -> None:
    """Store a proposal; again is harmless."""
    conn.execute(
        insert(proposals)
        .values(
            digest=proposal.digest,
            proposal_id=proposal.proposal_id,
            revision=proposal.revision,
            role=role,
            statement=statement.to_bytes(),
            received_at=now,
        )
        .on_conflict_do_nothing()
    )


def set_news(conn: Connection, proposal_id: str, revision: int, news: dict[str, Any]) -> None:
    """Keep the coordinator's last word on a proposal."""
    conn.execute(
        update(proposals)
        .where(proposals.c.proposal_id == proposal_id, proposals.c.revision == revision)
        .values(news=canonical.canonical(news).decode())
    )


def list_proposals(conn: Connection) -> list[StoredProposal]:
    """Return the newest proposals first, at most `PROPOSALS_LISTED_MAX`."""
    newest = select(proposals).order_by(proposals.c.received_at.desc(), proposals.c.proposal_id.desc())
    return [_proposal(row) for row in conn.execute(newest.limit(PROPOSALS_LISTED_MAX)).mappings()]


def find_proposal(conn: Connection, name: str) -> StoredProposal:
    """Return a proposal by its digest or the newest revision of its id. Raises `NOT_FOUND`."""
    wanted = select(proposals).where((proposals.c.digest == name) | (proposals.c.proposal_id == name))
    row = conn.execute(wanted.order_by(proposals.c.revision.desc()).limit(1)).mappings().first()
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "this node knows no such proposal")
    return _proposal(row)


def add_answer(conn: Connection, statement: Statement, now: str) -> bool:
    """Store this organisation's answer; False if it answered that proposal before (then nothing is stored)."""
    done = conn.execute(
        insert(answers)
        .values(proposal_digest=statement.body["proposal_digest"], statement=statement.to_bytes(), answered_at=now)
        .on_conflict_do_nothing()
    )
    return done.rowcount == 1


def find_answer(conn: Connection, proposal_digest: str) -> Answer | None:
    """Return this organisation's own answer to a proposal, if it gave one."""
    statement = find_answer_statement(conn, proposal_digest)
    return None if statement is None else Answer.from_json(statement.body)


def add_agreement(conn: Connection, agreement: Agreement, now: str) -> None:
    """Store an agreement as signed by this organisation; again is harmless."""
    conn.execute(
        insert(agreements)
        .values(
            digest=agreement.digest,
            proposal_digest=agreement.proposal.digest,
            document=canonical.canonical(agreement.to_json()),
            state="signed",
            signed_at=now,
        )
        .on_conflict_do_nothing()
    )


def signed_for(conn: Connection, proposal_digest: str) -> list[Agreement]:
    """Return the agreements that this organisation signed for one proposal revision."""
    rows = conn.execute(select(agreements.c.document).where(agreements.c.proposal_digest == proposal_digest))
    return [Agreement.from_json(json.loads(data)) for data in rows.scalars()]


def set_final(
    conn: Connection, agreement: Agreement, certificate: QuorumCertificate, statement: Statement, now: str
) -> None:
    """Mark a signed agreement as final. Raises `AGREEMENT_UNKNOWN` if this organisation never signed it."""
    done = conn.execute(
        update(agreements)
        .where(agreements.c.digest == agreement.digest, agreements.c.state.in_(("signed", "final")))
        .values(
            state="final",
            certificate=canonical.canonical(certificate.to_json()).decode(),
            statement=statement.to_bytes(),
            final_at=now,
        )
    )
    if done.rowcount != 1:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN, "this organisation signed no such agreement")


def set_withdrawn(conn: Connection, digest: str) -> bool:
    """Mark an agreement as withdrawn; False if it is unknown. There is no way back."""
    done = conn.execute(update(agreements).where(agreements.c.digest == digest).values(state="withdrawn"))
    return done.rowcount == 1


def find_agreement(conn: Connection, digest: str) -> StoredAgreement:
    """Return an agreement by its digest. Raises `AGREEMENT_UNKNOWN`."""
    row = conn.execute(select(agreements).where(agreements.c.digest == digest)).mappings().first()
    if row is None:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN)
    return _agreement(row)


def agreement_state(conn: Connection, digest: str) -> str:
    """Return `signed`, `final` or `withdrawn`. Raises `AGREEMENT_UNKNOWN`."""
    state = conn.execute(select(agreements.c.state).where(agreements.c.digest == digest)).scalar_one_or_none()
    if state is None:
        raise ComityError(ErrorCode.AGREEMENT_UNKNOWN)
    return str(state)


def list_agreements(conn: Connection) -> Iterator[StoredAgreement]:
    """Return the newest agreements first, at most `PROPOSALS_LISTED_MAX`."""
    newest = select(agreements).order_by(agreements.c.signed_at.desc(), agreements.c.digest)
    return (_agreement(row) for row in conn.execute(newest.limit(PROPOSALS_LISTED_MAX)).mappings().all())


def every_agreement(conn: Connection) -> Iterator[Agreement]:
    """Return every agreement that this organisation signed, whatever became of it."""
    rows = conn.execute(select(agreements.c.document).order_by(agreements.c.digest)).scalars().all()
    return (Agreement.from_json(json.loads(data)) for data in rows)


def find_answer_statement(conn: Connection, proposal_digest: str) -> Statement | None:
    """Return this organisation's own answer to a proposal as it was signed, if it gave one."""
    query = select(answers.c.statement).where(answers.c.proposal_digest == proposal_digest)
    data = conn.execute(query).scalar_one_or_none()
    return None if data is None else Statement.from_bytes(data)


def _proposal(row: Any) -> StoredProposal:
    statement = Statement.from_bytes(row["statement"])
    body = {key: value for key, value in statement.body.items() if key != "app_payload"}
    return StoredProposal(
        proposal=Proposal.from_json(body),
        role=row["role"],
        statement=statement,
        news=None if row["news"] is None else json.loads(row["news"]),
        received_at=row["received_at"],
    )


def _agreement(row: Any) -> StoredAgreement:
    return StoredAgreement(
        agreement=Agreement.from_json(json.loads(row["document"])),
        state=row["state"],
        certificate=None if row["certificate"] is None else QuorumCertificate.from_json(json.loads(row["certificate"])),
        statement=None if row["statement"] is None else Statement.from_bytes(row["statement"]),
        signed_at=row["signed_at"],
        final_at=row["final_at"],
    )
