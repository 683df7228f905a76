"""The seam of the aggregation profiles (secure-aggregation.md sections 1 and 6).

At a party:  `measure` (pure: clip, encode) -> egress policy over what was measured -> `protect` (what leaves the node).
At the lead: one `Collector` a question. It takes replies in any order and yields deliveries for the app: at once under
`plain`, all together and all alike once the sum is there under the others. Messages between the parties of a secure sum
(relay kind `secagg`) go to `on_message`.

What a collector yields is recorded by `recall` in the lead's journal and rebuilt from there after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from comity_node.training.blobs import Blob
from comity_node.training.tables import AnswerRow
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, OrderHeader, ReplyHeader


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A result on its way out at a party: blobs belong to the caller.

    Args:
        order: what was asked; `order_digest` is the digest of its statement.
        asked: the order's content.
        result: what the app returned.
        cohort: records behind it, as measured by the node.
        own: whether this organisation is the lead itself, whose own result never leaves the node.
    """

    agreement: Agreement
    order: OrderHeader
    order_digest: str
    asked: Blob
    result: Blob
    cohort: int
    own: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """What the profile did to a result before it may leave: facts for the egress policy, and its own state."""

    clipped: int = 0
    noise: bool = False
    state: object | None = None


@dataclass(frozen=True, slots=True)
class Protected:
    """What leaves: the reply's payload and digest, and the bytes, inline or as a file of the payload folder.

    `own` is True for the lead's own part, which stays; then `file` or `inline` hold the plain content.
    """

    payload: dict[str, Any] | None
    content_digest: str
    receipt_digest: str
    inline: bytes | None
    file: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Question:
    """One question at the lead, for a collector. `receivers` are organisations; `folder` holds payload files."""

    agreement: Agreement
    order: OrderHeader
    order_digest: str
    content: Blob
    folder: Path
    reply_bytes_max: int


@dataclass(slots=True)
class Delivery:
    """One organisation's answer for the app, and its row for the journal. The taker closes `blob`."""

    org: str
    blob: Blob
    row: AnswerRow


class Collector(Protocol):
    """Takes the replies to one question. Not used by two tasks for the same organisation at a time."""

    async def own(self, protected: Protected, blob: Blob) -> list[Delivery]:
        """Take the lead's own part. Returns what can be delivered now; the blobs belong to the taker."""
        ...

    async def accept(self, org: str, reply: ReplyHeader, inline: bytes) -> list[Delivery]:
        """Take another party's result. Raises `SEAL_BROKEN`, `PAYLOAD_*`, `REPLY_SHAPE`, `REPLY_TOO_LARGE`."""
        ...

    async def drop(self, org: str) -> list[Delivery]:
        """Go on without a party, if the profile can."""
        ...

    async def close(self) -> None:
        """Release what is held."""
        ...


class AggregationProfile(Protocol):
    """One way to aggregate."""

    @property
    def name(self) -> str:
        """The value of the term `aggregation`."""
        ...

    @property
    def checks_content(self) -> bool:
        """Whether a party compares an order's content with the digest in its header, which all parties see."""
        ...

    def refuse(self, agreement: Agreement, order: OrderHeader) -> None:
        """Refuse an order that this profile cannot serve, such as a subset. Raises `ORDER_MISMATCH`."""
        ...

    async def measure(self, outgoing: Outgoing) -> Measured:
        """Shape a result (clip, encode) and say what was done. Nothing leaves. Raises `REPLY_SHAPE`."""
        ...

    async def protect(self, outgoing: Outgoing, measured: Measured) -> Protected:
        """Make of a result what leaves, on disk when this returns if it is a file."""
        ...

    def collector(self, question: Question) -> Collector:
        """Return the collector of a question at the lead."""
        ...

    async def recall(self, question: Question, row: AnswerRow) -> Blob:
        """Return a recorded answer's content again. Raises `PAYLOAD_MISSING`, `SEAL_BROKEN`."""
        ...

    async def on_message(self, message: Message) -> None:
        """Take a message between the parties of a secure sum."""
        ...


Profiles = Mapping[str, AggregationProfile]
