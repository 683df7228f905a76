"""Who is asking: `api.token`, a token of the organisation, or an ID token of its identity provider.

Rules:
1. Credentials that do not hold are `UNAUTHENTICATED` and nothing more; roles are asked of the policy at each request,
   so that a changed policy or a revoked token counts at once.
2. `api.token` opens the Unix socket only. Over the port for people it is refused like any wrong secret.
3. No secret is logged or shown twice; a new token's text is in the one answer that issues it.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.http_api import Authenticate
from comity_node.access import model, oidc, store
from comity_node.access.jwks import KeySet
from comity_node.access.model import LOCAL, Principal, Token
from comity_node.journal import Journal
from comity_node.settings import OidcSettings
from comity_policies.access import RolePolicy, question

TOKEN_S_MIN = 60
log = structlog.get_logger("comity.access")


@dataclass(frozen=True, slots=True)
class Issued:
    """A new token; `text` is the secret, shown here and never again."""

    token: Token
    text: str = field(repr=False)


class AccessService:
    """Authenticates people of this organisation and keeps their tokens."""

    def __init__(
        self,
        journal: Journal,
        policy: RolePolicy,
        clock: Callable[[], datetime],
        oidc_settings: OidcSettings | None = None,
        keys: KeySet | None = None,
    ) -> None:
        """`keys` is where the issuer's keys come from; by default the issuer. Raises what `KeySet` raises."""
        self._journal = journal
        self._policy = policy
        self._clock = clock
        self.oidc = oidc_settings
        self._keys = keys or (KeySet(oidc_settings) if oidc_settings is not None else None)

    def over_socket(self, api_token: str) -> Authenticate:
        """Return who may come over the Unix socket: the holder of `api_token`, and everybody of `over_port`."""
        secret = api_token.encode()

        async def authenticate(credentials: str) -> Principal:
            if hmac.compare_digest(credentials.encode(), secret):
                return LOCAL
            return await self.over_port(credentials)

        return authenticate

    async def over_port(self, credentials: str) -> Principal:
        """Return whose token or ID token this is. Raises `UNAUTHENTICATED`, `UNAVAILABLE` if keys are out of reach."""
        if credentials.startswith(model.TOKEN_MARK):
            return await self._by_token(credentials)
        if self.oidc is not None and self._keys is not None and credentials.count(".") == 2:
            return await self._by_id_token(credentials, self.oidc, self._keys)
        raise model.unauthenticated("these credentials are not known here: log in, or ask your admin for a token")

    async def issue(self, by: Principal, user: str, roles: frozenset[str], valid_s: int) -> Issued:
        """Issue a token of `roles` to `user` for `valid_s` seconds. Raises `MALFORMED`, `BUSY`."""
        if not TOKEN_S_MIN <= valid_s <= model.TOKEN_S_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"a token holds for {TOKEN_S_MIN} to {model.TOKEN_S_MAX} seconds")
        now = self._clock()
        token_id, text = model.new_secret()
        token = Token(
            token_id=token_id,
            user=model.user_name(user),
            roles=model.role_names(roles),
            digest=model.digest_of(text),
            issued_at=instants.to_text(now),
            issued_by=by.user,
            expires_at=instants.to_text(now + timedelta(seconds=valid_s)),
        )
        await self._journal.run(lambda conn: store.add(conn, token, now))
        log.info("access.token_issued", token=token_id, user=user, roles=sorted(roles), by=by.user)
        return Issued(token, text)

    async def tokens(self) -> list[Token]:
        """Return all tokens that are kept, newest first."""
        return await self._journal.run(store.listed)

    async def revoke(self, by: Principal, token_id: str) -> Token:
        """End a token; it counts from the next request on. Raises `NOT_FOUND`."""
        now = self._now()
        token = await self._journal.run(lambda conn: store.revoke(conn, token_id, now))
        log.info("access.token_revoked", token=token_id, user=token.user, by=by.user)
        return token

    async def _by_token(self, text: str) -> Principal:
        token_id = model.id_of(text)
        found = await self._journal.run(lambda conn: store.find(conn, token_id))
        token = model.check_token(found, text, self._now())
        asked = question(token.user, (), "token", roles=token.roles)
        roles = await self._roles(asked) & token.roles
        return Principal(token.user, roles, "token", instants.parse(token.expires_at))

    async def _by_id_token(self, text: str, settings: OidcSettings, keys: KeySet) -> Principal:
        head = oidc.read_head(text)
        identity = oidc.verify(text, await keys.get(head.kid), settings)
        roles = await self._roles(question(identity.user, identity.groups, "oidc", identity.issuer))
        return Principal(identity.user, roles, "oidc", identity.until)

    async def _roles(self, asked: dict[str, Any]) -> frozenset[str]:
        # The engine blocks for as long as it decides: not on the loop.
        granted = await asyncio.to_thread(self._policy.roles, asked)
        if granted.problem:
            log.error("access.undecided", user=asked["user"], problem=granted.problem)
        return granted.roles

    def _now(self) -> str:
        return instants.to_text(self._clock())
