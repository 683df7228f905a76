"""Instants as text: RFC 3339 in UTC, whole seconds, always `YYYY-MM-DDTHH:MM:SSZ`, so that text order is time order."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from comity.wire.errors import ComityError, ErrorCode

_FORM = "%Y-%m-%dT%H:%M:%SZ"
_PATTERN = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def to_text(moment: datetime) -> str:
    """Return an aware `moment` as RFC 3339 text, cut to the second."""
    if moment.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return moment.astimezone(UTC).strftime(_FORM)


def parse(text: str) -> datetime:
    """Return the aware instant that `text` names, if it is its one spelling. Raises `MALFORMED`."""
    try:
        return _read(text)
    except (ValueError, TypeError) as error:
        raise ComityError(ErrorCode.MALFORMED, "an instant reads YYYY-MM-DDTHH:MM:SSZ") from error


@lru_cache(maxsize=1_024)  # what arrives together was mostly said in the same few seconds
def _read(text: str) -> datetime:
    if not _PATTERN.fullmatch(text):
        raise ValueError(text)
    moment = datetime.fromisoformat(text)  # several times as fast as `strptime`, and as strict behind the pattern
    if to_text(moment) != text:
        raise ValueError(text)
    return moment


def from_epoch_s(seconds: float) -> datetime:
    """Return the aware instant so many seconds after the beginning of 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def now() -> datetime:
    """Return the present, aware, in UTC."""
    return datetime.now(UTC)


def now_text() -> str:
    """Return the present as RFC 3339 text."""
    return to_text(now())
