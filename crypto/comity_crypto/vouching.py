"""A reviewer's word on an app: an Ed25519 signature of a person over the digest of the app's bundle.

Rules:
1. A voucher is one JSON document with one spelling; it names digest, key, instant and a note, and all are signed.
2. The signed bytes begin with a domain of their own, so that no other signature of the same key is a voucher.
3. Keys are checked as statement keys are: size, and no point of small order.

Source: architecture.md section 2 (`train` only if the app's digest carries a reviewer's signature, or privacy bounds).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.wire import canonical, ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.ed25519 import check_statement_key, verify_ed25519
from comity_crypto.encoding import fields, from_base64, to_base64
from comity_crypto.keys import STATEMENT_BYTES

VOUCHER_BYTES_MAX = 4_096
KEY_FILE_BYTES_MAX = 4_096
NOTE_CHARS_MAX = 500
KEY_PREFIX = "ed25519:"
_DOMAIN = b"comity/app-voucher/v1\n"
_SIGNATURE_BYTES = 64
_FIELDS = frozenset({"digest", "key", "at", "note", "signature"})


@dataclass(frozen=True, slots=True)
class Voucher:
    """Who (`key`, as policies name it) vouches for the app with this digest, since when, and what they wrote."""

    digest: str
    key: str
    at: str
    note: str
    signature: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Voucher:
        """Read and verify a voucher. Raises `MALFORMED`, `TOO_LARGE`, `SIGNATURE_INVALID`."""
        if len(data) > VOUCHER_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "a voucher", limit_bytes=VOUCHER_BYTES_MAX)
        given = fields(canonical.parse(data), _FIELDS, what="a voucher")
        signature = from_base64(given["signature"], what="signature", size_bytes=_SIGNATURE_BYTES)
        for name in ("digest", "key", "at", "note"):
            if not isinstance(given[name], str):
                raise ComityError(ErrorCode.MALFORMED, f"a voucher's {name} is text")
        made = cls(ids.sha256_hex(given["digest"]), given["key"], given["at"], given["note"], signature)
        instants.parse(made.at)
        made._check_note()
        public = public_bytes(made.key)
        try:
            verify_ed25519(public, signature, made.signed_bytes())
        except ComityError:
            raise ComityError(ErrorCode.SIGNATURE_INVALID, "the voucher was not signed by the key it names") from None
        return made

    def signed_bytes(self) -> bytes:
        """Return what the signature is over."""
        return _DOMAIN + canonical.canonical({"digest": self.digest, "key": self.key, "at": self.at, "note": self.note})

    def to_bytes(self) -> bytes:
        """Return the one spelling, with a line's end."""
        document: dict[str, Any] = {"digest": self.digest, "key": self.key, "at": self.at, "note": self.note}
        return canonical.canonical({**document, "signature": to_base64(self.signature)})

    def _check_note(self) -> None:
        if len(self.note) > NOTE_CHARS_MAX or not (self.note.isprintable() or not self.note):
            raise ComityError(ErrorCode.MALFORMED, f"a note is one line of at most {NOTE_CHARS_MAX} characters")


def vouch(key: Ed25519PrivateKey, digest: str, at: str, note: str = "") -> Voucher:
    """Sign for the app with this digest. Raises `MALFORMED`."""
    draft = Voucher(ids.sha256_hex(digest), key_name(key), at, note)
    draft._check_note()
    return replace(draft, signature=key.sign(draft.signed_bytes()))


def key_name(key: Ed25519PrivateKey) -> str:
    """Return how policies name this key: `ed25519:` and the public key in base64."""
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return KEY_PREFIX + to_base64(raw)


def public_bytes(name: str) -> bytes:
    """Return the public key that a policy names. Raises `MALFORMED`."""
    if not isinstance(name, str) or not name.startswith(KEY_PREFIX):
        raise ComityError(ErrorCode.MALFORMED, f"a key reads {KEY_PREFIX}BASE64, as `comity app key` prints it")
    raw = from_base64(name.removeprefix(KEY_PREFIX), what="a reviewer's key", size_bytes=STATEMENT_BYTES)
    check_statement_key(raw)
    return raw


def make_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it to a new file, 0600. Raises `CONFLICT` if the file is there, `KEY_UNREADABLE`."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ComityError(ErrorCode.CONFLICT, f"{path.name} exists: a key is never overwritten") from None
    except OSError:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} cannot be written") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a key that `make_key` wrote. Raises `KEY_UNREADABLE`; nothing of the file is quoted."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(KEY_FILE_BYTES_MAX)
        key = serialization.load_pem_private_key(data, password=None)
    except (OSError, ValueError, TypeError):
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is no reviewer's key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is a key of another kind")
    if mode & 0o077:
        raise ComityError(ErrorCode.KEY_UNREADABLE, f"{path.name} is open to others: chmod 600")
    return key
