"""What a failed transaction means: whether it may run again, and for how long it is tried.

Rules
1. The whole transaction runs again, never a statement of it: after SQLSTATE 40001 or 40P01 nothing it read counts.
2. A connection that was lost before the commit was asked for left nothing behind, so the transaction runs again. One
   that was lost at the commit may have left everything: the caller is told so, and whoever asked asks again under the
   same id (messages and statements are known by theirs).
3. A unique value that is taken may be another transaction's that ran at the same moment: PostgreSQL reports that before
   it sees the conflict. Few tries tell it from a defect.
4. Tries and time are bounded, pauses grow and are drawn at random, or those who met would meet again.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from enum import Enum

from sqlalchemy.exc import DBAPIError

UNIQUE_TRIES_MAX = 3
_CAUSES_MAX = 8
_CONFLICT_STATES = frozenset({"40001", "40P01"})
_UNIQUE_STATE = "23505"
# CockroachDB's "result is ambiguous": the node that committed, or did not, is out of reach.
_AMBIGUOUS_STATE = "40003"
# The server stops, crashed, or starts; class 08 is the connection itself.
_GONE_STATES = frozenset({"57P01", "57P02", "57P03"})


class Failure(Enum):
    """Why a transaction failed."""

    CONFLICT = "conflict"
    TAKEN = "taken"
    LOST = "lost"
    UNKNOWN = "unknown"
    OTHER = "other"


def failure(error: DBAPIError) -> Failure:
    """Classify an error, or what it hides: undoing a savepoint may fail after the conflict that made it necessary."""
    found = Failure.OTHER
    for each in _causes(error):
        found = _one(each)
        if found is not Failure.OTHER:
            return found
    return found


def _causes(error: DBAPIError) -> Iterator[DBAPIError]:
    each: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if each is None:
            return
        if isinstance(each, DBAPIError):
            yield each
        each = each.__cause__ if isinstance(each.__cause__, DBAPIError) else each.__context__


def _one(error: DBAPIError) -> Failure:
    state = getattr(error.orig, "sqlstate", None)
    if state in _CONFLICT_STATES:
        return Failure.CONFLICT
    if state == _UNIQUE_STATE:
        return Failure.TAKEN
    if state == _AMBIGUOUS_STATE:
        return Failure.UNKNOWN
    if isinstance(error.orig, sqlite3.Error):
        locked = isinstance(error.orig, sqlite3.OperationalError) and "locked" in str(error.orig)
        return Failure.CONFLICT if locked else Failure.OTHER
    if error.connection_invalidated or state in _GONE_STATES or (state or "").startswith("08"):
        return Failure.LOST
    # The driver has no state for a server that does not answer.
    return Failure.LOST if state is None and type(error.orig).__name__ == "OperationalError" else Failure.OTHER


class Budget:
    """Counts the tries of one transaction; `tries_max` and `time_s` bound them, whichever is spent first."""

    def __init__(self, tries_max: int, time_s: float, base_s: float, cap_s: float) -> None:
        self.tries = 0
        self._tries_max, self._base_s, self._cap_s = tries_max, base_s, cap_s
        self._until = time.monotonic() + time_s

    def spend(self, why: Failure) -> float | None:
        """Count a failed try; return the pause before the next one in seconds, or None if there shall be none."""
        self.tries += 1
        most = min(self._tries_max, UNIQUE_TRIES_MAX) if why is Failure.TAKEN else self._tries_max
        if why in (Failure.OTHER, Failure.UNKNOWN) or self.tries >= most:
            return None
        longest_s = min(self._cap_s, self._base_s * 2 ** (self.tries - 1))
        pause_s = longest_s * (0.5 + random.random() / 2)  # noqa: S311 - jitter, not a secret
        return pause_s if time.monotonic() + pause_s < self._until else None
