"""What training needs of other capabilities: the agreements that this organisation holds, their apps, and its people;
and what its profiles need of it: a desk for sums that were opened.

`service.py` wires it to the negotiation's store and to reviews; nothing else here knows these capabilities.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection

from comity.wire.errors import ComityError
from comity_crypto.quorum import QuorumCertificate
from comity_crypto.statements import Statement
from comity_node.reviews.model import Review, ReviewAsk, Verdict
from comity_node.training.blobs import Blob
from comity_policies.decisions import ReviewNeed
from comity_policies.documents import Agreement, OrderHeader

FINAL = "final"
WITHDRAWN = "withdrawn"


class Stored(Protocol):
    """An agreement in this organisation's own store."""

    @property
    def agreement(self) -> Agreement:
        """What was agreed."""
        ...

    @property
    def certificate(self) -> QuorumCertificate | None:
        """The signature of all parties, once the agreement is final."""
        ...

    @property
    def state(self) -> str:
        """`signed`, `final` or `withdrawn`."""
        ...

    @property
    def statement(self) -> Statement | None:
        """What put it into force, once it is final."""
        ...


class Agreements(Protocol):
    """The agreements that this organisation signed."""

    def find(self, conn: Connection, digest: str) -> Stored:
        """Return an agreement as it stands within this journal transaction. Raises `AGREEMENT_UNKNOWN`."""
        ...

    def app_folder(self, digest: str) -> Path:
        """Return the folder of an unpacked app, checked against its digest when it came. Raises `APP_INVALID`."""
        ...


class People(Protocol):
    """The people of this organisation (`reviews/service.py`)."""

    @property
    def need(self) -> Callable[[], ReviewNeed]:
        """Who has to look where a term alone says that somebody has to."""
        ...

    def consult(self, conn: Connection, item: ReviewAsk, *, alone: bool = False) -> Review:
        """Put an item before people unless it is there, and return it as it stands. Raises `BUSY`, `CONFLICT`."""
        ...

    async def wait(self, stage: str, subject: str, until: str) -> Verdict:
        """Return the verdict once there is one. Raises `DEADLINE_PASSED`, `NOT_FOUND`."""
        ...

    def end_of_run(self, conn: Connection, run: str, why: str) -> None:
        """What a run still asks is obsolete."""
        ...

    def on_decided(self, stage: str, callback: Callable[[str, Verdict], Awaitable[None]]) -> None:
        """Await `callback(subject, verdict)` for each verdict; it may come twice."""
        ...

    def on_news(self, listener: Callable[[Review, str, dict[str, Any]], None]) -> None:
        """Call `listener(item, kind, facts)` for whatever happens to an item."""
        ...


@dataclass(frozen=True, slots=True)
class SeenSum:
    """A sum that this organisation opened beside its lead.

    Args:
        order_digest: of the order that the sum answers. session: of the sum. openers: who opens it. members: who is in
            it. digest: what openers say of it to each other (`comity_crypto.secagg.threshold.compared`).
    """

    order: OrderHeader
    order_digest: str
    session: str
    openers: tuple[str, ...]
    members: tuple[str, ...]
    digest: str


class SumDesk(Protocol):
    """Where opened sums go (`seen_sums.py`)."""

    async def keep(self, seen: SeenSum, content: Blob) -> None:
        """Keep a sum; `content` stays the caller's. Raises `SPOOL_FULL`, `PAYLOAD_DIGEST`."""
        ...

    async def sign(self, order: OrderHeader, order_digest: str, digest: str) -> None:
        """Sign a receipt that this organisation opened the sum of an order. Raises `JOURNAL_UNWRITABLE`."""
        ...

    def incident(self, order: OrderHeader, error: ComityError) -> None:
        """Tell people what came up about the sum of an order."""
        ...
