"""Items, votes, delegations in the node's journal: the only SQL of this capability.

Functions take the connection of an open transaction and never commit. Votes and documents are never updated or deleted;
of an item only state, ending and what was told about it change. A document is read where it is shown: it may be large,
and many may wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import metadata
from comity_node.reviews.model import Delegation, Review, ReviewAsk, ReviewState, Vote, next_reminder
from comity_policies.documents import Reason

# As many as may be open, so that nothing waits unseen.
LISTED_MAX = 1_000
EVENTS_LISTED_MAX = 200

items = Table(
    "reviews_items",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("no", Integer, nullable=False),  # order of asking: the newest item of a subject is the one that counts
    Column("stage", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("title", Text, nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("document_digest", String(64), nullable=False),
    Column("reasons", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("approvals", Integer, nullable=False),
    Column("until", String(20), nullable=False),
    Column("run", String(64), nullable=False),
    Column("proposal", String(64), nullable=False),
    Column("asked_at", String(20), nullable=False),
    Column("asker", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("decided_at", String(20), nullable=False),
    Column("why", Text, nullable=False),
    Column("remind_at", String(20), nullable=False),  # "" if no reminder is left
    Column("told", Boolean, nullable=False),  # whether those who asked have heard the verdict
    Index("reviews_items_by_subject", "stage", "subject", "no"),
    Index("reviews_items_by_state", "state", "until"),
    Index("reviews_items_by_told", "told"),
)
votes = Table(
    "reviews_votes",
    metadata,
    Column("review", String(32), primary_key=True),
    Column("user", Text, primary_key=True),
    Column("no", Integer, nullable=False),
    Column("voice", Text, nullable=False),
    Column("decision", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", String(20), nullable=False),
    Column("document", String(64), nullable=False),
    Column("statement", LargeBinary, nullable=False),
)
delegations = Table(
    "reviews_delegations",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("giver", Text, nullable=False),
    Column("receiver", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("since", String(20), nullable=False),
    Column("until", String(20), nullable=False),
    Column("entered_by", Text, nullable=False),
    Column("ended_at", String(20), nullable=False),
    Index("reviews_delegations_by_receiver", "receiver", "until"),
)
askers = Table(
    "reviews_askers",
    metadata,
    Column("proposal", String(64), primary_key=True),
    Column("user", Text, nullable=False),
)
events = Table(
    "reviews_events",
    metadata,
    Column("review", String(32), primary_key=True),
    Column("no", Integer, primary_key=True),
    Column("at", String(20), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", Text, nullable=False),
)


_LINES = select(*(column for column in items.c if column.name != "document"))


def put(conn: Connection, review: Review) -> None:
    """Store a new item."""
    ask = review.ask
    conn.execute(
        insert(items).values(
            id=ask.id,
            no=_next_no(conn),
            stage=ask.stage,
            subject=ask.subject,
            title=ask.title,
            document=canonical.canonical(ask.document),
            document_digest=ask.document_digest,
            reasons=json.dumps([reason.to_json() for reason in ask.reasons]),
            role=ask.role,
            approvals=ask.approvals,
            until=ask.until,
            run=ask.run,
            proposal=ask.proposal,
            asked_at=review.asked_at,
            asker=review.asker,
            state=str(review.state),
            decided_at=review.decided_at,
            why=review.why,
            remind_at=next_reminder(review, review.asked_at),
            told=review.state is not ReviewState.OPEN,
        )
    )


def make_newest(conn: Connection, name: str, stage: str, subject: str) -> None:
    """Let an item that was asked for again be the newest of its subject."""
    last = select(items.c.id).where(items.c.stage == stage, items.c.subject == subject).order_by(items.c.no.desc())
    if conn.execute(last.limit(1)).scalar_one() != name:
        conn.execute(update(items).where(items.c.id == name).values(no=_next_no(conn)))


def change(conn: Connection, review: Review, *, told: bool) -> None:
    """Record where an item stands now; `told` if nobody waits to hear it."""
    values = {"state": str(review.state), "decided_at": review.decided_at, "why": review.why, "told": told}
    conn.execute(update(items).where(items.c.id == review.ask.id).values(**values))


def put_vote(conn: Connection, review: str, vote: Vote, number: int, statement: bytes) -> None:
    """Store a vote as it was signed by this organisation; a second one of the same user is an integrity error."""
    conn.execute(
        insert(votes).values(
            review=review,
            user=vote.user,
            no=number,
            voice=vote.voice,
            decision=vote.decision,
            reason=vote.reason,
            at=vote.at,
            document=vote.document,
            statement=statement,
        )
    )


def find(conn: Connection, name: str) -> Review:
    """Return an item by its id, with its document. Raises `NOT_FOUND`."""
    row = conn.execute(select(items).where(items.c.id == name)).mappings().first()
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "there is no such review here")
    return _review(conn, row)


def look(conn: Connection, name: str) -> Review | None:
    """Return an item by its id, None if there is none."""
    row = conn.execute(_LINES.where(items.c.id == name)).mappings().first()
    return None if row is None else _review(conn, row)


def newest(conn: Connection, stage: str, subject: str) -> Review | None:
    """Return the item that was put last for a subject, None if there is none."""
    query = _LINES.where(items.c.stage == stage, items.c.subject == subject).order_by(items.c.no.desc())
    row = conn.execute(query.limit(1)).mappings().first()
    return None if row is None else _review(conn, row)


def open_of(conn: Connection, *, stage: str = "", subject: str = "", run: str = "", proposal: str = "") -> list[Review]:
    """Return the open items of a subject, a run or a proposal, whichever is named."""
    query = _LINES.where(items.c.state == str(ReviewState.OPEN))
    named = {"stage": stage, "subject": subject, "run": run, "proposal": proposal}
    assert any(named.values()), "ending everything at once is nobody's wish"
    for column, value in named.items():
        if value:
            query = query.where(items.c[column] == value)
    return [_review(conn, row) for row in conn.execute(query.order_by(items.c.no)).mappings().all()]


def count_open(conn: Connection) -> int:
    """Return how many items are open."""
    query = select(func.count()).select_from(items).where(items.c.state == str(ReviewState.OPEN))
    return int(conn.execute(query).scalar_one())


def every(conn: Connection, *, open_only: bool, whole: bool = False, limit: int = LISTED_MAX) -> list[Review]:
    """Return items, the newest first; `whole` with their documents."""
    query = select(items) if whole else _LINES
    if open_only:
        query = query.where(items.c.state == str(ReviewState.OPEN))
    rows = conn.execute(query.order_by(items.c.no.desc()).limit(limit)).mappings().all()
    return [_review(conn, row) for row in rows]


def overdue(conn: Connection, now: str) -> list[Review]:
    """Return open items whose end has come."""
    query = _LINES.where(items.c.state == str(ReviewState.OPEN), items.c.until <= now)
    return [_review(conn, row) for row in conn.execute(query.order_by(items.c.no)).mappings().all()]


def to_remind(conn: Connection, now: str) -> list[Review]:
    """Return open items of which people are to be reminded."""
    due = (items.c.state == str(ReviewState.OPEN)) & (items.c.remind_at != "") & (items.c.remind_at <= now)
    return [_review(conn, row) for row in conn.execute(_LINES.where(due)).mappings().all()]


def set_remind_at(conn: Connection, name: str, at: str) -> None:
    """Record when people are reminded of an item next, "" for never."""
    conn.execute(update(items).where(items.c.id == name).values(remind_at=at))


def next_due(conn: Connection) -> str:
    """Return the next instant at which an open item ends or people are reminded of it, "" if nothing is open."""
    of_open = items.c.state == str(ReviewState.OPEN)
    ends = conn.execute(select(func.min(items.c.until)).where(of_open)).scalar_one_or_none()
    reminders = select(func.min(items.c.remind_at)).where(of_open, items.c.remind_at != "")
    found = [str(at) for at in (ends, conn.execute(reminders).scalar_one_or_none()) if at]
    return min(found, default="")


def untold(conn: Connection, limit: int) -> list[Review]:
    """Return ended items whose asker has not heard the verdict, the oldest first."""
    query = _LINES.where(items.c.told.is_(False), items.c.state != str(ReviewState.OPEN))
    return [_review(conn, row) for row in conn.execute(query.order_by(items.c.no).limit(limit)).mappings().all()]


def set_told(conn: Connection, name: str) -> None:
    """Record that whoever asked has heard the verdict."""
    conn.execute(update(items).where(items.c.id == name).values(told=True))


def end_with_runs(conn: Connection, why: str, now: str) -> None:
    """Make obsolete whatever waits in any run."""
    values = {"state": str(ReviewState.OBSOLETE), "decided_at": now, "why": why, "told": True}
    wanted = (items.c.state == str(ReviewState.OPEN)) & (items.c.run != "")
    conn.execute(update(items).where(wanted).values(**values))


def statements_of(conn: Connection, name: str) -> list[bytes]:
    """Return the signed votes on an item, in order."""
    query = select(votes.c.statement).where(votes.c.review == name).order_by(votes.c.no)
    return [bytes(data) for data in conn.execute(query).scalars()]


def put_asker(conn: Connection, proposal: str, user: str) -> None:
    """Record which of our users made a proposal; the first one stays."""
    conn.execute(upsert(askers).values(proposal=proposal, user=user).on_conflict_do_nothing())


def asker_of(conn: Connection, proposal: str) -> str:
    """Return which of our users made a proposal, "" if it is another organisation's."""
    found = conn.execute(select(askers.c.user).where(askers.c.proposal == proposal)).scalar_one_or_none()
    return "" if found is None else str(found)


