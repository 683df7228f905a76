"""Putting checkpoints to the witnesses, and publishing them with their cosignatures (ledger.md section 2).

Rules:
1. all witnesses are asked about the same checkpoint, a *round*: cosignatures of different ones add up to nothing;
2. a round is opened a moment after something was entered, at most one a second, so that what comes together shares it;
   the next one is opened once it is final, or after `GIVEN_UP_S` without enough witnesses. Words of a negotiation wait
   for what follows them, `PATIENT_S` at most: nothing rests on them alone;
3. a cosignature counts only by the key that the charter in force names, for a note that this log made;
4. whoever asks gets the newest final note, and everybody connected is told of it. Nothing here has to be believed:
   nodes judge the cosignatures by their own charter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from comity.wire import instants
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.db import Database
from comity_coordinator.ledger import store, witness_store
from comity_crypto.notes import only_line, verify_cosignature, with_lines
from comity_policies.charter import Charter
from comity_policies.charter_witnesses import judge

ROUND_EVERY_S = 1.0
GATHER_S = 0.2
LOOK_EVERY_S = 1.0
GIVEN_UP_S = 3
PATIENT_S = 5
PATIENT_KINDS = ("proposal", "answer", "counter-acceptance")
ROUNDS_KEPT = 64
# A witness whose clock is ahead by more than this does not count: its time would make the ledger look fresh.
CLOCK_SKEW_S = 120
ASKED = "ledger.asked"
FINAL = "ledger.final"

Tell = Callable[[str, str, dict[str, Any]], bool]
CharterOf = Callable[[Connection], Charter | None]
log = structlog.get_logger("comity.witnesses")


@dataclass(frozen=True, slots=True)
class Notes:
    """What is put to witnesses now, and what is final: sizes and notes with their cosignatures; 0 and "" for none."""

    asked_size: int = 0
    asked: str = ""
    final_size: int = 0
    final: str = ""


class Witnessing:
    """One log's rounds. Methods that take `conn` run inside the caller's transaction and may run again."""

    def __init__(self, charter_of: CharterOf, clock: Callable[[], float] = time.time) -> None:
        """`charter_of(conn)` returns the charter in force; `clock` the time in seconds since 1970."""
        self._charter_of = charter_of
        self._clock = clock

    def notes(self, conn: Connection) -> Notes:
        """Return what nodes are shown."""
        newest, final = witness_store.newest(conn), witness_store.newest_final(conn)
        if newest is None or self._charter(conn) is None:
            return Notes()
        asked = self._note(conn, newest.size)
        if final is None:
            return Notes(newest.size, asked)
        return Notes(newest.size, asked, final.size, self._note(conn, final.size))

    def due(self, conn: Connection) -> int:
        """Return the size of the checkpoint to put to witnesses now, 0 for none (rule 2); the pace is the caller's."""
        charter, head = self._charter(conn), store.newest_checkpoint(conn)
        if charter is None or head is None:
            return 0
        last = witness_store.newest(conn)
        if last is not None and last.size >= head.size:
            return 0
        if last is None:
            return head.size
        waits = last.final_at is None and last.asked_at > self._ago(GIVEN_UP_S)
        if not waits and not store.has_other_than(conn, PATIENT_KINDS, last.size):
            since = store.made_after(conn, last.size)
            waits = since is not None and since > self._ago(PATIENT_S)
        return 0 if waits else head.size

    def open_round(self, conn: Connection) -> bool:
        """Put the newest checkpoint to the witnesses, if it is time."""
        size = self.due(conn)
        if size:
            witness_store.open_round(conn, size, self._now(), ROUNDS_KEPT)
        return size > 0

    def take(self, conn: Connection, org: str, size: int, line: str) -> bool:
        """Take a cosignature; returns whether its checkpoint is final.

        Raises:
            ComityError: `FORBIDDEN` if `org` is no witness; `NOT_FOUND` if nobody was asked about that checkpoint;
                `MALFORMED`, `SIGNATURE_INVALID`; `DEADLINE_PASSED` if its clock is far ahead.
        """
        charter = self._charter(conn)
        rule = None if charter is None else charter.witness_rule
        if charter is None or rule is None or org not in rule.orgs:
            raise ComityError(ErrorCode.FORBIDDEN, "the charter in force does not name this organisation as a witness")
        asked = witness_store.of_size(conn, size)
        head = None if asked is None else store.checkpoint(conn, size)
        if asked is None or head is None or len(line) > witness_store.LINE_CHARS_MAX:
            raise ComityError(ErrorCode.NOT_FOUND, "witnesses were not asked about this checkpoint", size=size)
        cosigned = with_lines(head.note, [line])
        only_line(cosigned, head.note)
        signed_s = verify_cosignature(cosigned, org, charter.member(org).keys.statement)
        latest_s = int(self._clock()) + CLOCK_SKEW_S
        if signed_s > latest_s:
            raise ComityError(ErrorCode.DEADLINE_PASSED, "the witness's clock is ahead", signed_s=signed_s)
        witness_store.put(conn, size, org, line, signed_s)
        keys = {name: charter.member(name).keys.statement for name in rule.orgs}
        found = judge(self._note(conn, size), charter.log_name, charter.log_public_key, rule, keys, latest_s=latest_s)
        if found.final and asked.final_at is None:
            witness_store.set_final(conn, size, self._now())
        return found.final

    def witnesses(self, conn: Connection) -> tuple[str, ...]:
        """Return who is asked to cosign."""
        charter = self._charter(conn)
        rule = None if charter is None else charter.witness_rule
        return () if rule is None else rule.orgs

    def _note(self, conn: Connection, size: int) -> str:
        row = store.checkpoint(conn, size)
        if row is None:
            raise ComityError(ErrorCode.LEDGER_INVALID, "a checkpoint that was put to witnesses is gone", size=size)
        return with_lines(row.note, witness_store.lines(conn, size))

    def _charter(self, conn: Connection) -> Charter | None:
        """Return the charter in force if it names witnesses; None while it names another coordinator's log."""
        try:
            charter = self._charter_of(conn)
        except ComityError as error:
            if error.code is not ErrorCode.CHARTER_INVALID:
                raise
            return None
        return None if charter is None or charter.witnesses is None else charter

    def _ago(self, seconds: float) -> str:
        return instants.to_text(instants.from_epoch_s(self._clock() - seconds))

    def _now(self) -> str:
        return instants.to_text(instants.from_epoch_s(self._clock()))


