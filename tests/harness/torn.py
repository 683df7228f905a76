"""Every transaction meets a conflict at every place where it can: ledger.md section 3 asks that none minds.

`tear` changes one database so that each function given to `transact` (also through `run` and `Together`)
1. runs once and is undone: its result and every row of the database as it left them are what is expected;
2. runs again and again, and meets SQLSTATE 40001 at its first statement, its second, … and at its commit;
3. runs undisturbed, in the same call of `transact`: result and rows must be those of 1.
Chance and the clock stand still meanwhile, or no two runs would be alike. Long functions meet `PLACES_MAX` conflicts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pickle
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection, event, select
from sqlalchemy.exc import DBAPIError

from comity.wire import instants
from comity.wire.errors import ComityError
from comity_coordinator import db as db_module
from comity_coordinator.db import Database, metadata
from comity_coordinator.membership.service import Invitation
from comity_crypto.tokens import JoinToken

PLACES_MAX = 30
# Made by chance inside OpenSSL, which does not stand still: other bytes at each run.
# A place in the queue goes on counting; its order is looked at.
BY_CHANCE = {"place", "certificate_pem", "serial", "next_serial", "certificate_fingerprint"}
_one_at_a_time = threading.RLock()


class _ConflictError(Exception):
    sqlstate = "40001"


class _UndoError(Exception):
    pass


def _conflict() -> DBAPIError:
    return DBAPIError("injected", {}, _ConflictError())


class _Injector:
    """Counts the statements of a transaction and fails the one it is told to, in the thread that asked."""

    def __init__(self, database: Database) -> None:
        self._here = threading.local()
        event.listen(database.engine, "before_cursor_execute", self._before)

    @contextmanager
    def at(self, place: int | None) -> Iterator[Callable[[], int]]:
        self._here.count, self._here.place, self._here.fired = 0, place, False
        try:
            yield lambda: int(self._here.count)
        finally:
            self._here.place = self._here.count = None

    def _before(self, *_: Any) -> None:
        count = getattr(self._here, "count", None)
        if count is None:
            return
        self._here.count = count + 1
        if count == self._here.place:
            self._here.fired = True
            raise _conflict()

    @property
    def fired(self) -> bool:
        return bool(self._here.fired)


def twice(database: Database) -> None:
    """Let each transaction of `database` fail once at its commit, as CockroachDB may."""
    real = database.transact

    def transact(fn: Callable[[Connection], Any]) -> Any:
        def loses(conn: Connection) -> None:
            fn(conn)
            raise _UndoError

        with suppress(_UndoError):
            real(loses)
        return real(fn)

    database.transact = transact  # type: ignore[method-assign]


def tear(database: Database, places_max: int = PLACES_MAX) -> None:
    """Let every transaction of `database` meet its conflicts, from now on."""
    injector, real = _Injector(database), database.transact

    def transact(fn: Callable[[Connection], Any]) -> Any:
        with _one_at_a_time, _still():
            found, expected, statements = _undisturbed(real, injector, fn)
            places = iter([*_spread(statements, places_max), None])
            seen: list[Any] = []

            def again(conn: Connection) -> Any:
                place = next(places)
                _still.restart()
                before = _rows(conn) if place is None else b""
                with injector.at(place):
                    outcome = _outcome(fn, conn)
                assert not injector.fired, f"{fn} went on after a conflict"
                if place is not None:
                    raise _conflict()  # the place is the commit
                if before == found:  # else another process was here meanwhile: nothing can be compared
                    seen.append((_plain(outcome), _rows(conn)))
                return _open(outcome)

            try:
                return real(again)
            finally:
                if seen:  # else something went wrong before, and says so
                    assert seen[0] == expected, f"{fn} is not repeatable"

    database.transact = transact  # type: ignore[method-assign]


def _undisturbed(
    real: Callable[..., Any], injector: _Injector, fn: Callable[[Connection], Any]
) -> tuple[bytes, Any, int]:
    """Return the rows before, what `fn` comes to with the rows after, and how many statements it made."""
    found: list[Any] = []

    def once(conn: Connection) -> None:
        found.clear()
        before = _rows(conn)
        _still.restart()
        with injector.at(None) as count:
            outcome = _outcome(fn, conn)
            statements = count()
        found.extend((before, (_plain(outcome), _rows(conn)), statements))
        raise _UndoError

    with suppress(_UndoError):
        real(once)
    return found[0], found[1], found[2]


def _outcome(fn: Callable[[Connection], Any], conn: Connection) -> tuple[str, Any]:
    try:
        return "returned", fn(conn)
    except DBAPIError:
        raise
    except Exception as error:  # noqa: BLE001 - part of what it does
        return "raised", error


def _open(outcome: tuple[str, Any]) -> Any:
    how, value = outcome
    if how == "raised":
        raise value
    return value


def _plain(outcome: tuple[str, Any]) -> Any:
    """What can be compared: a result's own equality is often identity."""
    how, value = outcome
    if how == "raised":
        return how, type(value).__name__, str(value.code) if isinstance(value, ComityError) else str(value)
    return how, _form(value)


def _form(value: Any) -> Any:
    if isinstance(value, JoinToken | Invitation):
        return "token", value.token_id, value.org  # the rest is a key and what is signed over it
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return type(value).__name__, tuple((name, _form(each)) for name, each in pairs if name not in BY_CHANCE)
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    if isinstance(value, dict):
        return tuple((key, _form(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(_form(each) for each in value)
    if isinstance(value, bytes | str) and (b"CERTIFICATE" if isinstance(value, bytes) else "CERTIFICATE") in value:
        return "a certificate"
    if isinstance(value, str | bytes | int | float | bool | frozenset | set | type(None)):
        return value
    return type(value).__name__


def _rows(conn: Connection) -> bytes:
    """A digest of every row of every table, and of which table it is."""
    found = hashlib.sha256()
    for table in metadata.sorted_tables:
        columns = [column for column in table.columns if column.name not in BY_CHANCE]
        rows = conn.execute(select(*columns).order_by(*table.primary_key.columns)).all()
        found.update(pickle.dumps((table.name, [tuple(row) for row in rows])))
    return found.digest()


def _spread(statements: int, places_max: int) -> list[int]:
    """Up to `places_max` places from the first statement to the commit (`statements`), both among them."""
    if statements < places_max:
        return list(range(statements + 1))
    return sorted({round(step * statements / (places_max - 1)) for step in range(places_max)})


class _Still:
    """The clock shows one instant and chance one sequence, as often as it is begun again."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._base_ns = time.time_ns()
        self._unique = secrets.token_hex

    def restart(self) -> None:
        self._numbers = itertools.count()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        now, ns, salt = instants.now(), time.time_ns(), self._unique(8)

        def token_hex(size_bytes: int = 32) -> str:
            made = f"{salt}-{next(self._numbers)}"
            return hashlib.sha512(made.encode()).hexdigest()[: 2 * size_bytes]

        def randbits(bits: int) -> int:
            return int(token_hex(64), 16) % (1 << bits)

        with (
            patch.object(instants, "now", lambda: now),
            patch.object(secrets, "token_hex", token_hex),
            patch.object(secrets, "randbits", randbits),
            patch.object(time, "time_ns", lambda: ns),
            patch.object(db_module, "RETRIES_MAX", 10**6),
            patch.object(db_module, "RETRY_BASE_S", 0.0),
            patch.object(db_module, "RETRY_TIME_S", 300.0),
        ):
            yield


_still = _Still()
