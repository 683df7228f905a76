"""What this node knows of charter decisions: proposals, everybody's votes, how proposals ended, who wants to join.

Nothing enters before `decisions.py` has verified it. How a proposal stands is not stored: it follows from the chain of
charters, the votes and the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy import Connection

from comity.wire import canonical, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement
from comity_node.journal import metadata
from comity_policies.charter import Charter, Member
from comity_policies.charter_votes import CharterProposal, CharterVote

PROPOSALS_KEPT = 256
PROPOSALS_PARSED = 256
CANDIDATES_KEPT = 1_000

_proposals = sa.Table(
    "governance_proposals",
    metadata,
    sa.Column("statement_digest", sa.Text, primary_key=True),
    sa.Column("charter_digest", sa.Text, nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("seen_at", sa.Text, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
    sa.Column("ended", sa.LargeBinary),
)
_votes = sa.Table(
    "governance_votes",
    metadata,
    sa.Column("charter_digest", sa.Text, primary_key=True),
    sa.Column("org", sa.Text, primary_key=True),
    sa.Column("allow", sa.Boolean, nullable=False),
    sa.Column("statement", sa.LargeBinary, nullable=False),
)
_candidates = sa.Table(
    "governance_candidates",
    metadata,
    sa.Column("org", sa.Text, primary_key=True),
    sa.Column("member", sa.LargeBinary, nullable=False),
    sa.Column("sponsor", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Known:
    """A proposal as it is kept: who proposed it, when this node saw it, the coordinator's word of its end, if any."""

    statement: Statement
    proposal: CharterProposal
    seen_at: str
    ended: Statement | None

    @property
    def charter(self) -> Charter:
        """The charter that is proposed."""
        return self.proposal.charter


@dataclass(frozen=True, slots=True)
class Candidate:
    """An organisation that has enrolled and is no member yet."""

    member: Member
    sponsor: str


def add_proposal(conn: Connection, statement: Statement, proposal: CharterProposal) -> bool:
    """Keep a verified proposal and the newest `PROPOSALS_KEPT` of all; False if it was known."""
    if conn.execute(sa.select(_proposals.c.version).where(_proposals.c.statement_digest == statement.digest)).first():
        return False
    newest = sa.select(_proposals.c.statement_digest).order_by(_proposals.c.version.desc(), _proposals.c.seen_at.desc())
    conn.execute(_proposals.delete().where(_proposals.c.statement_digest.not_in(newest.limit(PROPOSALS_KEPT - 1))))
    conn.execute(
        _proposals.insert().values(
            statement_digest=statement.digest,
            charter_digest=proposal.charter.digest,
            version=proposal.charter.version,
            seen_at=instants.now_text(),
            statement=statement.to_bytes(),
        )
    )
    return True


def set_ended(conn: Connection, statement_digest: str, ended: Statement) -> None:
    """Keep the coordinator's word of how a proposal ended."""
    this = _proposals.c.statement_digest == statement_digest
    conn.execute(_proposals.update().where(this).values(ended=ended.to_bytes()))


def proposals(conn: Connection, version: int | None = None) -> list[Known]:
    """Return the proposals of a version, or of all, oldest first."""
    query = sa.select(_proposals.c.statement, _proposals.c.seen_at, _proposals.c.ended)
    if version is not None:
        query = query.where(_proposals.c.version == version)
    rows = conn.execute(query.order_by(_proposals.c.version, _proposals.c.seen_at, _proposals.c.statement_digest))
    return [_known(row.statement, row.seen_at, row.ended) for row in rows]


def proposals_of(conn: Connection, charter_digest: str) -> list[Known]:
    """Return the proposals of one charter, oldest first: one that ended may have been put again."""
    query = sa.select(_proposals.c.statement, _proposals.c.seen_at, _proposals.c.ended)
    rows = conn.execute(query.where(_proposals.c.charter_digest == charter_digest).order_by(_proposals.c.seen_at))
    return [_known(row.statement, row.seen_at, row.ended) for row in rows]


def add_vote(conn: Connection, org: str, vote: CharterVote, statement: Statement) -> bool:
    """Keep a verified vote; False if it was known. Raises `CONFLICT` if this member said the opposite before."""
    before = votes(conn, vote.charter).get(org)
    if before is not None:
        if before != vote.allow:
            raise ComityError(ErrorCode.CONFLICT, "one member said yes and no to one charter", org=org)
        return False
    conn.execute(
        _votes.insert().values(charter_digest=vote.charter, org=org, allow=vote.allow, statement=statement.to_bytes())
    )
    return True


def forget_vote(conn: Connection, charter_digest: str, org: str) -> None:
    """Forget a vote of this organisation that the coordinator did not take."""
    conn.execute(_votes.delete().where(_votes.c.charter_digest == charter_digest, _votes.c.org == org))


def votes(conn: Connection, charter_digest: str) -> dict[str, bool]:
    """Return who said yes or no to a charter."""
    query = sa.select(_votes.c.org, _votes.c.allow).where(_votes.c.charter_digest == charter_digest)
    return {row.org: bool(row.allow) for row in conn.execute(query.order_by(_votes.c.org))}


def reasons(conn: Connection, charter_digest: str) -> dict[str, str]:
    """Return the reasons of those who gave one."""
    query = sa.select(_votes.c.org, _votes.c.statement).where(_votes.c.charter_digest == charter_digest)
    said = {row.org: str(Statement.from_bytes(row.statement).body["reason"]) for row in conn.execute(query)}
    return {org: reason for org, reason in sorted(said.items()) if reason}


def add_candidate(conn: Connection, candidate: Candidate) -> None:
    """Keep an organisation that wants to be admitted, the newest `CANDIDATES_KEPT` of them."""
    newest = sa.select(_candidates.c.org).order_by(_candidates.c.seen_at.desc()).limit(CANDIDATES_KEPT - 1)
    conn.execute(_candidates.delete().where(_candidates.c.org.not_in(newest)))
    conn.execute(_candidates.delete().where(_candidates.c.org == candidate.member.org))
    conn.execute(
        _candidates.insert().values(
            org=candidate.member.org,
            member=canonical.canonical(candidate.member.to_json()),
            sponsor=candidate.sponsor,
            seen_at=instants.now_text(),
        )
    )


def candidates(conn: Connection) -> list[Candidate]:
    """Return every candidate that was told of, by organisation; members of the charter in force may be among them."""
    rows = conn.execute(sa.select(_candidates.c.member, _candidates.c.sponsor).order_by(_candidates.c.org))
    return [Candidate(Member.from_json(canonical.parse(row.member)), row.sponsor) for row in rows]


def _known(statement: bytes, seen_at: str, ended: bytes | None) -> Known:
    said, proposal = _read(statement)
    return Known(said, proposal, seen_at, None if ended is None else Statement.from_bytes(ended))


@lru_cache(maxsize=PROPOSALS_PARSED)
def _read(statement: bytes) -> tuple[Statement, CharterProposal]:
    """Read a stored proposal once: its members' keys cost milliseconds each."""
    said = Statement.from_bytes(statement)
    return said, CharterProposal.from_json(said.body)
