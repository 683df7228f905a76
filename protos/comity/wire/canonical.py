"""Canonical bytes: RFC 8785 JSON without floating-point numbers.

Everything that is signed or digested goes through here, so that two programs which hold the same value hold the same
bytes. Floats are refused: their text differs between languages; reals travel as decimal strings (negotiation.md 3).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import rfc8785

from comity.wire.errors import ComityError, ErrorCode

# RFC 8785 numbers are IEEE doubles: integers beyond 2^53 - 1 would not survive another implementation.
INTEGER_MAX = 2**53 - 1
DEPTH_MAX = 32
DOCUMENT_BYTES_MAX = 1 << 20

# A whole string; possessive by construction, so hostile text cannot make it backtrack.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_LEAVES = frozenset({str, bool, type(None)})
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def canonical(value: Any) -> bytes:
    """Return the RFC 8785 bytes of `value`.

    Raises:
        ComityError: `MALFORMED` if the value holds a float, an integer beyond 2^53 - 1, a key that is not text, or is
            nested deeper than `DEPTH_MAX`.
    """
    plain_keys = _check(value, 0)
    try:
        if plain_keys:
            # Without floats and with ASCII keys, whose order is the same in code points and in UTF-16, orjson gives the
            # same bytes many times faster; a property test holds the two together.
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        data: bytes = rfc8785.dumps(value)
    except (ValueError, orjson.JSONEncodeError) as error:  # a lone surrogate has no UTF-8 form
        raise ComityError(ErrorCode.MALFORMED, "text is not Unicode") from error
    return data


def same(value: Any, other: Any) -> bool:
    """Tell whether two values that are known to have canonical forms have the same one; they are not walked again.

    Raises:
        ComityError: `MALFORMED` for what cannot be JSON.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ComityError(ErrorCode.MALFORMED, "not JSON") from error


def parse(data: bytes, *, max_bytes: int = DOCUMENT_BYTES_MAX) -> Any:
    """Parse JSON that must be exactly canonical: one value has one spelling.

    Raises:
        ComityError: `TOO_LARGE` above `max_bytes`; `MALFORMED` if the bytes are not canonical JSON.
    """
    value = read(data, max_bytes=max_bytes)
    if canonical(value) != data:  # refuses what is nested too deeply
        raise ComityError(ErrorCode.MALFORMED, "not RFC 8785 canonical JSON")
    return value


def read(data: bytes, *, max_bytes: int = DOCUMENT_BYTES_MAX) -> Any:
    """Parse JSON in any spelling: an unsigned wrapper of documents, each of which is checked by itself.

    Raises:
        ComityError: `TOO_LARGE` above `max_bytes`; `MALFORMED` if the bytes are not JSON.
    """
    if len(data) > max_bytes:
        raise ComityError(ErrorCode.TOO_LARGE, size_bytes=len(data), limit_bytes=max_bytes)
    try:
        return orjson.loads(data)  # bounds its own nesting, at 1,024
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "not JSON") from error


def digest(value: Any) -> str:
    """Return the lower-case hexadecimal SHA-256 of the canonical bytes of `value`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def check_nesting(data: bytes) -> None:
    """Refuse foreign JSON that is nested deeper than `DEPTH_MAX`, before a parser recurses into it.

    The interpreter's own limit is no protection: some libraries raise it beyond what the stack bears.

    Raises:
        ComityError: `MALFORMED`.
    """
    if data.count(b"[") + data.count(b"{") <= DEPTH_MAX:
        return
    left = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    for _ in range(DEPTH_MAX + 1):  # each turn takes the innermost pairs away
        left = left.replace(b"{}", b"").replace(b"[]", b"")
        if not left:
            return
    raise ComityError(ErrorCode.MALFORMED, "nested too deeply, or brackets that do not match")


def _check(value: Any, depth: int) -> bool:
    """Check what has a canonical form; return whether every key is ASCII and every container a plain one.

    Exact types come first and leaves are not descended into: this walks every value that is signed, checked or sent.
    """
    kind = type(value)
    items: Iterable[Any]
    if kind is dict:
        items, plain = value.values(), _ascii_keys(value)
    elif kind is list:
        items, plain = value, True
    elif isinstance(value, str | int | None):
        return _check_leaf(value)
    elif isinstance(value, Mapping):
        items, plain = value.values(), _ascii_keys(value) and isinstance(value, dict)
    elif isinstance(value, list | tuple):
        items, plain = value, True
    else:
        raise ComityError(ErrorCode.MALFORMED, f"{kind.__name__} has no canonical form")
    if depth >= DEPTH_MAX and value:  # whatever is inside a container stands one deeper than it
        raise ComityError(ErrorCode.MALFORMED, "nested too deeply")
    for item in items:
        kind = type(item)
        if kind in _LEAVES or (kind is int and -INTEGER_MAX <= item <= INTEGER_MAX):
            continue
        plain = _check(item, depth + 1) and plain
    return plain


def _check_leaf(value: str | int | None) -> bool:
    if isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise ComityError(ErrorCode.MALFORMED, "integer beyond 2^53 - 1")
    return True


def _ascii_keys(value: Mapping[Any, Any]) -> bool:
    try:
        return "".join(value).isascii()
    except TypeError:
        raise ComityError(ErrorCode.MALFORMED, "object key is not text") from None
