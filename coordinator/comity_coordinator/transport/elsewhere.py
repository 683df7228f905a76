"""The seam between the hub and other replicas of this coordinator (`comity_coordinator.replicas`).

Rules: nothing here waits or raises; what another replica does not take is lost, as on a stream that broke, and whoever
sent it sends it again. Durable messages need none of it: they are in the database, and this only has them looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import Connection

from comity_coordinator.transport.model import Message


class Elsewhere(Protocol):
    """What the hub asks of and tells the other replicas."""

    def connected(self) -> frozenset[str]:
        """Return the organisations whose stream is open at another replica."""

    def claim(self, conn: Connection, org: str) -> int:
        """Note, in the transaction of `conn`, that the stream of `org` is here now; return its epoch."""

    def opened(self, org: str) -> None:
        """The stream of `org` is open here."""

    def ended(self, org: str) -> None:
        """The stream of `org` has ended here."""

    async def observer_of(self, run: str) -> str:
        """Return the replica that keeps the state of a run's sums; "" for this one."""

    def hand_on(self, message: Message, frame: bytes, orgs: Iterable[str], observer: str) -> list[str]:
        """Send a relayed frame to those of `orgs` that are elsewhere, and to `observer`; return who had no room."""

    def tell(self, org: str, frame: bytes) -> bool:
        """Send a word of the coordinator; say whether the link to where `org` is took it."""

    def wake(self, orgs: Iterable[str]) -> None:
        """Something was enqueued for `orgs`."""

    def drop(self, org: str) -> None:
        """The stream of `org` must end, wherever it is."""


class Alone:
    """Implements `Elsewhere` for a coordinator without replicas."""

    def connected(self) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def claim(self, conn: Connection, org: str) -> int:
        """There is nobody to contest it."""
        return 0

    def opened(self, org: str) -> None:
        """Nobody to tell."""

    def ended(self, org: str) -> None:
        """Nobody to tell."""

    async def observer_of(self, run: str) -> str:
        """This one."""
        return ""

    def hand_on(self, message: Message, frame: bytes, orgs: Iterable[str], observer: str) -> list[str]:
        """Who is not here is nowhere."""
        return []

    def tell(self, org: str, frame: bytes) -> bool:
        """Nobody is elsewhere."""
        return False

    def wake(self, orgs: Iterable[str]) -> None:
        """Nobody is elsewhere."""

    def drop(self, org: str) -> None:
        """Nobody is elsewhere."""
