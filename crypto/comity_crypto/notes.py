"""Checkpoints of the ledger as signed notes: C2SP `signed-note`, `tlog-checkpoint` and `tlog-cosignature` (v1).

A note is text, an empty line, then signature lines `<em dash> <name> <base64(key id || signature)>`. A checkpoint's
text is origin, size, base64 root, each on its line; the log signs the text, witnesses cosign it with their time.

Rules:
1. A note has bounded size and lines; control characters and lines that are not signatures are refused.
2. Signatures by unknown keys are ignored; a signature by the *known* key that does not hold refuses the note.
3. The origin of a checkpoint is the log's name: a key never vouches for another log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.ed25519 import check_statement_key, verify_ed25519
from comity_crypto.encoding import from_base64, to_base64
from comity_crypto.keys import MemberKeys
from comity_crypto.merkle import EMPTY_ROOT, HASH_BYTES, SIZE_MAX

NOTE_BYTES_MAX = 1 << 16
SIGNATURES_MAX = 64
NAME_CHARS_MAX = 255

_ED25519 = b"\x01"
_COSIGNATURE = b"\x04"
_DASH = "\u2014 "
_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_ED25519_BYTES = 64
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


class Signer(Protocol):
    """Whatever signs with an Ed25519 key that it does not show, such as `OrgKeys`."""

    @property
    def public(self) -> MemberKeys:
        """The public keys; `statement` is the one that signs."""

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes)."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log: its name, number of leaves, root hash (32 bytes).

    Raises:
        ComityError: `MALFORMED`.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_name(self.origin)
        if not 0 <= self.size <= SIZE_MAX or len(self.root) != HASH_BYTES:
            raise ComityError(ErrorCode.MALFORMED, "no log has this size or root")
        if self.size == 0 and self.root != EMPTY_ROOT:
            raise ComityError(ErrorCode.MALFORMED, "an empty log has the root of nothing")

    def text(self) -> str:
        """Return the note text, three lines."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a checkpoint's text; extension lines are refused: nobody here writes them. Raises `MALFORMED`."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] != "" or not _SIZE.fullmatch(lines[1]):
            raise ComityError(ErrorCode.MALFORMED, "a checkpoint is origin, size and root")
        return cls(lines[0], int(lines[1]), from_base64(lines[2], what="root", size_bytes=HASH_BYTES))


def key_id(name: str, public: bytes, *, cosignature: bool = False) -> bytes:
    """Return the 4 bytes that name a key in a note: SHA-256(name || 0x0A || type || key)."""
    kind = _COSIGNATURE if cosignature else _ED25519
    return hashlib.sha256(_check_name(name).encode() + b"\n" + kind + public).digest()[:_KEY_ID_BYTES]


def verifier_key(name: str, public: bytes) -> str:
    """Return the key in the text form that other tools of the C2SP family read: `name+id+base64(type || key)`."""
    check_statement_key(public)
    return f"{name}+{key_id(name, public).hex()}+{to_base64(_ED25519 + public)}"


def sign_note(text: str, name: str, signer: bytes | Signer) -> str:
    """Return the note over `text`, signed under `name` by an Ed25519 private key (32 bytes) or a signer.

    Raises:
        ComityError: `MALFORMED` if the text or name cannot be in a note.
    """
    _check_text(text)
    public, signature = _sign(signer, text.encode())
    return f"{text}\n{_line(name, key_id(name, public) + signature)}"


def cosign_note(note: str, name: str, signer: bytes | Signer, time_s: int) -> str:
    """Return `note` with a witness's cosignature added (`tlog-cosignature` v1), at `time_s` seconds since 1970.

    Raises:
        ComityError: `MALFORMED`.
    """
    text, lines = _split(note)
    if len(lines) >= SIGNATURES_MAX or time_s < 0:
        raise ComityError(ErrorCode.MALFORMED, "the note takes no more signatures")
    public, signature = _sign(signer, _cosigned(text, time_s))
    blob = key_id(name, public, cosignature=True) + time_s.to_bytes(_TIME_BYTES, "big") + signature
    return note + _line(name, blob)


def verify_note(note: str, name: str, public: bytes) -> Checkpoint:
    """Check the log's signature and return the checkpoint; `name` is the log's name and the checkpoint's origin.

    Raises:
        ComityError: `MALFORMED` if the note has not its form; `SIGNATURE_INVALID`.
    """
    text, lines = _split(note)
    check_statement_key(public)
    wanted = key_id(name, public)
    found = [blob for who, blob in lines if who == name and blob[:_KEY_ID_BYTES] == wanted]
    if len(found) != 1:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the log has not signed this checkpoint once")
    _verify(public, found[0][_KEY_ID_BYTES:], text.encode())
    checkpoint = Checkpoint.parse(text)
    if checkpoint.origin != name:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the checkpoint is of another log")
    return checkpoint


