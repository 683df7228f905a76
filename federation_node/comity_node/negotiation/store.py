"""Proposals, answers and agreements in the node's journal: the only SQL of this capability.

What this organisation signed is never updated or deleted; only the state beside it changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.statements import Statement
from comity_node.negotiation.tables import agreements, answers, counters, pending, prepared, proposals
from comity_policies.documents import Agreement, Answer, Proposal

PROPOSALS_LISTED_MAX = 500
PENDING_AT_ONCE_MAX = 32


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


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter-offer to our own proposal, signed by `org`; `accepted_at` once we took it by hand."""

    org: str
    statement: Statement
    answer: Answer
    accepted_at: str | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is answered once people approve the document with digest `document`; `round` counts the documents shown."""

    answer: Answer
    document: str
    round: int


@dataclass(frozen=True, slots=True)
class Pending:
    """An offer or an agreement to be judged again at `next_at`, the last time at `until`."""

    subject: str
    kind: str
    proposal_digest: str
    body: bytes
    until: str
    tries: int


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


def newest_revision(conn: Connection, proposal_id: str) -> int:
    """Return the highest revision of a proposal that is known here, 0 if none is."""
    query = select(func.max(proposals.c.revision)).where(proposals.c.proposal_id == proposal_id)
    return int(conn.execute(query).scalar_one_or_none() or 0)


def find_revision(conn: Connection, proposal_id: str, revision: int) -> str | None:
    """Return the digest of one revision of a proposal."""
    query = select(proposals.c.digest).where(proposals.c.proposal_id == proposal_id, proposals.c.revision == revision)
    return conn.execute(query.limit(1)).scalar_one_or_none()


def names_app(conn: Connection, app: str, but: str) -> bool:
    """Tell whether any proposal known here other than `but` (a digest) speaks of the app with digest `app`."""
    speaks = func.instr(proposals.c.statement, app.encode()) > 0
    return (
        conn.execute(select(proposals.c.digest).where(speaks, proposals.c.digest != but).limit(1)).first() is not None
    )


def add_answer(conn: Connection, statement: Statement, now: str) -> None:
    """Store this organisation's newest answer to a proposal."""
    digest = statement.body["proposal_digest"]
    given = select(func.count()).select_from(answers).where(answers.c.proposal_digest == digest)
    number = int(conn.execute(given).scalar_one()) + 1
    conn.execute(
        insert(answers).values(proposal_digest=digest, number=number, statement=statement.to_bytes(), answered_at=now)
    )


def prepare(conn: Connection, made: Prepared, now: str) -> None:
    """Keep what is answered once people approve."""
    answer = made.answer
    data = canonical.canonical(answer.to_json())
    values = {"answer": data, "document": made.document, "round": made.round, "decided_at": now}
    conn.execute(
        insert(prepared)
        .values(proposal_digest=answer.proposal_digest, **values)
        .on_conflict_do_update(index_elements=["proposal_digest"], set_=values)
    )


def find_prepared(conn: Connection, proposal_digest: str) -> Prepared | None:
    """Return what is answered once people approve."""
    query = select(prepared.c.answer, prepared.c.document, prepared.c.round)
    row = conn.execute(query.where(prepared.c.proposal_digest == proposal_digest)).first()
    return None if row is None else Prepared(Answer.from_json(json.loads(row.answer)), row.document, row.round)


def prepared_digests(conn: Connection) -> list[str]:
    """Return the proposals that were put before people, the newest `PROPOSALS_LISTED_MAX`."""
    query = select(prepared.c.proposal_digest).order_by(prepared.c.decided_at.desc())
    return list(conn.execute(query.limit(PROPOSALS_LISTED_MAX)).scalars())


def add_counter(conn: Connection, proposal_digest: str, statement: Statement, now: str) -> None:
    """Store a counter-offer to our own proposal; again is harmless."""
    conn.execute(
        insert(counters)
        .values(
            answer_digest=statement.digest,
            proposal_digest=proposal_digest,
            org=statement.issuer,
            statement=statement.to_bytes(),
            received_at=now,
        )
        .on_conflict_do_nothing()
    )


