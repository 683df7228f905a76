"""Who is connected, told to every stream: changes of a moment together.

Rules
1. One change is told at once. Further ones wait until a millisecond a stream has passed: a thousand nodes that come
   back together cost each of them a few frames, not a thousand.
2. A stream that opened anew is told even if its organisation never seemed gone: what was relayed to the old one is
   lost, and its senders repeat it when they hear of the new one.
3. A stream without room for the note ends: it would wait for somebody who is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from comity.v1 import exchange_pb2
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import new_id
from comity_coordinator.transport.model import PRESENCE, from_coordinator, to_wire
from comity_coordinator.transport.session import Session

S_PER_STREAM = 0.001


class PresenceBoard:
    """One per hub. To be used in the event loop only."""

    def __init__(self, sessions: Mapping[str, Session], connected: Callable[[], frozenset[str]]) -> None:
        """`sessions` are the streams that are told; `connected()` returns who is connected here or elsewhere."""
        self._sessions = sessions
        self._connected = connected
        self._changed: set[str] = set()
        self._opened: set[str] = set()
        self._quiet_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, *orgs: str) -> None:
        """Streams opened, perhaps in place of older ones."""
        self._opened.update(orgs)
        self._soon(orgs)

    def ended(self, *orgs: str) -> None:
        """Streams ended."""
        self._soon(orgs)

    def _soon(self, orgs: tuple[str, ...]) -> None:
        self._changed.update(orgs)
        if self._timer is not None or not self._changed:
            return
        loop = asyncio.get_running_loop()
        if loop.time() >= self._quiet_until:
            self._tell()
        else:
            self._timer = loop.call_at(self._quiet_until, self._tell)

    def _tell(self) -> None:
        self._timer = None
        present = self._connected()
        up = sorted(self._opened & present)
        down = sorted(self._changed - present)
        self._changed.clear()
        self._opened.clear()
        self._quiet_until = asyncio.get_running_loop().time() + S_PER_STREAM * len(self._sessions)
        if not up and not down:
            return
        single = [_single(org, here=here) for orgs, here in ((down, False), (up, True)) for org in orgs]
        several = [_several(up, down)] if len(single) > 1 else single
        for session in list(self._sessions.values()):
            if len(single) == 1 and session.org in (*up, *down):
                continue
            for frame in several if session.reads_presence else single:
                if not session.queue.offer(frame):
                    session.end(ComityError(ErrorCode.BUSY, "the node does not read its stream"))
                    break


def _single(org: str, *, here: bool) -> bytes:
    """Return the note that every node reads."""
    return to_wire(from_coordinator(new_id("presence"), PRESENCE, {"org": org, "connected": here}))


def _several(up: list[str], down: list[str]) -> bytes:
    return exchange_pb2.ConnectResponse(presence=exchange_pb2.Presence(connected=up, gone=down)).SerializeToString()