def put_delegation(conn: Connection, delegation: Delegation) -> None:
    """Store a delegation."""
    values = {name: getattr(delegation, name) for name in delegation.__dataclass_fields__}
    conn.execute(insert(delegations).values(**values))


def find_delegation(conn: Connection, name: str) -> Delegation:
    """Return a delegation. Raises `NOT_FOUND`."""
    row = conn.execute(select(delegations).where(delegations.c.id == name)).mappings().first()
    if row is None:
        raise ComityError(ErrorCode.NOT_FOUND, "there is no such delegation here")
    return Delegation(**row)


def end_delegation(conn: Connection, name: str, now: str) -> None:
    """Record that a delegation was taken back; an ended one stays as it is."""
    wanted = (delegations.c.id == name) & (delegations.c.ended_at == "")
    conn.execute(update(delegations).where(wanted).values(ended_at=now))


def delegations_to(conn: Connection, receiver: str, now: str) -> list[Delegation]:
    """Return what was delegated to a user and has not run out."""
    wanted = (delegations.c.receiver == receiver) & (delegations.c.until > now)
    return [Delegation(**row) for row in conn.execute(select(delegations).where(wanted)).mappings()]


def open_delegations(conn: Connection, now: str) -> list[Delegation]:
    """Return the delegations that hold or will hold, the newest first."""
    wanted = (delegations.c.until > now) & (delegations.c.ended_at == "")
    query = select(delegations).where(wanted).order_by(delegations.c.since.desc(), delegations.c.id.desc())
    return [Delegation(**row) for row in conn.execute(query).mappings()]


