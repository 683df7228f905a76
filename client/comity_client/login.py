"""Logging in: an ID token by the device flow (RFC 8628), so that the browser may be on any machine.

Rules:
1. The node says who its identity provider is; this process talks to that provider itself and shows the node only the
   ID token, which the node verifies.
2. Only https, or plain http to loopback; no redirect, no proxy; sizes and waits are bounded, the provider's pace is
   kept.
3. A token goes into a file of mode 0600 and into one header, never into an argument, a log or an error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from comity.wire.errors import ComityError, ErrorCode
from comity.wire.urls import https_or_loopback

ANSWER_BYTES_MAX = 256 << 10
ANSWER_TIMEOUT_S = 10.0
TOKEN_BYTES_MAX = 16 << 10
WAIT_S_MAX = 900
INTERVAL_S = 5
PROVIDER = "an identity provider"
SLOWER_S = 5
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DISCOVERY = "/.well-known/openid-configuration"
_PENDING, _SLOWER = "authorization_pending", "slow_down"
_ENDINGS = {
    "access_denied": "the person said no",
    "expired_token": "nobody typed the code in time",
}


@dataclass(frozen=True, slots=True)
class Code:
    """What a person types where; `secret` is this process's half."""

    url: str
    code: str
    whole_url: str
    expires_s: int
    interval_s: int
    secret: str = field(repr=False)


class DeviceFlow:
    """One login at one identity provider. Use as a context manager."""

    def __init__(self, issuer: str, client_id: str, scope: str, ca: Path | None = None) -> None:
        """Raises `MALFORMED` if the issuer is not reached by https."""
        https_or_loopback(issuer, PROVIDER)
        self._issuer, self._client_id, self._scope = issuer, client_id, scope
        verify: Any = True if ca is None else _context(ca)
        self._http = httpx.Client(verify=verify, trust_env=False, timeout=ANSWER_TIMEOUT_S)
        self._token_url = ""

    def begin(self) -> Code:
        """Ask for a code. Raises `UNSUPPORTED` if the provider has no device flow, `UNAVAILABLE`, `MALFORMED`."""
        document = self._send("GET", self._issuer.rstrip("/") + _DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise ComityError(ErrorCode.MALFORMED, "the discovery document names another issuer")
        device, token = document.get("device_authorization_endpoint"), document.get("token_endpoint")
        if not isinstance(device, str) or not isinstance(token, str):
            raise ComityError(ErrorCode.UNSUPPORTED, "the identity provider has no device flow: use --id-token-file")
        https_or_loopback(device, PROVIDER)
        https_or_loopback(token, PROVIDER)
        self._token_url = token
        found = self._send("POST", device, {"client_id": self._client_id, "scope": self._scope})
        return Code(
            url=_text(found, "verification_uri"),
            code=_text(found, "user_code"),
            whole_url=str(found.get("verification_uri_complete") or ""),
            expires_s=_seconds(found, "expires_in", WAIT_S_MAX),
            interval_s=_seconds(found, "interval", INTERVAL_S),
            secret=_text(found, "device_code"),
        )

    def wait(self, code: Code, sleep: Callable[[float], None] = time.sleep) -> str:
        """Return the ID token once the person has agreed.

        Raises:
            ComityError: `UNAUTHENTICATED` if the person said no, `TIMEOUT` when the code has expired.
        """
        form = {"grant_type": GRANT, "device_code": code.secret, "client_id": self._client_id}
        interval_s, waited_s = code.interval_s, 0
        while waited_s < code.expires_s:
            sleep(interval_s)
            waited_s += interval_s
            found = self._send("POST", self._token_url, form, failing=True)
            error = found.get("error")
            if error is None:
                return checked_token(_text(found, "id_token"))
            if error == _SLOWER:
                interval_s += SLOWER_S
            elif error != _PENDING:
                why = _ENDINGS.get(str(error), "the identity provider refuses")
                raise ComityError(ErrorCode.UNAUTHENTICATED, why)
        raise ComityError(ErrorCode.TIMEOUT, "nobody typed the code in time")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> DeviceFlow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self, method: str, url: str, form: dict[str, str] | None = None, *, failing: bool = False
    ) -> dict[str, Any]:
        """Return the JSON object that is answered; with `failing`, also that of a refusal (RFC 6749, section 5.2)."""
        data = bytearray()
        try:
            with self._http.stream(method, url, data=form, headers={"accept": "application/json"}) as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > ANSWER_BYTES_MAX:
                        raise ComityError(ErrorCode.TOO_LARGE, "the identity provider's answer")
                status = response.status_code
        except httpx.HTTPError as error:
            raise ComityError(ErrorCode.UNAVAILABLE, "the identity provider does not answer") from error
        if status != httpx.codes.OK and not (failing and status == httpx.codes.BAD_REQUEST):
            raise ComityError(ErrorCode.UNAVAILABLE, "the identity provider refuses", status=status)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ComityError(ErrorCode.MALFORMED, "the identity provider's answer is no JSON object")
        return found


def read_token(path: Path) -> str:
    """Return the token in a file. Raises `NOT_FOUND`, `KEY_UNREADABLE`, `MALFORMED`."""
    try:
        with path.open("rb") as file:
            data = file.read(TOKEN_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ComityError(ErrorCode.NOT_FOUND, f"there is no file {path.name}") from None
    except OSError:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} cannot be read by this user") from None
    return checked_token(data.decode("ascii", "replace").strip())


def checked_token(text: str) -> str:
    """Return `text` if it can stand in a header. Raises `MALFORMED`, never repeating it."""
    if not text or len(text) > TOKEN_BYTES_MAX or not all("!" <= each <= "~" for each in text):
        raise ComityError(ErrorCode.MALFORMED, "this is no token: one line of visible characters is expected")
    return text


def save(path: Path, token: str) -> None:
    """Write a token to `path`: 0600 from its first moment, its folder 0700, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _context(ca: Path) -> Any:
    import ssl

    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        raise ComityError(ErrorCode.KEY_UNREADABLE, "the provider's certificate file cannot be read") from None


def _text(document: dict[str, Any], name: str) -> str:
    found = document.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= TOKEN_BYTES_MAX:
        raise ComityError(ErrorCode.MALFORMED, f"the identity provider's answer has no {name}")
    return found


def _seconds(document: dict[str, Any], name: str, otherwise: int) -> int:
    found = document.get(name, otherwise)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        return otherwise
    return min(found, WAIT_S_MAX)
