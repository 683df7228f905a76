"""Instants as text: RFC 3339 in UTC, whole seconds, always `YYYY-MM-DDTHH:MM:SSZ`, so that text order is time order."""

from __future__ import annotations

from datetime import UTC, datetime

from comity.wire.errors import ComityError, ErrorCode

_FORM = "%Y-%m-%dT%H:%M:%SZ"


def to_text(moment: datetime) -> str:
    """Return an aware `moment` as RFC 3339 text, cut to the second."""
    if moment.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return moment.astimezone(UTC).strftime(_FORM)


def parse(text: str) -> datetime:
    """Return the aware instant that `text` names. Raises `MALFORMED`."""
    try:
        return datetime.strptime(text, _FORM).replace(tzinfo=UTC)
    except (ValueError, TypeError) as error:
        raise ComityError(ErrorCode.MALFORMED, "an instant reads YYYY-MM-DDTHH:MM:SSZ") from error


def now() -> datetime:
    """Return the present, aware, in UTC."""
    return datetime.now(UTC)


def now_text() -> str:
    """Return the present as RFC 3339 text."""
    return to_text(now())
