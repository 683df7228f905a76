"""Dropping what runs left here when `retention_s` has passed since their end, and saying so in the ledger.

Rules
1. A run is due `retention_s` of its agreement's terms after its end. An agreement that names no time keeps everything
   until a person deletes it: nothing goes that nobody agreed on.
2. What goes: the run's folder of results with the sums that were opened, the sealed result, and the journal's events
   with their numbers. What stays: digests, counts, times, receipts, and what was agreed.
3. Planned, deleted, on the disk, then recorded with the signed statement in one transaction. After a crash anywhere in
   between it is done again, with the counts of the plan.
4. A clock that shows less than it has shown before deletes nothing until it has caught up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.wire import ids, instants
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement, sign_statement
from comity_node import journal as journals
from comity_node.context import NodeContext
from comity_node.retention import store
from comity_node.training.ports import Agreements
from comity_node.training.service import HeldAgreements
from comity_policies.deletions import DELETION, Deletion

LOOK_EVERY_S = 60.0
RUNS_AT_ONCE_MAX = 256
SHOWN_MAX = 200
# The latest instant that this node's clock has shown to retention.
NEWEST = "retention.newest"
# An instant that no agreement reaches: longer times are as good as for ever.
SPAN_S_MAX = 10 * 366 * 86_400

log = structlog.get_logger("comity.node.retention")


@dataclass(frozen=True, slots=True)
class Due:
    """A run whose data has a last day."""

    run: str
    agreement: str
    ended_at: str
    retention_s: int
    due_at: str

    def to_json(self) -> dict[str, Any]:
        """Return the form of the local API."""
        return {
            "run": self.run,
            "agreement": self.agreement,
            "ended_at": self.ended_at,
            "retention_s": self.retention_s,
            "due_at": self.due_at,
        }


class RetentionService:
    """The capability. Build with `build`."""

    def __init__(self, node: NodeContext, agreements: Agreements) -> None:
        self._node = node
        self._agreements = agreements
        self._working = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look once a minute."""
        self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """End; what was begun is taken up at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def waiting(self) -> list[Due]:
        """Return all runs whose data will go, the next one first."""
        found: list[Due] = []
        after = ""
        while True:  # ends with the runs
            page = await self._node.journal.run(lambda conn, after=after: self._page(conn, after))  # type: ignore[misc]
            if not page:
                return sorted(found, key=lambda each: (each.due_at, each.run))
            after = page[-1][0]
            found.extend(due for _, due in page if due is not None)

    async def run(self) -> list[Deletion]:
        """Drop all that is due; return what was dropped.

        Raises:
            ComityError: `CONFLICT` if the clock was put back; `JOURNAL_UNWRITABLE`.
        """
        async with self._working:
            now = self._node.clock()
            if not await self._node.journal.run(lambda conn: _note_time(conn, now)):
                raise ComityError(ErrorCode.CONFLICT, "the clock was put back: nothing is deleted until it caught up")
            text = instants.to_text(now)
            return [await self._drop(each, text) for each in await self.waiting() if each.due_at <= text]

    async def describe(self) -> dict[str, Any]:
        """Return what will go and what has gone, for the local API."""
        now = self._node.clock()
        rows = await self._node.journal.run(lambda conn: store.done(conn, SHOWN_MAX))
        newest = await self._node.journal.run(lambda conn: journals.mark(conn, NEWEST))
        digests = {run: Statement.from_bytes(said).digest for run, _, _, said in rows}
        proved = await self._node.journal.run(
            lambda conn: {run for run, each in digests.items() if self._node.ledger.included(conn, [each])}
        )
        gone = [
            {"run": run, "deleted_at": at, "counts": counts, "statement": digests[run], "proved": run in proved}
            for run, at, counts, _ in rows
        ]
        text = instants.to_text(now)
        waiting = [{**each.to_json(), "due": each.due_at <= text} for each in (await self.waiting())[:SHOWN_MAX]]
        return {"waiting": waiting, "deleted": gone, "clock_back": newest is not None and text < newest}

    def _page(self, conn: Connection, after: str) -> list[tuple[str, Due | None]]:
        return [(each.run, self._due(conn, each)) for each in store.ended(conn, after, RUNS_AT_ONCE_MAX)]

    def _due(self, conn: Connection, ended: store.Ended) -> Due | None:
        try:
            span_s = self._agreements.find(conn, ended.agreement).agreement.terms.get("retention_s")
        except ComityError:
            return None  # prepared for an agreement that never came here: nothing is held under it
        if span_s is None or span_s > SPAN_S_MAX:
            return None
        due = instants.parse(ended.ended_at) + timedelta(seconds=span_s)
        return Due(ended.run, ended.agreement, ended.ended_at, span_s, instants.to_text(due))

    async def _drop(self, due: Due, now: str) -> Deletion:
        node = self._node
        folder = node.settings.results_folder / ids.name(due.run)
        seen = await asyncio.to_thread(_files_in, folder)

        def begin(conn: Connection) -> tuple[store.Held, dict[str, int]]:
            held = store.held(conn, due.run)
            counts = {"results": seen, "payloads": len(held.files), "events": held.events}
            return held, store.plan(conn, due.run, counts)

        held, counts = await node.journal.run(begin)
        await asyncio.to_thread(_delete, folder, [node.settings.payloads_folder / name for name in held.files])
        said = Deletion(due.agreement, due.run, due.retention_s, due.ended_at, counts, held.digests)

        def record(conn: Connection) -> None:
            signed = sign_statement(
                node.keys,
                kind=DELETION,
                consortium=node.settings.consortium,
                issuer=node.settings.org,
                body=said.to_json(),
                issued_at=now,
            )
            store.drop(conn, due.run, now, signed.to_bytes())
            node.link.send(conn, DELETION, signed, run=due.run)

        await node.journal.run(record)
        log.info("retention.deleted", run=due.run, **counts)
        return said

    async def _keep_looking(self) -> None:
        while True:
            try:
                await self.run()
            except (ComityError, OSError) as error:
                log.warning("retention.waiting", error=str(error))
            await asyncio.sleep(LOOK_EVERY_S)


def _note_time(conn: Connection, now: datetime) -> bool:
    """Note how late it is; False if it was later before."""
    text, newest = instants.to_text(now), journals.mark(conn, NEWEST)
    if newest is not None and text < newest:
        return False
    if text != newest:
        journals.set_mark(conn, NEWEST, text)
    return True


def _files_in(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else 0


def _delete(folder: Path, files: list[Path]) -> None:
    """Delete, and have it on the disk before anybody says so."""
    if folder.exists():
        shutil.rmtree(folder)
    for path in files:
        path.unlink(missing_ok=True)
    for parent in {folder.parent, *(path.parent for path in files)}:
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def build(node: NodeContext) -> RetentionService:
    """Build the capability."""
    service = RetentionService(node, HeldAgreements(node.settings.apps_folder))
    node.link.on_refused(DELETION, lambda conn, body: _refused(node, conn, body))
    node.services.add(service)
    return service


def _refused(node: NodeContext, conn: Connection, body: bytes) -> None:
    """The first word of this organisation on the run stands; its proof is not awaited."""
    log.warning("retention.refused", run=Statement.from_bytes(body).body.get("run"))
    node.ledger.forget(conn, body)
