"""Who may use which route of an HTTP server: one table for each server, default deny.

Rules:
1. A route without a row is refused, whoever asks; a test of each server fails for it and names it.
2. A row names roles; one of them is enough. `PUBLIC` needs no credentials, `SIGNED_IN` any that hold.
3. No route gives roles: they come with the `Principal`, which whoever authenticates makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from comity.wire.errors import ComityError, ErrorCode

PUBLIC = frozenset({"public"})
SIGNED_IN = frozenset({"signed-in"})

Via = Literal["local", "token", "oidc"]
Rows = Mapping[tuple[str, str], frozenset[str]]
"""(method, path as the route is written) -> roles."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a name inside the own organisation, the roles it has, how it was proved.

    Args:
        user: unique inside the organisation.
        roles: what the table's rows name.
        via: `local` (the server's own Unix user), `token` (issued by the organisation), `oidc` (its identity provider).
        until: when the credentials end; None if they do not by themselves.
    """

    user: str
    roles: frozenset[str]
    via: Via
    until: datetime | None = None


def is_public(rows: Rows, method: str, path: str) -> bool:
    """Tell whether a route is answered without credentials."""
    return rows.get((method, path)) == PUBLIC


def check(rows: Rows, method: str, path: str, principal: Principal) -> None:
    """Return if `principal` may use the route. Raises `FORBIDDEN`, naming the roles that may."""
    row = rows.get((method, path))
    if row is None:
        raise ComityError(ErrorCode.FORBIDDEN, "no rule opens this route to anybody")
    if row in (PUBLIC, SIGNED_IN) or row & principal.roles:
        return
    needed = ", ".join(sorted(row))
    raise ComityError(ErrorCode.FORBIDDEN, "this person's roles do not permit this", needed=needed, user=principal.user)
