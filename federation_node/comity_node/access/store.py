"""Tokens of this organisation's people, by digest: the only SQL of access.

Rules: a token's text is never written; what ended is kept for `KEPT_DAYS`, so that the list answers who had access.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from sqlalchemy import Column, Connection, Row, Table, Text, func, or_, select

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_node.access.model import Token
from comity_node.journal import metadata

TOKENS_MAX = 1_000
KEPT_DAYS = 400

_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("user", Text, nullable=False),
    Column("roles", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("issued_at", Text, nullable=False),
    Column("issued_by", Text, nullable=False),
    Column("expires_at", Text, nullable=False),
    Column("revoked_at", Text, nullable=False, default=""),
)


def add(conn: Connection, token: Token, now: datetime) -> None:
    """Keep a new token, forget what ended long ago. Raises `BUSY` if too many tokens hold."""
    old = instants.to_text(now - timedelta(days=KEPT_DAYS))
    ended = or_(_tokens.c.expires_at < old, (_tokens.c.revoked_at != "") & (_tokens.c.revoked_at < old))
    conn.execute(_tokens.delete().where(ended))
    held = select(func.count()).where(_tokens.c.revoked_at == "", _tokens.c.expires_at > instants.to_text(now))
    if int(conn.execute(held).scalar_one()) >= TOKENS_MAX:
        raise ComityError(ErrorCode.BUSY, "too many tokens hold: revoke some", limit=TOKENS_MAX)
    conn.execute(
        _tokens.insert().values(
            token_id=token.token_id,
            user=token.user,
            roles=json.dumps(sorted(token.roles)),
            digest=token.digest,
            issued_at=token.issued_at,
            issued_by=token.issued_by,
            expires_at=token.expires_at,
            revoked_at="",
        )
    )


def find(conn: Connection, token_id: str) -> Token | None:
    """Return one token, whatever its state."""
    found = conn.execute(select(_tokens).where(_tokens.c.token_id == token_id)).one_or_none()
    return None if found is None else _token(found)


def listed(conn: Connection) -> list[Token]:
    """Return all tokens that are kept, newest first."""
    newest = select(_tokens).order_by(_tokens.c.issued_at.desc(), _tokens.c.token_id)
    return [_token(row) for row in conn.execute(newest)]


def revoke(conn: Connection, token_id: str, now: str) -> Token:
    """End a token; again is harmless. Raises `NOT_FOUND`."""
    where = (_tokens.c.token_id == token_id) & (_tokens.c.revoked_at == "")
    conn.execute(_tokens.update().where(where).values(revoked_at=now))
    found = find(conn, token_id)
    if found is None:
        raise ComityError(ErrorCode.NOT_FOUND, "this node issued no such token")
    return found


def _token(row: Row[tuple[str, ...]]) -> Token:
    return Token(
        token_id=row.token_id,
        user=row.user,
        roles=frozenset(json.loads(row.roles)),
        digest=row.digest,
        issued_at=row.issued_at,
        issued_by=row.issued_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