class Rounds:
    """The task that opens rounds and tells nodes of them; one per coordinator process."""

    def __init__(self, db: Database, witnessing: Witnessing, tell: Tell, present: Callable[[], Iterable[str]]) -> None:
        """`tell(org, kind, body)` says a word that nothing keeps; `present()` returns who is connected."""
        self._db = db
        self.witnessing = witnessing
        self._tell = tell
        self._present = present
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = (0, 0)
        self._opened_at = -ROUND_EVERY_S

    def wake(self) -> None:
        """Look soon; from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                with contextlib.suppress(TimeoutError):  # what another coordinator on this database did is seen so
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self._look()
                except (ComityError, SQLAlchemyError) as error:
                    log.error("round.failed", error=type(error).__name__, code=str(getattr(error, "code", "")))
        finally:
            self._loop = None

    async def _look(self) -> None:
        """Publish what is new; open a round if one is due and the last one was opened long enough ago."""
        loop = asyncio.get_running_loop()
        if not await self._publish():
            return
        left_s = ROUND_EVERY_S - (loop.time() - self._opened_at)
        if left_s > 0:
            loop.call_later(left_s, self._wake.set)
            return
        await asyncio.sleep(GATHER_S)
        if await self._db.run(self.witnessing.open_round):
            self._opened_at = loop.time()
            await self._publish()

    async def _publish(self) -> bool:
        """Tell nodes what they were not told; returns whether a round is due."""
        notes, witnesses, due = await self._db.run(self._read)
        asked, final = self._told
        present = set(self._present())
        if notes.asked_size > asked:
            for org in present & set(witnesses):
                self._tell(org, ASKED, {"note": notes.asked})
        if notes.final_size > final:
            for org in present:
                self._tell(org, FINAL, {"note": notes.final})
        self._told = (max(asked, notes.asked_size), max(final, notes.final_size))
        return due > 0

    def _read(self, conn: Connection) -> tuple[Notes, tuple[str, ...], int]:
        found = self.witnessing
        return found.notes(conn), found.witnesses(conn), found.due(conn)
