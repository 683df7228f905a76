"""The public keys of the identity provider: fetched, kept for a while, fetched anew when they were rotated.

Rules:
1. Only https, or plain http to loopback; no redirect, no proxy; sizes, counts and times are bounded.
2. Keys are asked for again after `FRESH_S`; if the provider is away, those at hand count until `STALE_S`, then none.
3. An unknown key id asks the provider at most once in `ASK_AGAIN_S`, however many tokens come with one.
4. The discovery document must name the very issuer that is configured (OpenID Connect Discovery 1.0, section 4.3).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import structlog

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.urls import https_or_loopback

if TYPE_CHECKING:
    from comity_node.settings import OidcSettings

FRESH_S = 600.0
STALE_S = 3_600.0
ASK_AGAIN_S = 60.0
FETCH_TIMEOUT_S = 5.0
DOCUMENT_BYTES_MAX = 256 << 10
KEYS_MAX = 64
PROVIDER = "an identity provider"
DISCOVERY = "/.well-known/openid-configuration"

log = structlog.get_logger("comity.access")
Keys = tuple[dict[str, Any], ...]


class KeySet:
    """The keys of one issuer. `clock` returns seconds that only grow."""

    def __init__(self, settings: OidcSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `MALFORMED` if a configured URL is neither https nor loopback, `KEY_UNREADABLE` for the CA file."""
        self._settings = settings
        self._clock = clock
        self._keys: Keys = ()
        self._fetched_at = -STALE_S
        self._asked_at = -ASK_AGAIN_S
        self._asking = asyncio.Lock()
        https_or_loopback(settings.issuer, PROVIDER)
        if settings.jwks_url is not None:
            https_or_loopback(settings.jwks_url, PROVIDER)
        self._tls = _trust(settings)

    async def get(self, kid: str) -> Keys:
        """Return the issuer's keys, those with `kid` among them if the issuer has such.

        Raises:
            ComityError: `UNAVAILABLE` if the provider does not answer and no keys are fresh enough.
        """
        if not self._enough(kid):
            async with self._asking:
                if not self._enough(kid) and self._may_ask():
                    await self._ask()
        if self._clock() - self._fetched_at >= STALE_S:
            raise ComityError(ErrorCode.UNAVAILABLE, "the identity provider's keys are out of reach")
        return self._keys

    def _enough(self, kid: str) -> bool:
        known = not kid or any(key.get("kid") == kid for key in self._keys)
        return known and self._clock() - self._fetched_at < FRESH_S

    def _may_ask(self) -> bool:
        return self._clock() - self._asked_at >= ASK_AGAIN_S

    async def _ask(self) -> None:
        self._asked_at = self._clock()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                self._keys = await self._fetch()
        except (ComityError, httpx.HTTPError, TimeoutError) as error:
            why = error.detail if isinstance(error, ComityError) else type(error).__name__
            log.warning("access.issuer_away", issuer=self._settings.issuer, why=why)
            return
        self._fetched_at = self._clock()

    async def _fetch(self) -> Keys:
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=FETCH_TIMEOUT_S) as client:
            url = self._settings.jwks_url or await self._discover(client)
            found = (await read_document(client, url)).get("keys")
        if not isinstance(found, list) or len(found) > KEYS_MAX or not all(isinstance(key, dict) for key in found):
            raise ComityError(ErrorCode.MALFORMED, f"a key set is a list of at most {KEYS_MAX} keys")
        return tuple(found)

    async def _discover(self, client: httpx.AsyncClient) -> str:
        issuer = self._settings.issuer
        document = await read_document(client, issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != issuer:
            raise ComityError(ErrorCode.MALFORMED, "the discovery document names another issuer")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise ComityError(ErrorCode.MALFORMED, "the discovery document names no keys")
        https_or_loopback(url, PROVIDER)
        return url


async def read_document(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """Return the JSON object at `url`. Raises `UNAVAILABLE`, `TOO_LARGE`, `MALFORMED`, and what httpx raises."""
    data = bytearray()
    async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
        if response.status_code != httpx.codes.OK:
            raise ComityError(ErrorCode.UNAVAILABLE, "the identity provider refuses", status=response.status_code)
        async for part in response.aiter_bytes():
            data += part
            if len(data) > DOCUMENT_BYTES_MAX:
                raise ComityError(ErrorCode.TOO_LARGE, "the provider's document", limit_bytes=DOCUMENT_BYTES_MAX)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ComityError(ErrorCode.MALFORMED, "the provider's document is not JSON") from None
    if not isinstance(found, dict):
        raise ComityError(ErrorCode.MALFORMED, "the provider's document is not an object")
    return found


def _trust(settings: OidcSettings) -> ssl.SSLContext | bool:
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(settings.ca_file))
    except (OSError, ssl.SSLError):
        raise ComityError(ErrorCode.KEY_UNREADABLE, "oidc.ca_file cannot be read") from None