def list_counters(conn: Connection, proposal_digest: str) -> list[Counter]:
    """Return the counter-offers to a proposal, the newest of each organisation last."""
    query = select(counters).where(counters.c.proposal_digest == proposal_digest)
    found = conn.execute(query.order_by(counters.c.org, counters.c.received_at).limit(PROPOSALS_LISTED_MAX)).all()
    said = [(row.org, Statement.from_bytes(row.statement), row.accepted_at) for row in found]
    return [Counter(org, each, Answer.from_json(each.body), accepted_at) for org, each, accepted_at in said]


def accept_counter(conn: Connection, answer_digest: str, now: str) -> None:
    """Note that we took a counter-offer."""
    conn.execute(update(counters).where(counters.c.answer_digest == answer_digest).values(accepted_at=now))


def put_pending(conn: Connection, item: Pending, next_at: str, why: str) -> None:
    """Note that `item` is to be judged again, in place of what was noted before."""
    values = {"until": item.until, "tries": item.tries, "next_at": next_at, "why": why}
    conn.execute(
        insert(pending)
        .values(subject=item.subject, kind=item.kind, proposal_digest=item.proposal_digest, body=item.body, **values)
        .on_conflict_do_update(index_elements=["subject"], set_=values)
    )


def put_off_pending(conn: Connection, item: Pending, next_at: str) -> None:
    """Note that `item`, if it is still there, is being judged; until that is done, people see why it waited."""
    again = update(pending).where(pending.c.subject == item.subject)
    conn.execute(again.values(tries=item.tries, next_at=next_at))


def drop_pending(conn: Connection, *, subject: str = "", proposal_digest: str = "") -> None:
    """Forget one item, or all of one proposal."""
    conn.execute(delete(pending).where((pending.c.subject == subject) | (pending.c.proposal_digest == proposal_digest)))


def pending_of(conn: Connection, proposal_digest: str) -> list[str]:
    """Return the subjects of what is to be judged again of one proposal."""
    query = select(pending.c.subject).where(pending.c.proposal_digest == proposal_digest)
    return list(conn.execute(query.limit(PROPOSALS_LISTED_MAX)).scalars())


def find_pending(conn: Connection, subject: str) -> Pending | None:
    """Return an item that is to be judged again."""
    row = conn.execute(select(pending).where(pending.c.subject == subject)).first()
    return None if row is None else _pending(row)


def due_pending(conn: Connection, now: str) -> list[Pending]:
    """Return what is to be judged again now, at most `PENDING_AT_ONCE_MAX`, oldest first."""
    query = select(pending).where(pending.c.next_at <= now).order_by(pending.c.next_at).limit(PENDING_AT_ONCE_MAX)
    return [_pending(row) for row in conn.execute(query)]


def next_pending(conn: Connection) -> str | None:
    """Return when something is to be judged again next."""
    return conn.execute(select(func.min(pending.c.next_at))).scalar_one_or_none()


def list_pending(conn: Connection) -> dict[str, dict[str, Any]]:
    """Return by proposal digest what is to be judged again and why, for people."""
    rows = conn.execute(select(pending).order_by(pending.c.next_at.desc()).limit(PROPOSALS_LISTED_MAX))
    return {
        row.proposal_digest: {"kind": row.kind, "why": row.why, "next_at": row.next_at, "until": row.until}
        for row in rows
    }


def find_answer(conn: Connection, proposal_digest: str) -> Answer | None:
    """Return this organisation's newest answer to a proposal, if it gave one."""
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


def final_of(conn: Connection, proposal_digest: str) -> str | None:
    """Return the digest of the agreement of a proposal revision that became final here, if one did."""
    ended = agreements.c.final_at.is_not(None)
    query = select(agreements.c.digest).where(agreements.c.proposal_digest == proposal_digest, ended)
    return conn.execute(query.limit(1)).scalar_one_or_none()


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
    """Return this organisation's newest answer to a proposal as it was signed, if it gave one."""
    query = select(answers.c.statement).where(answers.c.proposal_digest == proposal_digest)
    data = conn.execute(query.order_by(answers.c.number.desc()).limit(1)).scalar_one_or_none()
    return None if data is None else Statement.from_bytes(data)


def _pending(row: Any) -> Pending:
    return Pending(row.subject, row.kind, row.proposal_digest, row.body, row.until, row.tries)


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
