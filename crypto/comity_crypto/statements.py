"""Signed statements: every message that carries a decision (architecture.md section 6).

A statement is signed by its issuer's Ed25519 key over canonical bytes, so that it can be checked outside gRPC, years
later. Its leaf in the ledger is the canonical JSON of content, key id and signature (ledger.md section 2).

Rules:
1. Signed bytes = domain prefix, then RFC 8785 JSON of the content; the content names kind, consortium, issuer, time.
2. One statement has one byte form: what is not canonical, or has a field more or less, is refused.
3. `verify_statement` checks the signature and what the caller expects; whether the key may speak for the issuer is the
   caller's question to the charter in force.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.ed25519 import verify_ed25519
from comity_crypto.encoding import fields, from_base64, to_base64
from comity_crypto.keys import OrgKeys

VERSION = 1
STATEMENT_BYTES_MAX = 1 << 20
SIGNATURE_BYTES = 64
KEY_ID_CHARS = 16

_DOMAIN = b"comity/statement/v1\x00"
_HEAD = b'{"content":'
# What follows the content: a key id of 16 characters, a signature of 88 in base64.
_TAIL_BYTES = len(',"key_id":"","signature":""}') + KEY_ID_CHARS + 88
_KEY_ID = re.compile(f"[0-9a-f]{{{KEY_ID_CHARS}}}")
_OUTER = frozenset({"content", "key_id", "signature"})
_CONTENT = frozenset({"kind", "consortium", "issuer", "issued_at", "body", "version"})


@dataclass(frozen=True)
class Statement:
    """What an issuer said, with its signature. Treat `body` as read-only: the byte form is computed once.

    Args:
        kind: what is said, such as `proposal` or `receipt`.
        consortium: within which consortium it counts.
        issuer: an organisation's id, or `coordinator`.
        issued_at: RFC 3339 text in UTC, by the issuer's clock.
        body: the content proper; no floats.
        key_id: which statement key signed (16 hexadecimal characters).
        signature: Ed25519, 64 bytes.

    Raises:
        ComityError: `MALFORMED` if a field has not its form. The signature is not verified here.
    """

    kind: str
    consortium: str
    issuer: str
    issued_at: str
    body: dict[str, Any]
    key_id: str
    signature: bytes

    def __post_init__(self) -> None:
        _check_content(self.kind, self.consortium, self.issuer, self.issued_at, self.body)
        if not isinstance(self.key_id, str) or not _KEY_ID.fullmatch(self.key_id):
            raise ComityError(ErrorCode.MALFORMED, "a key id has 16 hexadecimal characters")
        if len(self.signature) != SIGNATURE_BYTES:
            raise ComityError(ErrorCode.MALFORMED, "an Ed25519 signature has 64 bytes")

    def content(self) -> dict[str, Any]:
        """Return what is signed."""
        return _content(self.kind, self.consortium, self.issuer, self.issued_at, self.body)

    @cached_property
    def digest(self) -> str:
        """The lower-case hexadecimal SHA-256 of `to_bytes()`."""
        return hashlib.sha256(self._bytes).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the canonical bytes: the leaf data of the ledger."""
        return self._bytes

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {"content": self.content(), "key_id": self.key_id, "signature": to_base64(self.signature)}

    @classmethod
    def from_bytes(cls, data: bytes, max_bytes: int = STATEMENT_BYTES_MAX) -> Statement:
        """Read canonical bytes. Raises `TOO_LARGE` or `MALFORMED`."""
        statement = cls._from_document(canonical.parse(data, max_bytes=max_bytes))
        # Both caches are filled with what was just checked: canonical bytes with exactly these fields have this layout.
        statement.__dict__["_bytes"] = data
        statement.__dict__["signed_bytes"] = _DOMAIN + data[len(_HEAD) : -_TAIL_BYTES]
        return statement

    @classmethod
    def from_json(cls, value: Any) -> Statement:
        """Read the document form. Raises `TOO_LARGE` or `MALFORMED`."""
        statement = cls._from_document(value)
        if len(statement.to_bytes()) > STATEMENT_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "a statement is too large", limit_bytes=STATEMENT_BYTES_MAX)
        return statement

    @cached_property
    def signed_bytes(self) -> bytes:
        """What the signature covers: the domain, then the content's canonical bytes."""
        return _DOMAIN + canonical.canonical(self.content())

    @cached_property
    def _bytes(self) -> bytes:
        # The canonical form of `to_json`, put together around the content: its keys are in order, and a large body is
        # walked once instead of three times.
        tail = f',"key_id":"{self.key_id}","signature":"{to_base64(self.signature)}"}}'
        return _HEAD + self.signed_bytes[len(_DOMAIN) :] + tail.encode("ascii")

    @classmethod
    def _from_document(cls, value: Any) -> Statement:
        outer = fields(value, _OUTER, what="a statement")
        content = fields(outer["content"], _CONTENT, what="a statement's content")
        version = content["version"]
        if not isinstance(version, int) or isinstance(version, bool):
            raise ComityError(ErrorCode.MALFORMED, "a statement's version is a number")
        if version != VERSION:
            raise ComityError(ErrorCode.UNSUPPORTED, "a statement of another version", version=version)
        return cls(
            kind=content["kind"],
            consortium=content["consortium"],
            issuer=content["issuer"],
            issued_at=content["issued_at"],
            body=content["body"],
            key_id=outer["key_id"],
            signature=from_base64(outer["signature"], what="signature", size_bytes=SIGNATURE_BYTES),
        )


