"""What goes into the machines of a masked sum and comes out, beyond what `events` has for all profiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comity_crypto.secagg.frame.events import Event, Output
from comity_crypto.secagg.masked.words import Mask


@dataclass(frozen=True)
class Settled(Event):
    """This party's order has its end on disk: its last word may be said."""


@dataclass(frozen=True)
class StartMask(Output):
    """Put tag and masks over the values, into a new file, sync it, answer `BlobReady`."""

    masks: tuple[Mask, ...] = field(repr=False)
    tag_key: bytes = field(repr=False)


@dataclass(frozen=True)
class Stand:
    """What the journal keeps of the one list that this party stands on (at most one per agreement and order).

    It fixes for each member which kind of share may be revealed: nothing else of this order is ever revealed.
    """

    order_digest: str
    session: str
    parties: tuple[str, ...]
    survivors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the journal's form."""
        return {
            "order_digest": self.order_digest,
            "session": self.session,
            "parties": list(self.parties),
            "survivors": list(self.survivors),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Stand:
        """Read what this node has journalled."""
        return cls(value["order_digest"], value["session"], tuple(value["parties"]), tuple(value["survivors"]))


@dataclass(frozen=True)
class RecordStand(Output):
    """Journal this, synced, before the signature that follows it in the outputs."""

    stand: Stand


@dataclass(frozen=True)
class StartSettle(Output):
    """All is there but this party's last word: end the order with this upload, answer `Settled`."""

    upload_digest: str


@dataclass(frozen=True)
class StartOpen(Output):
    """Download the aggregate, compare its SHA-256, take all masks away and decode; answer `SumDecoded`."""

    aggregate: str
    survivors: tuple[str, ...]
    masks: tuple[Mask, ...] = field(repr=False)
    tag_key: bytes = field(repr=False)