def verify_cosignature(note: str, name: str, public: bytes) -> int:
    """Check a witness's cosignature and return its time in seconds since 1970 (the newest, if there are several).

    Raises:
        ComityError: `MALFORMED` if the note has not its form; `SIGNATURE_INVALID`.
    """
    text, lines = _split(note)
    check_statement_key(public)
    wanted = key_id(name, public, cosignature=True)
    times = []
    for who, blob in lines:
        if who == name and blob[:_KEY_ID_BYTES] == wanted:
            body = blob[_KEY_ID_BYTES:]
            time_s = int.from_bytes(body[:_TIME_BYTES], "big")
            _verify(public, body[_TIME_BYTES:], _cosigned(text, time_s))
            times.append(time_s)
    if not times:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "the witness has not cosigned this checkpoint")
    return max(times)


def cosignature_times(note: str, keys: Mapping[str, bytes]) -> dict[str, int]:
    """Return who of `keys` (witness name -> Ed25519 key) cosigned the note, and when (seconds since 1970, the newest).

    Lines of others are ignored, as are cosignatures by a key that the witness had before (another key id).

    Raises:
        ComityError: `MALFORMED`; `SIGNATURE_INVALID` if a line in a known witness's name and key does not hold.
    """
    text, lines = _split(note)
    wanted = {(name, key_id(name, key, cosignature=True)): key for name, key in keys.items()}
    times: dict[str, int] = {}
    for who, blob in lines:
        key = wanted.get((who, blob[:_KEY_ID_BYTES]))
        if key is None:
            continue
        body = blob[_KEY_ID_BYTES:]
        time_s = int.from_bytes(body[:_TIME_BYTES], "big")
        _verify(key, body[_TIME_BYTES:], _cosigned(text, time_s))
        times[who] = max(time_s, times.get(who, 0))
    return times


def only_line(cosigned: str, note: str) -> str:
    """Return the one signature line that `cosigned` has beyond `note`. Raises `MALFORMED`."""
    line = cosigned.removeprefix(note)
    if not cosigned.startswith(note) or line.count("\n") != 1 or not line.endswith("\n"):
        raise ComityError(ErrorCode.MALFORMED, "a cosigned note is the note with one more line")
    _parse_line(line[:-1])
    return line


def with_lines(note: str, lines: Iterable[str]) -> str:
    """Return a note with signature lines added. Raises `MALFORMED` if it is none then."""
    joined = note + "".join(lines)
    _split(joined)
    return joined


def log_part(note: str, name: str) -> str:
    """Return a note with the log's own signature lines alone, as the log made it. Raises `MALFORMED`."""
    text, lines = _split(note)
    return f"{text}\n" + "".join(_line(who, blob) for who, blob in lines if who == name)


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a note's text and its (name, key id || signature) lines. Raises `MALFORMED`."""
    if len(note) > NOTE_BYTES_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a note is too large", limit_bytes=NOTE_BYTES_MAX)
    head, border, tail = note.rpartition("\n\n")
    if not border or not tail.endswith("\n"):
        raise ComityError(ErrorCode.MALFORMED, "a note is text, an empty line, and signatures")
    text = head + "\n"
    _check_text(text)
    lines = tail[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a note has too many signatures")
    return text, [_parse_line(line) for line in lines]


def _parse_line(line: str) -> tuple[str, bytes]:
    name, space, blob = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise ComityError(ErrorCode.MALFORMED, "a signature line has not its form")
    data = from_base64(blob, what="a note's signature", max_bytes=4096)
    if len(data) <= _KEY_ID_BYTES:
        raise ComityError(ErrorCode.MALFORMED, "a signature line holds no signature")
    return _check_name(name), data


def _line(name: str, blob: bytes) -> str:
    return f"{_DASH}{name} {to_base64(blob)}\n"


def _cosigned(text: str, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{text}".encode()


def _sign(signer: bytes | Signer, data: bytes) -> tuple[bytes, bytes]:
    """Return (public key, signature)."""
    if not isinstance(signer, bytes):
        return signer.public.statement, signer.sign(data)
    try:
        key = Ed25519PrivateKey.from_private_bytes(signer)
    except ValueError:
        # No cause is attached: a library's text about a secret stays out of logs.
        raise ComityError(ErrorCode.KEY_UNREADABLE, "not an Ed25519 private key") from None
    return key.public_key().public_bytes_raw(), key.sign(data)


def _verify(public: bytes, signature: bytes, data: bytes) -> None:
    if len(signature) != _ED25519_BYTES:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "a note's signature has not the right size")
    try:
        verify_ed25519(public, signature, data)
    except ComityError as error:
        raise ComityError(ErrorCode.SIGNATURE_INVALID, "a note's signature does not hold") from error


def _check_name(name: str) -> str:
    if len(name) > NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise ComityError(ErrorCode.MALFORMED, "a key's name has no spaces, plus signs or control characters")
    return name


def _check_text(text: str) -> None:
    """Refuse what a note's text may not hold: control characters but newline, no final newline, lone surrogates."""
    if not text.endswith("\n") or len(text) > NOTE_BYTES_MAX:
        raise ComityError(ErrorCode.MALFORMED, "a note's text ends with a newline and is short")
    if any((ord(char) < 0x20 and char != "\n") or 0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise ComityError(ErrorCode.MALFORMED, "a note's text holds control characters")
