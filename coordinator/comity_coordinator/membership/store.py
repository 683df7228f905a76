"""The tables of membership."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, LargeBinary, String, Table, Text, bindparam, func, insert, select, update
from sqlalchemy.dialects import sqlite

from comity.wire import canonical
from comity_coordinator.db import Database, metadata
from comity_coordinator.membership.model import MemberRow, Standing, Token
from comity_crypto.keys import MemberKeys

members = Table(
    "membership_members",
    metadata,
    Column("org", String(63), primary_key=True),
    Column("title", String(200), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("keys", Text, nullable=False),
    Column("serial", String(64), nullable=False),
    Column("next_serial", String(64)),
    Column("enrolled_at", String(20), nullable=False),
    Column("revoked_at", String(20)),
)
tokens = Table(
    "membership_tokens",
    metadata,
    Column("token_id", String(63), primary_key=True),
    Column("org", String(63), nullable=False),
    Column("sponsor", String(63), nullable=False),
    Column("certificate_fingerprint", String(64), nullable=False),
    Column("expires_at", String(20), nullable=False),
    Column("request_digest", String(64)),
    Column("certificate_pem", LargeBinary),
)


_STANDING = select(members.c.serial, members.c.next_serial, members.c.revoked_at).where(
    members.c.org == bindparam("org")
)
_STANDING_TEXT = str(_STANDING.compile(dialect=sqlite.dialect(paramstyle="named")))


def standing(conn: Connection, org: str) -> Standing | None:
    """Return what decides on certificates of `org`; None if it has not enrolled."""
    return _standing(conn.execute(_STANDING, {"org": org}).all())


async def standing_now(database: Database, org: str) -> Standing | None:
    """The same outside a transaction: without a change of threads where the engine allows."""
    rows = database.peek(_STANDING_TEXT, {"org": org})
    return await database.run(partial(standing, org=org)) if rows is None else _standing(rows)


def _standing(rows: Sequence[Any]) -> Standing | None:
    return Standing(rows[0][0], rows[0][1], rows[0][2] is not None) if rows else None


def member(conn: Connection, org: str) -> MemberRow | None:
    """Return an enrolled organisation, revoked or not."""
    row = conn.execute(select(members).where(members.c.org == org)).first()
    return None if row is None else _member(row._tuple())


def all_members(conn: Connection) -> tuple[MemberRow, ...]:
    """Return every enrolled organisation, revoked ones too, by id."""
    return tuple(_member(row._tuple()) for row in conn.execute(select(members).order_by(members.c.org)))


def add_member(conn: Connection, row: MemberRow) -> None:
    """Enrol an organisation."""
    conn.execute(
        insert(members).values(
            org=row.org,
            title=row.title,
            owner=row.owner,
            keys=canonical.canonical(row.keys.to_json()).decode(),
            serial=row.serial,
            enrolled_at=row.enrolled_at,
        )
    )


def set_public(conn: Connection, org: str, title: str, owner: str, keys: MemberKeys) -> None:
    """Keep in step with a charter that names another title, owner or keys."""
    text = canonical.canonical(keys.to_json()).decode()
    conn.execute(update(members).where(members.c.org == org).values(title=title, owner=owner, keys=text))


def set_next_serial(conn: Connection, org: str, serial: str) -> None:
    """Note a certificate that was issued and not yet presented."""
    conn.execute(update(members).where(members.c.org == org).values(next_serial=serial))


def promote_serial(conn: Connection, org: str, serial: str) -> None:
    """Make the presented certificate the current one, unless another one has taken its place meanwhile."""
    conn.execute(
        update(members)
        .where(members.c.org == org, members.c.next_serial == serial)
        .values(serial=serial, next_serial=None)
    )


def revoke(conn: Connection, org: str, at: str) -> None:
    """Revoke an organisation's transport; the first instant stays."""
    conn.execute(update(members).where(members.c.org == org, members.c.revoked_at.is_(None)).values(revoked_at=at))


def add_token(conn: Connection, token: Token) -> None:
    """Note an issued token."""
    conn.execute(
        insert(tokens).values(
            token_id=token.token_id,
            org=token.org,
            sponsor=token.sponsor,
            certificate_fingerprint=token.certificate_fingerprint,
            expires_at=token.expires_at,
        )
    )


def token(conn: Connection, token_id: str) -> Token | None:
    """Return a token."""
    row = conn.execute(select(tokens).where(tokens.c.token_id == token_id)).first()
    return None if row is None else Token(*row._tuple())


def use_token(conn: Connection, token_id: str, request_digest: str, certificate_pem: bytes) -> None:
    """Note what a token was used for."""
    conn.execute(
        update(tokens)
        .where(tokens.c.token_id == token_id)
        .values(request_digest=request_digest, certificate_pem=certificate_pem)
    )


def open_tokens(conn: Connection, sponsor: str, now: str) -> int:
    """Count the tokens of a sponsor that could still be used."""
    count = select(func.count()).where(
        tokens.c.sponsor == sponsor, tokens.c.request_digest.is_(None), tokens.c.expires_at > now
    )
    return int(conn.execute(count).scalar_one())


def _member(row: tuple[str, str, str, str, str, str | None, str, str | None]) -> MemberRow:
    org, title, owner, keys, serial, next_serial, enrolled_at, revoked_at = row
    return MemberRow(
        org,
        title,
        owner,
        MemberKeys.from_json(canonical.parse(keys.encode())),
        serial,
        next_serial,
        enrolled_at,
        revoked_at,
    )
