"""Who is at fault: refusals of code that knows no organisations, passed on with the name of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from comity.wire.errors import ComityError


@contextmanager
def naming(**facts: str | int) -> Iterator[None]:
    """Give these facts (`org`, or `holder` as a place in a list) to every `ComityError` that passes."""
    try:
        yield
    except ComityError as error:
        raise ComityError(error.code, error.detail, **facts) from error
