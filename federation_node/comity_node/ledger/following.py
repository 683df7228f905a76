"""Keeping up with the log: read it, cosign it where this organisation is a witness, learn what is final.

Rules (ledger.md section 2):
1. On news of a checkpoint, and every 10 s with jitter, the newest one is asked for. One that is smaller than what was
   read before, or another one of the same size, is an incident.
2. A witness cosigns only what it has read to the end and found in order; never anything smaller than it cosigned
   before, which its journal remembers; nothing while an incident is open or an entry that it insists on is withheld.
3. A checkpoint counts as final by the witness rule of the charter in force here, if it lies on the history read here.
4. What is seen is signed and handed to the ledger at once: other members read it there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection

from comity.v1 import ledger_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.notes import Checkpoint, cosign_note, log_part, only_line
from comity_crypto.statements import Statement, sign_statement
from comity_node.context import NodeContext
from comity_node.ledger import incidents, pointers
from comity_node.ledger.pointers import Pointer
from comity_node.ledger.reading import Broken, Read, Reader
from comity_node.ledger.store import Seen
from comity_node.transport import store as link_store
from comity_node.transport.dial import ask
from comity_policies.charter import Charter
from comity_policies.charter_witnesses import Witnessed, judge
from comity_policies.incidents import INCIDENT, Incident, proves_fork

LOOK_EVERY_S = 10.0
JITTER = 0.2
# Somebody here waits for finality and the news may have been lost.
LOOK_AGAIN_S = 1.0
# A witness confirms an idle log again after this long, or a quarter of what the charter allows.
CONFIRM_AFTER_S = 60.0
# An entry that was promised and is not there after this long, while the log goes on, is withheld.
WITHHELD_AFTER_S = 30
CLOCK_SKEW_S = 120
log = structlog.get_logger("comity.node.ledger")

ReadNote = Callable[[str], Checkpoint]


class Follower:
    """One task of the ledger's service. `read_note` verifies the log's signature by the charter in force."""

    def __init__(self, node: NodeContext, reader: Reader, read_note: ReadNote, compare: Callable[[], None]) -> None:
        """`compare` has checkpoints compared that are seen and not proved."""
        self._node = node
        self._store = node.ledger
        self._reader = reader
        self._read_note = read_note
        self._compare = compare
        self._wake = asyncio.Event()
        self._asked = self._final = ""
        self._looked_at = -LOOK_EVERY_S
        self._sent: tuple[int, int] = (0, 0)
        self._stale_told = False

    # -- what wakes it

    def wake(self) -> None:
        """Look at once, with a question to the coordinator."""
        self._looked_at = -LOOK_EVERY_S
        self._wake.set()

    def news(self, *, asked: str = "", final: str = "") -> None:
        """Take a note that the coordinator told of."""
        self._asked, self._final = asked or self._asked, final or self._final
        self._wake.set()

    def heard(self) -> None:
        """Look soon: something came out of a seal, or somebody waits."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            pause_s = LOOK_EVERY_S * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - jitter, not a secret
            try:
                async with asyncio.timeout(max(0.05, self._looked_at + pause_s - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                self._looked_at = -LOOK_EVERY_S
            self._wake.clear()
            since_s = loop.time() - self._looked_at
            poll = since_s >= LOOK_EVERY_S or (self._store.waiting > 0 and since_s >= LOOK_AGAIN_S)
            if poll:
                self._looked_at = loop.time()
            try:
                await self.look(poll=poll)
            except ComityError as error:
                log.info("ledger.look_later", error=str(error))

    # -- one look

    async def look(self, *, poll: bool) -> None:
        """Take the news; with `poll`, ask for the newest checkpoint. Raises transport errors."""
        charter = self._node.charters.current()
        if charter is None or not self._node.link.connected:
            return
        try:
            await self._look(charter, poll=poll)
        finally:
            while self._store.untold:  # told whatever became of the rest; ends with what was seen, or with an error
                await self._tell()

    async def _look(self, charter: Charter, *, poll: bool) -> None:
        await self._take_heard()
        asked, final = self._asked, self._final
        self._asked = self._final = ""
        newest = ""
        if poll:
            found = await ask(self._node.dialer.ledger().GetCheckpoint, ledger_pb2.GetCheckpointRequest())
            newest, asked, final = found.note, found.asked or asked, found.final or final
        elif not self._is_witness(charter) and not self._store.waiting:
            return  # whoever is no witness keeps up at its own pace
        notes = {note: self._read_note(note) for note in (newest, asked, final) if note}
        if not notes:
            return  # woken by a seal, or by somebody who waits
        try:
            if newest:
                await self._check_newest(notes[newest], newest)
            await self._advance(notes)
            for note, checkpoint in notes.items():
                await self._place(checkpoint, note)
            if poll:
                await self._miss()
        except Broken as broken:
            await self._raise(broken)
        if final:
            await self._finalise(charter, final)
        if asked:
            await self._cosign(charter, notes[asked], asked)
        if poll:
            await self._check_age(charter)

    def _is_witness(self, charter: Charter) -> bool:
        rule = charter.witness_rule
        return rule is not None and self._node.settings.org in rule.orgs

    async def _take_heard(self) -> None:
        """Put notes that came out of seals beside those of the coordinator: all have to be of one history."""
        heard = self._store.heard
        pending = False
        while heard:
            note = heard.popleft().decode("utf-8", "replace")
            try:
                checkpoint = self._read_note(note)
            except ComityError as error:
                log.info("ledger.note_refused", error=str(error))  # of another log, before or after a change
                continue
            seen = Seen(checkpoint.size, checkpoint.root, note)
            pending |= await self._node.journal.run(partial(self._store.see, seen=seen))
        if pending:
            self._compare()

    async def _check_newest(self, checkpoint: Checkpoint, note: str) -> None:
        """Refuse an older log than this node has read. Raises `Broken`."""
        followed = await self._pointer(pointers.FOLLOWED)
        if checkpoint.size < followed.size:
            detail = f"the coordinator shows {checkpoint.size} entries, and {followed.size} were there already"
            raise Broken("rollback", detail, followed.note, note)

    async def _advance(self, notes: dict[str, Checkpoint]) -> None:
        """Read up to the largest checkpoint. Raises `Broken`."""
        if not notes:
            return
        note, checkpoint = max(notes.items(), key=lambda each: each[1].size)
        followed = await self._pointer(pointers.FOLLOWED)
        if checkpoint.size < followed.size:
            return
        if (checkpoint.size, checkpoint.root) == (followed.size, followed.root):
            if self._now_s() - followed.at_s >= CONFIRM_AFTER_S:
                again = replace(followed, at_s=self._now_s())
                await self._node.journal.run(lambda conn: pointers.put(conn, pointers.FOLLOWED, again))
            return
        if checkpoint.size == followed.size:
            return  # `_place` finds the fork
        found = await self._reader.read(followed, checkpoint, note)
        await self._reader.hand_on(found)
        pointer = Pointer(checkpoint.size, checkpoint.root, note, self._now_s(), b"".join(found.tree.peaks()))
        seen = Seen(checkpoint.size, checkpoint.root, note)
        await self._node.journal.run(partial(self._followed, pointer=pointer, seen=seen, found=found))
        for odd in found.odd:
            await self._raise(odd)

    def _followed(self, conn: Connection, pointer: Pointer, seen: Seen, found: Read) -> None:
        pointers.put(conn, pointers.FOLLOWED, pointer)
        self._store.read(conn, seen, found.places)

    async def _place(self, checkpoint: Checkpoint, note: str) -> None:
        """Put a checkpoint that is smaller than what was read on the history, by proof. Two roots are a fork."""
        seen = Seen(checkpoint.size, checkpoint.root, note)
        if await self._node.journal.run(partial(self._store.see, seen=seen)):
            self._compare()

    async def _miss(self) -> None:
        """Look for what this node insists on. Raises `Broken` for what is withheld."""
        now_s = self._now_s()

        def look(conn: Connection) -> list[tuple[str, str]]:
            late, insisted = [], pointers.insisted(conn)
            waiting = link_store.waiting_digests(conn) if insisted else set()
            for digest, what, missed_s in insisted:
                if digest in waiting:
                    continue  # not handed in yet
                if missed_s is None:
                    pointers.missed(conn, digest, now_s)
                elif now_s - missed_s >= WITHHELD_AFTER_S:
                    late.append((digest, what))
            return late

        late = await self._node.journal.run(look)
        if late:
            digest, what = late[0]
            followed = await self._pointer(pointers.FOLLOWED)
            raise Broken("withheld", f"{what} {digest} is not in the ledger", followed.note, digest)

    # -- cosigning

    async def _cosign(self, charter: Charter, checkpoint: Checkpoint, note: str) -> None:
        """Cosign what the witnesses are asked about, if rule 2 permits."""
        if not self._is_witness(charter):
            return
        size, at_s = self._sent
        confirm_s = min(CONFIRM_AFTER_S, charter.max_checkpoint_age_s / 4)
        if checkpoint.size == size and 0 <= self._now_s() - at_s < confirm_s:
            return
        base, me = log_part(note, charter.log_name), self._node.settings.org
        pointer = Pointer(checkpoint.size, checkpoint.root, base, self._now_s())
        if not await self._node.journal.run(partial(self._may_cosign, pointer=pointer)):
            return
        line = only_line(cosign_note(base, me, self._node.keys, pointer.at_s), base)
        request = ledger_pb2.AddCosignatureRequest(size=checkpoint.size, line=line)
        await ask(self._node.dialer.witness().AddCosignature, request)
        self._sent = (checkpoint.size, pointer.at_s)

    def _may_cosign(self, conn: Connection, pointer: Pointer) -> bool:
        """Tell whether rule 2 permits, and remember that it was done, before anybody hears of it."""
        before = pointers.get(conn, pointers.COSIGNED)
        if self._store.alarms(conn) or pointer.size < before.size:
            return False
        if pointer.size == before.size and pointer.root != before.root:
            return False
        if not self._store.lies_on(conn, pointer.size, pointer.root):
            return False
        return pointers.put(conn, pointers.COSIGNED, pointer)

    # -- finality

    async def _finalise(self, charter: Charter, note: str) -> None:
        judged = self.judge(charter, note)
        if not judged.final:
            return
        checkpoint = judged.checkpoint
        pointer = Pointer(checkpoint.size, checkpoint.root, note, judged.at_s)

        def write(conn: Connection) -> bool:
            if self._store.alarms(conn) or not self._store.lies_on(conn, pointer.size, pointer.root):
                return False
            return pointers.put(conn, pointers.FINAL, pointer)

        if await self._node.journal.run(write):
            self._store.take_final(pointer, note.encode())
            self._stale_told = False

    def judge(self, charter: Charter, note: str) -> Witnessed:
        """Judge a note by the witness rule of a charter. Raises `SIGNATURE_INVALID`, `MALFORMED`."""
        rule = charter.witness_rule
        keys = {org: charter.member(org).keys.statement for org in (() if rule is None else rule.orgs)}
        latest_s = self._now_s() + CLOCK_SKEW_S
        return judge(note, charter.log_name, charter.log_public_key, rule, keys, latest_s=latest_s)

    async def _check_age(self, charter: Charter) -> None:
        """Tell everybody once that nothing has become final for too long."""
        if charter.witnesses is None:
            return
        try:
            self._store.check_age(charter, self._node.clock())
        except ComityError as error:
            if error.code is ErrorCode.CHECKPOINT_STALE and not self._stale_told:
                self._stale_told = True
                final = self._store.final
                detail = f"the newest final checkpoint, of {final.size} entries, is too old: {error.facts}"
                await self._raise(Broken("stale", detail[:400], final.note))

    # -- incidents

    async def on_incident(self, statement: Statement) -> None:
        """Keep what another member saw; what its evidence proves is an incident of ours. Raises `MALFORMED`."""
        incident, org = Incident.from_json(statement.body), statement.issuer
        if org == self._node.settings.org:
            return
        charter = self._node.charters.in_force()
        await self._node.journal.run(lambda conn: incidents.report(conn, org, incident))
        if proves_fork(incident, charter.log_name, charter.log_public_key):
            await self._raise(Broken("fork", f"{org} proved that the log showed two histories", *incident.evidence))

    async def _raise(self, broken: Broken) -> None:
        def write(conn: Connection) -> bool:
            return self._store.alarm(conn, broken.detail, *broken.evidence, kind=broken.kind)

        if await self._node.journal.run(write):
            log.error("ledger.incident", kind=broken.kind, detail=broken.detail)

    async def _tell(self) -> None:
        """Sign what was seen and hand it to the ledger; other members read it there (rule 4)."""
        for seen in await self._node.journal.run(self._untold):
            body: dict[str, Any] = seen.incident.to_json()
            settings = self._node.settings
            statement = sign_statement(
                self._node.keys, kind=INCIDENT, consortium=settings.consortium, issuer=settings.org, body=body
            )

            def write(conn: Connection, statement: Statement = statement, known: str = seen.id) -> None:
                self._node.link.send(conn, INCIDENT, statement)
                incidents.told(conn, known)

            await self._node.journal.run(write)

    def _untold(self, conn: Connection) -> list[incidents.Seen]:
        found = incidents.untold(conn)
        self._store.untold = bool(found)  # on the journal's thread, as whatever sets it
        return found

    async def _pointer(self, name: str) -> Pointer:
        return await self._node.journal.run(lambda conn: pointers.get(conn, name))

    def _now_s(self) -> int:
        return int(self._node.clock().timestamp())
