"""What is final, in memory: asked at every order, carried in every seal, waited for before a run begins.

Rules:
1. The journal decides what is final (`store.py`); this is its newest answer, read again at each start.
2. Whoever waits, waits for a bounded time, and the follower is told that somebody does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Connection

from comity.wire.errors import ComityError, ErrorCode
from comity_node.journal import Journal
from comity_node.ledger.pointers import Pointer
from comity_policies.charter import Charter

HEARD_KEPT = 64
FINAL_AGAIN_S = 0.1
FINAL_WITHIN_S = 30.0
FINAL_KNOWN_MAX = 4_096


class Finality:
    """`final` is the newest final checkpoint, `carried` its note as it goes into every seal, `heard` notes that came
    out of seals and are still to be compared, `waiting` how many wait for something to become final, `untold` whether
    there may be an incident that is not signed and sent yet (at first: what an earlier process left).
    """

    def __init__(self) -> None:
        self.final = Pointer()
        self.carried = b""
        self.heard: deque[bytes] = deque(maxlen=HEARD_KEPT)
        self.waiting = 0
        self.final_known: set[str] = set()
        self.untold = True
        self._wake: Callable[[], None] = lambda: None

    def on_news(self, wake: Callable[[], None]) -> None:
        """Call `wake`, from any thread, when something was heard, waits to become final, or is an incident."""
        self._wake = wake

    def take_final(self, pointer: Pointer, carried: bytes) -> None:
        """Go on from another final checkpoint."""
        if pointer.size < self.final.size:
            self.final_known.clear()  # an admin lets this node begin anew
        self.final, self.carried = pointer, carried

    def hear(self, note: bytes) -> None:
        """Take the note that another node's seal carried; it is compared soon. From any thread."""
        if note and note != self.carried and note not in self.heard:
            self.heard.append(note)
            self._wake()

    def saw_incident(self) -> None:
        """Have an incident told at once; in the transaction that notes it, on the journal's thread."""
        self.untold = True
        self._wake()

    def check_age(self, charter: Charter, now: datetime) -> None:
        """Refuse new work while no checkpoint is final, or the newest one is older than the charter allows.

        Raises:
            ComityError: `NOT_FINAL`, `CHECKPOINT_STALE`.
        """
        final, limit_s = self.final, charter.max_checkpoint_age_s
        if not final.size:
            raise ComityError(ErrorCode.NOT_FINAL, "no checkpoint is final yet")
        age_s = int(now.timestamp()) - final.at_s
        if age_s > limit_s:
            detail = "not enough witnesses have cosigned lately: work waits until they do"
            raise ComityError(ErrorCode.CHECKPOINT_STALE, detail, age_s=age_s, limit_s=limit_s)

    def know_final(self, digest: str) -> None:
        """Remember a statement that was found to be final: it stays so."""
        if len(self.final_known) >= FINAL_KNOWN_MAX:
            self.final_known.clear()
        self.final_known.add(digest)

    async def wait_final(self, journal: Journal, check: Callable[[Connection], None]) -> None:
        """Wait until `check` finds everything final, at most `FINAL_WITHIN_S`. Raises what it raises then."""
        deadline = asyncio.get_running_loop().time() + FINAL_WITHIN_S
        self.waiting += 1
        try:
            while True:
                try:
                    await journal.run(check)
                    return
                except ComityError as error:
                    if error.code is not ErrorCode.NOT_FINAL or asyncio.get_running_loop().time() >= deadline:
                        raise
                self._wake()
                await asyncio.sleep(FINAL_AGAIN_S)
        finally:
            self.waiting -= 1