def put_event(conn: Connection, review: str, at: str, kind: str, body: dict[str, Any]) -> None:
    """Append to an item's story."""
    last = select(func.coalesce(func.max(events.c.no), 0)).where(events.c.review == review)
    number = 1 + int(conn.execute(last).scalar_one())
    conn.execute(insert(events).values(review=review, no=number, at=at, kind=kind, body=json.dumps(body)))


def events_of(conn: Connection, review: str) -> list[dict[str, Any]]:
    """Return an item's story in order."""
    query = select(events).where(events.c.review == review).order_by(events.c.no).limit(EVENTS_LISTED_MAX)
    return [
        {"no": int(row["no"]), "at": row["at"], "kind": row["kind"], **json.loads(row["body"])}
        for row in conn.execute(query).mappings()
    ]


def _next_no(conn: Connection) -> int:
    return 1 + int(conn.execute(select(func.coalesce(func.max(items.c.no), 0))).scalar_one())


def _review(conn: Connection, row: Any) -> Review:
    same = ("stage", "subject", "title", "role", "approvals", "until", "run", "proposal")
    values = {name: row[name] for name in same}
    values["reasons"] = tuple(Reason.from_json(each) for each in json.loads(row["reasons"]))
    if "document" in row:
        ask = ReviewAsk(document=json.loads(row["document"]), **values)
    else:
        ask = ReviewAsk.without_document(row["id"], row["document_digest"], **values)
    return Review(
        ask=ask,
        asked_at=row["asked_at"],
        asker=row["asker"],
        state=ReviewState(row["state"]),
        votes=tuple(_votes(conn, row["id"])),
        decided_at=row["decided_at"],
        why=row["why"],
    )


def _votes(conn: Connection, review: str) -> Iterable[Vote]:
    query = select(votes).where(votes.c.review == review).order_by(votes.c.no)
    for row in conn.execute(query).mappings().all():
        yield Vote(row["user"], row["voice"], row["decision"], row["reason"], row["at"], row["document"])
