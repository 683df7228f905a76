"""Instants as text: RFC 3339 in UTC, whole seconds, always `YYYY-MM-DDTHH:MM:SSZ`, so that text order is time order."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from comity.wire.errors import ComityError, ErrorCode

_FORM = "%Y-%m-%dT%H:%M:%SZ"
_PATTERN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def to_text(moment: datetime) -> str:
    """Return an aware `moment` as RFC 3339 text, cut to the second."""
    if moment.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return moment.astimezone(UTC).strftime(_FORM)


def parse(text: str) -> datetime:
    """Return the aware instant that `text` names. Raises `MALFORMED`."""
    try:
        if not _PATTERN.fullmatch(text):
            raise ValueError(text)
        return datetime.fromisoformat(text)  # several times as fast as `strptime`, and as strict behind the pattern
    except (ValueError, TypeError) as error:
        raise ComityError(ErrorCode.MALFORMED, "an instant reads YYYY-MM-DDTHH:MM:SSZ") from error


def now() -> datetime:
    """Return the present, aware, in UTC."""
    return datetime.now(UTC)


def now_text() -> str:
    """Return the present as RFC 3339 text."""
    return to_text(now())