@lru_cache(maxsize=1_024)  # few keys sign much
def key_id(public: bytes) -> str:
    """Return the name of an Ed25519 key: 16 hexadecimal characters of a SHA-256."""
    return hashlib.sha256(b"comity/key-id/v1\x00" + public).hexdigest()[:KEY_ID_CHARS]


def sign_statement(
    keys: OrgKeys, *, kind: str, consortium: str, issuer: str, body: dict[str, Any], issued_at: str | None = None
) -> Statement:
    """Sign a statement; `issued_at` is the present unless given.

    Raises:
        ComityError: `MALFORMED` if a field has not its form or `body` has no canonical bytes; `TOO_LARGE`.
    """
    moment = issued_at if issued_at is not None else instants.now_text()
    draft = Statement(kind, consortium, issuer, moment, body, key_id(keys.public.statement), bytes(SIGNATURE_BYTES))
    statement = replace(draft, signature=keys.sign(draft.signed_bytes))
    statement.__dict__["signed_bytes"] = draft.signed_bytes  # fills the cache: nothing but the signature changed
    if len(statement.to_bytes()) > STATEMENT_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a statement is too large", limit_bytes=STATEMENT_BYTES_MAX)
    return statement


def verify_statement(
    statement: Statement, public_key: bytes, *, kind: str | None = None, consortium: str | None = None
) -> None:
    """Check the signature under `public_key` (Ed25519, 32 bytes) and, if given, kind and consortium.

    Raises:
        ComityError: `SIGNATURE_INVALID`.
    """
    check_named(statement, public_key, kind=kind, consortium=consortium)
    try:
        verify_ed25519(public_key, statement.signature, statement.signed_bytes)
    except ComityError as error:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, issuer=statement.issuer) from error


def check_named(
    statement: Statement, public_key: bytes, *, kind: str | None = None, consortium: str | None = None
) -> None:
    """Check what `verify_statement` does but the signature itself, for callers that check many of those together.

    Raises:
        ComityError: `SIGNATURE_INVALID`.
    """
    if kind is not None and statement.kind != kind:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "a statement of another kind", expected=kind)
    if consortium is not None and statement.consortium != consortium:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "a statement of another consortium")
    if statement.key_id != key_id(public_key):
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "signed with another key", issuer=statement.issuer)


def _content(kind: str, consortium: str, issuer: str, issued_at: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "consortium": consortium,
        "issuer": issuer,
        "issued_at": issued_at,
        "body": body,
        "version": VERSION,
    }


def _check_content(kind: Any, consortium: Any, issuer: Any, issued_at: Any, body: Any) -> None:
    for text in (kind, consortium, issuer, issued_at):
        if not isinstance(text, str):
            raise ComityError(ErrorCode.MALFORMED, "a statement's heading is text")
    ids.name(kind)
    ids.name(consortium)
    if issuer != ids.COORDINATOR:
        ids.org_id(issuer)
    instants.parse(issued_at)
    if not isinstance(body, dict):
        raise ComityError(ErrorCode.MALFORMED, "a statement's body is an object")
