"""A real identity provider on loopback, for tests: discovery, keys, tokens, and the device flow (RFC 8628).

It does what it is told, wrong things included: tests let it rotate keys, lie about itself, answer slowly or too much.
"""

from __future__ import annotations

import base64
import functools
import json
import secrets
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "comity-node"
_KINDS = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@functools.cache
def _first_keys() -> dict[str, tuple[str, Any]]:
    """Keys that every issuer of one process begins with: RSA keys take long to make."""
    return {algorithm: (f"{algorithm}-first", make()) for algorithm, make in _KINDS.items()}


class Issuer:
    """An issuer with one key an algorithm. `answers` replaces what a path answers, `asked` counts requests."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.keys: dict[str, tuple[str, Any]] = {}
        self.keys.update(_first_keys())
        self.person: dict[str, Any] = {"sub": "ada", "groups": ["board"]}
        self.device: dict[str, list[str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def rotate(self, algorithm: str) -> str:
        """Make a new key; returns its id."""
        kid = f"{algorithm}-{secrets.token_hex(4)}"
        self.keys[algorithm] = (kid, _KINDS[algorithm]())
        return kid

    def token(self, algorithm: str = "ES256", headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return an ID token; a claim that is None is left out."""
        now = int(time.time())
        kid, key = self.keys[algorithm]
        whole = {"iss": self.url, "aud": AUDIENCE, "iat": now, "exp": now + 300, **self.person, **claims}
        kept = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": kid, **(headers or {})})

    def key_set(self) -> list[dict[str, Any]]:
        """Return the public keys as published."""
        return [public(kid, key, algorithm) for algorithm, (kid, key) in self.keys.items()]

    def approve(self, user_code: str, words: str = "") -> None:
        """Do in the browser what the person does; `words` is an error to end with."""
        for state in self.device.values():
            if state[0] == user_code:
                state[1] = words or "approved"

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration":
            return 200, {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "device_authorization_endpoint": f"{self.url}/device",
                "token_endpoint": f"{self.url}/token",
            }
        if path == "/keys":
            return 200, {"keys": self.key_set()}
        if path == "/device" and form.get("client_id") == AUDIENCE:
            code, user_code = secrets.token_hex(8), secrets.token_hex(4).upper()
            self.device[code] = [user_code, "authorization_pending"]
            place = f"{self.url}/activate"
            made = {"device_code": code, "user_code": user_code, "verification_uri": place, "expires_in": 30}
            return 200, {**made, "interval": 1}
        if path == "/token" and form.get("device_code") in self.device:
            state = self.device[form["device_code"]][1]
            return (200, {"id_token": self.token()}) if state == "approved" else (400, {"error": state})
        return 404, {"error": "invalid_request"}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()

    def start(self) -> None:
        self._thread.start()


def public(kid: str, key: Any, algorithm: str) -> dict[str, Any]:
    """Return a public key in the form of RFC 7517."""
    found = key.public_key()
    if algorithm == "RS256":
        numbers = found.public_numbers()
        parts = {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
    elif algorithm == "ES256":
        numbers = found.public_numbers()
        parts = {"kty": "EC", "crv": "P-256", "x": _number(numbers.x, 32), "y": _number(numbers.y, 32)}
    else:
        parts = {"kty": "OKP", "crv": "Ed25519", "x": _text(found.public_bytes_raw())}
    return {**parts, "kid": kid, "use": "sig", "alg": algorithm}


@contextmanager
def serving() -> Iterator[Issuer]:
    """Serve an issuer until the end of the block."""
    issuer = Issuer()
    issuer.start()
    try:
        yield issuer
    finally:
        issuer.close()


def _number(value: int, size_bytes: int = 0) -> str:
    return _text(value.to_bytes(size_bytes or (value.bit_length() + 7) // 8, "big"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            self._respond(dict(urllib.parse.parse_qsl(body)))

        def _respond(self, form: dict[str, str]) -> None:
            issuer.asked[self.path] += 1
            if self.path in issuer.answers:
                status, data = issuer.answers[self.path]
            else:
                status, found = issuer.answer(self.path, form)
                data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            """Say nothing."""

    return Handler
