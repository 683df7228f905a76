"""The seam of the aggregation profiles (secure-aggregation.md sections 1 and 6).

At a party:  `measure` (pure: clip, encode) -> egress policy over what was measured -> `protect` (what leaves the node).
At the lead: one `Collector` a question. It takes replies in any order and yields deliveries for the app: at once under
`plain`, all together and all alike once the sum is there under the others. Messages between the parties of a secure sum
(relay kind `secagg`) go to `on_message`.

What a collector yields is recorded by `recall` in the lead's journal and rebuilt from there after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from comity.wire.errors import ComityError, ErrorCode
from comity_node.training.blobs import Blob
from comity_node.training.tables import AnswerRow
from comity_node.transport.model import Message
from comity_policies.documents import Agreement, OrderHeader, ReplyHeader
from comity_policies.orders import WeightCommitment


@dataclass(frozen=True, slots=True)
class Asked:
    """An order that starts at a party, before the app has seen it; `asked` is its content and the caller's."""

    agreement: Agreement
    order: OrderHeader
    order_digest: str
    asked: Blob


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
    """What the profile did to a result before it may leave, and its own state.

    `facts` for the egress policy (kind, metrics, size_bytes, cohort) replace those of the whole result where only a
    part of it would leave.
    """

    clipped: int = 0
    noise: bool = False
    state: object | None = None
    facts: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of a result that an earlier process let out: it is not made again. The taker closes `result`."""

    result: Blob
    measured: Measured


@dataclass(frozen=True, slots=True)
class Protected:
    """What leaves: the reply's payload and digest, and the bytes, inline or as a file of the payload folder.

    For the lead's own part, which stays, `payload` is None and `file` or `inline` hold the plain content. `charged`
    says that the grant was charged when the bytes left. `stored` is called once the order's end is on disk. `weight` is
    what the receipt commits to, of a result in a secure sum.
    """

    payload: dict[str, Any] | None
    content_digest: str
    receipt_digest: str
    inline: bytes | None
    file: str | None
    size_bytes: int
    charged: bool = False
    stored: Callable[[], None] | None = None
    weight: WeightCommitment | None = None


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


class Sink(Protocol):
    """Where a collector puts what no call of the caller's asked for."""

    async def deliver(self, deliveries: list[Delivery]) -> None:
        """Hand answers to the app; the blobs belong to the sink."""
        ...

    async def fail(self, org: str, error: ComityError) -> None:
        """Go on without an organisation's answer, if it is still awaited."""
        ...

    def waiting(self, error: ComityError) -> None:
        """Tell who is watching that something is tried again."""
        ...

    def suspect(self, orgs: Sequence[str]) -> None:
        """Tell who is watching whose share did not fit."""
        ...

    def reviewing(self) -> frozenset[str]:
        """Return the organisations whose people have to decide before they begin."""
        ...


class Collector(Protocol):
    """Takes the replies to one question. Not used by two tasks for the same organisation at a time."""

    async def begin(self, recorded: Sequence[AnswerRow]) -> None:
        """Start collecting; `recorded` is what an earlier process of this node has recorded and the app has."""
        ...

    async def own(self, protected: Protected, blob: Blob) -> list[Delivery]:
        """Take the lead's own part. Returns what can be delivered now; the blobs belong to the taker."""
        ...

    async def accept(self, org: str, reply: ReplyHeader, inline: bytes) -> list[Delivery]:
        """Take another party's result. Raises `SEAL_BROKEN`, `PAYLOAD_*`, `REPLY_SHAPE`, `REPLY_TOO_LARGE`."""
        ...

    def drop(self, org: str) -> bool:
        """Go on without a party, if the profile can; False if its part is in an opened sum: it will be delivered."""
        ...

    async def keeps(self, org: str) -> bool:
        """Take note that a party's node is gone; True if its part is in, so that nothing is lost with it."""
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

    async def start(self) -> None:
        """Undo what an earlier process of this node left; before anything else, once."""
        ...

    async def prepare(self, agreement: Agreement) -> None:
        """Get ready for a run. Raises why this agreement's runs are impossible here."""
        ...

    async def begin(self, asked: Asked) -> Kept | None:
        """Take note of an order that starts; returns what an earlier process let out for it, if it did."""
        ...

    async def end(self, order_digest: str, error: ComityError) -> None:
        """Take note that an order came to no result."""
        ...

    async def confirmed(self, order_digest: str, outcome: str = "result") -> None:
        """Take note that the lead keeps the answer to an order, and what that answer is."""
        ...

    async def forget(self, run: str) -> None:
        """Let go of a run that is over."""
        ...

    async def stop(self) -> None:
        """End tasks and processes."""
        ...

    async def expect(self, agreement: Agreement, run: str) -> None:
        """Get ready, at the lead, for the questions of a run whose app is about to start. Never waits for others."""
        ...

    def refuse_question(self, agreement: Agreement, receivers: tuple[str, ...]) -> None:
        """Refuse, at the lead, a question that this profile cannot serve. Raises `STRATEGY_REFUSED`."""
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

    def collector(self, question: Question, sink: Sink) -> Collector:
        """Return the collector of a question at the lead; nothing happens before its `begin`."""
        ...

    async def recall(self, question: Question, row: AnswerRow) -> Blob:
        """Return a recorded answer's content again. Raises `PAYLOAD_MISSING`, `SEAL_BROKEN`."""
        ...

    async def on_message(self, message: Message) -> None:
        """Take a message between the parties of a secure sum."""
        ...

    async def on_word(self, message: Message) -> None:
        """Take the coordinator's word in a secure sum."""
        ...

    async def on_presence(self, org: str, here: bool) -> None:
        """Take note that an organisation came or went."""
        ...


# By the value of the term `aggregation`, or by the kind of step that brings its own.
Profiles = Mapping[str, AggregationProfile]


def profile_name(profiles: Profiles, agreement: Agreement) -> str:
    """Return the name of the profile of an agreement's runs."""
    kind = agreement.proposal.steps[0].kind
    return kind if kind in profiles else str(agreement.terms.get("aggregation", "plain"))


def profile_of(profiles: Profiles, agreement: Agreement) -> AggregationProfile:
    """Return the profile of an agreement's runs: its step's own, else that of its terms. Raises `UNSUPPORTED`."""
    name = profile_name(profiles, agreement)
    profile = profiles.get(name)
    if profile is None:
        raise ComityError(ErrorCode.UNSUPPORTED, f"this node has no profile {name}")
    return profile
