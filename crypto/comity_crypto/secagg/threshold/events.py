"""What goes into the machines of `threshold` and comes out, beside `frame.events`. Nothing secret is shown by repr."""

from __future__ import annotations

from dataclasses import dataclass, field

from comity.wire.errors import ComityError
from comity_crypto.secagg.frame.events import Event, Output

# ---- events of a ceremony


@dataclass(frozen=True)
class PublicSharesReady(Event):
    """This holder's parts are drawn and kept; `digest` is the SHA-256 of its public shares of all keys."""

    digest: str


@dataclass(frozen=True)
class KeysCombined(Event):
    """All public shares are here, each under the hash that its holder committed to; the ids of their sums."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class BoxesReady(Event):
    """This holder's parts are dealt; by organisation, the SHA-256 of its box."""

    boxes: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BoxesOpened(Event):
    """All boxes for this holder are open and added up; by dealer, the values of the check for all keys and primes."""

    values: tuple[tuple[str, tuple[int, ...]], ...]


# ---- events of a round


@dataclass(frozen=True)
class ShareMade(Event):
    """A holder's share for a call lies ready; SHA-256 of the share."""

    call: str
    digest: str


@dataclass(frozen=True)
class ShareRefused(Event):
    """A holder's share is not one: other bytes than announced, another size, a residue that is too large."""

    org: str
    call: str
    error: ComityError


@dataclass(frozen=True)
class SumOpened(Event):
    """The shares of a call opened the sum, and it is decoded.

    Args:
        sum: what `compared.sum_digest` says of it. slots: SHA-256 of the summed slots, which stays at home.
    """

    call: str
    sum: str
    slots: str = field(default="", repr=False)


@dataclass(frozen=True)
class QuorumFailed(Event):
    """The shares of a call do not open the sum: check slots or ranges do not fit."""

    call: str


# ---- outputs of a ceremony


@dataclass(frozen=True)
class StartDraw(Output):
    """Draw a part of every key, keep it, write the public shares; answer `PublicSharesReady`."""

    crs: bytes


@dataclass(frozen=True)
class StartShow(Output):
    """Let the other holders have this holder's public shares."""

    digest: str


@dataclass(frozen=True)
class StartCombine(Output):
    """Get every holder's public shares, compare their hashes, add them; answer `KeysCombined`."""

    shares: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StartDeal(Output):
    """Deal the parts into boxes for the other holders' keys; answer `BoxesReady`."""

    box_keys: tuple[tuple[str, bytes], ...] = field(repr=False)


@dataclass(frozen=True)
class StartOpenBoxes(Output):
    """Get this holder's boxes, compare, open and add up, take the values of the check; answer `BoxesOpened`.

    Only then the holder's own parts and boxes are erased: from here on its shares are what it holds.
    """

    boxes: tuple[tuple[str, str], ...]
    challenge: bytes


@dataclass(frozen=True)
class StoreKeys(Output):
    """All holders signed: put the shares of these keys on disk, with the transcript, and let rounds use them."""

    keys: tuple[str, ...]
    transcript: str


# ---- outputs of a round


@dataclass(frozen=True)
class StartShare(Output):
    """Make this holder's share for a quorum, with fresh noise, seal it, send it; answer `ShareMade`.

    `receivers` are who opens, each with its key for boxes.
    """

    call: str
    members: tuple[str, ...]
    receivers: tuple[tuple[str, bytes], ...] = field(repr=False)


@dataclass(frozen=True)
class StartFuse(Output):
    """Get these shares, add them to the aggregate, decode for so many contributors.

    Answers: `SumOpened`, `QuorumFailed` if what came out is no sum, `ShareRefused` for a share that is none.
    """

    call: str
    shares: tuple[tuple[str, str], ...]
    contributors: int


@dataclass(frozen=True)
class KeepSum(Output):
    """Keep the sum that a call opened, beside this opener's word about it."""

    call: str
    sum: str


@dataclass(frozen=True)
class Suspected(Output):
    """Whose shares did not fit; one organisation if it could be told apart, several if not."""

    orgs: tuple[str, ...]
