"""Waiting, for people, until what was sent has come back from the coordinator or was refused.

What was sent is durable: when nothing comes in time, it is still on its way, and the wait simply ends.
"""

from __future__ import annotations

import asyncio

from comity.wire.errors import ComityError
from comity_node.transport.link import Link

WAIT_S = 8.0
HEARD_KEPT = 256


class Echoes:
    """Who waits for which statement or charter (by digest), or for the refusal of which message."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._heard: dict[str, ComityError | None] = {}
        link.on_refusal(self._refused)

    def heard(self, name: str) -> None:
        """Note that the statement, charter or message called `name` has come."""
        self._settle(name, None)

    async def wait(self, digest: str, message_id: str) -> None:
        """Wait until `digest` was heard of; at most `WAIT_S`, and not at all while the stream is down.

        Raises:
            ComityError: the coordinator's refusal of the message.
        """
        names = [name for name in (digest, message_id) if name]
        for name in names:
            if name in self._heard:
                _raise(self._heard[name])
                return
        if not self._link.connected:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for name in names:
            self._waiting.setdefault(name, []).append(future)
        try:
            async with asyncio.timeout(WAIT_S):
                await future
        except TimeoutError:
            return
        finally:
            for name in names:
                self._waiting[name].remove(future)
                if not self._waiting[name]:
                    del self._waiting[name]

    async def _refused(self, message_id: str, kind: str, error: ComityError) -> None:
        if kind in ("charter.propose", "charter.vote"):
            self._settle(message_id, error)

    def _settle(self, name: str, error: ComityError | None) -> None:
        # Kept for whoever begins to wait a moment later: the answer may be quicker than the journal's thread.
        self._heard[name] = error
        while len(self._heard) > HEARD_KEPT:
            self._heard.pop(next(iter(self._heard)))
        for future in self._waiting.get(name, []):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


def _raise(error: ComityError | None) -> None:
    if error is not None:
        raise error
