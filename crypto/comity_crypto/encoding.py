"""Binary fields inside JSON documents: standard base64 with padding, one spelling for each value."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from comity.wire.errors import ComityError, ErrorCode


def to_base64(data: bytes) -> str:
    """Return `data` as standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: Any, *, what: str, size_bytes: int | None = None, max_bytes: int = 1 << 16) -> bytes:
    """Decode standard base64 that must be exactly what `to_base64` writes.

    Args:
        text: the untrusted field.
        what: the field's public name, for the refusal.
        size_bytes: the exact size that the value must have.
        max_bytes: the largest size, where no exact one is given.

    Raises:
        ComityError: `MALFORMED`.
    """
    limit_bytes = max_bytes if size_bytes is None else size_bytes
    if not isinstance(text, str) or len(text) > 4 * (limit_bytes // 3 + 1):
        raise ComityError(ErrorCode.MALFORMED, f"{what} is not base64 text of a legal size")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ComityError(ErrorCode.MALFORMED, f"{what} is not base64") from error
    if to_base64(data) != text or len(data) > limit_bytes or (size_bytes is not None and len(data) != size_bytes):
        raise ComityError(ErrorCode.MALFORMED, f"{what} has not the right size or spelling")
    return data


def fields(value: Any, names: frozenset[str], *, what: str) -> dict[str, Any]:
    """Return `value` if it is an object with exactly the fields `names`. Raises `MALFORMED`."""
    if not isinstance(value, dict) or value.keys() != names:
        raise ComityError(ErrorCode.MALFORMED, f"{what} must have exactly the fields {', '.join(sorted(names))}")
    return value
