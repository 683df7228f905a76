"""Is this caller admitted now? Asked at every RPC and every message: answered from memory while nothing changed.

`Database.change_counter` differs after any commit, also one of another process (`comity coordinator revoke`), so a
revocation is seen at the next question. Where the engine has no such counter, each question reads the database.
"""

from __future__ import annotations

from functools import partial

from comity_coordinator.db import Database
from comity_coordinator.membership import store
from comity_coordinator.membership.model import Presented, Standing, judge_certificate
from comity_coordinator.transport.identity import Peer


class Registry:
    """The standing of every organisation, as the database has it at this moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counter: int | None = None
        self._known: dict[str, Standing | None] = {}

    async def admit(self, peer: Peer) -> None:
        """Let an organisation's certificate pass.

        Raises:
            ComityError: `NOT_A_MEMBER`, `REVOKED`, or `CERTIFICATE_INVALID` (expired, or replaced by a newer one).
        """
        peer.check_dates()
        org = peer.name
        counter = self._database.change_counter()
        if counter is None or counter != self._counter:
            self._known.clear()
            self._counter = counter
        if org not in self._known:
            standing = await store.standing_now(self._database, org)
            if self._counter == counter:
                self._known[org] = standing
        else:
            standing = self._known[org]
        if judge_certificate(standing, peer.serial) is Presented.NEXT:
            await self._database.run(partial(store.promote_serial, org=org, serial=peer.serial))
