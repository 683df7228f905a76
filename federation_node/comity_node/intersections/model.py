"""An intersection at its two parties, as pure functions: events in, what to do next out; no clock, no I/O, no keys.

The lead gives two orders. `ASK` goes to both parties: each masks its own set under its own key. `COMPARE` goes to the
partner, with the lead's masked set and the partner's, which the lead has masked once more. The partner masks the lead's
once more, sees how many are common, and answers with that number, or, in mode `ids`, with the doubly masked set, in
which the lead finds its own records.

Rules:
1. Every party answers each order once: the same order again gives the same answer, another one in its place is refused.
   Keys and padding belong to the run, so an answer that is made again has the same bytes.
2. The partner knows the count before anything of it leaves; the egress policy of its node judges that count.
3. An event that does not fit the state is refused and changes nothing; one that repeats changes nothing.
4. What the other side sent is checked against what is known: sizes, and the count against the own comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.psi.matching import common
from comity_crypto.psi.messages import POINT_BYTES, Kind, Message, message_of

ASK_SEQ, COMPARE_SEQ = 0, 1
CARDINALITY, IDS = "cardinality", "ids"


class Phase(StrEnum):
    """Where the lead stands."""

    ASKING = "ASKING"
    DOUBLING = "DOUBLING"
    COMPARING = "COMPARING"
    DONE = "DONE"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Masked:
    """A party's answer to `ASK`, still bytes; `own` if it is the lead's."""

    data: bytes = field(repr=False)
    own: bool


@dataclass(frozen=True, slots=True)
class Doubled:
    """The partner's set under both keys, ascending: the lead's own work."""

    points: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compared:
    """The partner's answer to `COMPARE`, still bytes."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """A party did not answer with a result."""

    error: ComityError


Event = Masked | Doubled | Compared | Lost


@dataclass(frozen=True, slots=True)
class Double:
    """Mask these points once more, and bring them into ascending order."""

    points: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """Give the partner this order."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finish:
    """The result: how many are common; `places` in the own masked set, None in mode `cardinality`."""

    common: int
    places: tuple[int, ...] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fail:
    """The run ends without a result."""

    error: ComityError


Effect = Double | Compare | Finish | Fail


@dataclass(frozen=True, slots=True)
class Lead:
    """The lead's side; lists of points are bytes, empty until they are known. Use `step`."""

    mode: str
    phase: Phase = Phase.ASKING
    own: bytes = field(default=b"", repr=False)
    theirs: bytes = field(default=b"", repr=False)
    doubled: bytes = field(default=b"", repr=False)
    answer: bytes = field(default=b"", repr=False)


def step(lead: Lead, event: Event) -> tuple[Lead, Effect | None]:
    """Return the lead after `event`, and what to do now.

    Raises:
        ComityError: `ILLEGAL_EVENT` if the event does not fit the state; `MALFORMED`, `TOO_LARGE` if a message is none.
    """
    if isinstance(event, Lost):
        if lead.phase in (Phase.DONE, Phase.FAILED):
            return lead, None
        return replace(lead, phase=Phase.FAILED), Fail(event.error)
    if isinstance(event, Masked):
        return _masked(lead, event)
    if isinstance(event, Doubled):
        return _doubled(lead, event)
    return _compared(lead, event)


def _masked(lead: Lead, event: Masked) -> tuple[Lead, Effect | None]:
    points = message_of(event.data, Kind.MASKED).first
    known = lead.own if event.own else lead.theirs
    if known == points:
        return lead, None
    if known or lead.phase is not Phase.ASKING:
        raise _illegal("this set was masked before")
    after = replace(lead, own=points) if event.own else replace(lead, theirs=points)
    if not after.own or not after.theirs:
        return after, None
    return replace(after, phase=Phase.DOUBLING), Double(after.theirs)


def _doubled(lead: Lead, event: Doubled) -> tuple[Lead, Effect | None]:
    if lead.doubled and lead.doubled == event.points:
        return lead, None
    if lead.phase is not Phase.DOUBLING or len(event.points) != len(lead.theirs):
        raise _illegal("nothing is to be masked once more")
    order = Message(Kind.COMPARE, lead.own, event.points).to_bytes()
    return replace(lead, phase=Phase.COMPARING, doubled=event.points), Compare(order)


def _compared(lead: Lead, event: Compared) -> tuple[Lead, Effect | None]:
    if lead.phase is Phase.DONE and lead.answer == event.data:
        return lead, None
    if lead.phase is not Phase.COMPARING:
        raise _illegal("nothing is being compared")
    message = message_of(event.data, Kind.MATCHED if lead.mode == IDS else Kind.COUNT)
    places: tuple[int, ...] | None = None
    if message.kind is Kind.MATCHED:
        if len(message.first) != len(lead.own):
            raise ComityError(ErrorCode.REPLY_SHAPE, "the answer has another size than the set that was sent")
        places = tuple(common(message.first, lead.doubled))
        if len(places) != message.count:
            raise ComityError(ErrorCode.REPLY_SHAPE, "the partner counted otherwise than its own answer tells")
    elif message.count > min(len(lead.own), len(lead.theirs)) // POINT_BYTES:
        raise ComityError(ErrorCode.REPLY_SHAPE, "more records are common than there are")
    after = replace(lead, phase=Phase.DONE, answer=event.data)
    return after, Finish(message.count, places)


# -- a party's side


@dataclass(frozen=True, slots=True)
class Party:
    """What a party's journal knows of a run: how large its own masked set was, and the digest of what it compared."""

    masked: int = 0
    compared: str = ""


@dataclass(frozen=True, slots=True)
class Mask:
    """Mask the own set."""


@dataclass(frozen=True, slots=True)
class Match:
    """Mask `theirs` once more and count what is in `mine`, the own set under both keys."""

    theirs: bytes = field(repr=False)
    mine: bytes = field(repr=False)


def take(party: Party, seq: int, partner: bool, data: bytes, digest: str) -> Mask | Match:
    """Return what an order asks of a party.

    Args:
        party: as its journal knows it.
        seq: the order's number, which decides what it may say.
        partner: whether this party is the step's partner; the lead is asked to mask only.
        data: the order's content.
        digest: of the content, lower-case SHA-256.

    Raises:
        ComityError: `ORDER_MISMATCH`, `ORDER_REPLAYED`, `MALFORMED`, `TOO_LARGE`.
    """
    if seq == ASK_SEQ:
        message_of(data, Kind.ASK)
        return Mask()
    if seq != COMPARE_SEQ or not partner:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "an intersection has no such order", field="seq")
    if not party.masked:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "this party was not asked for its set before", field="seq")
    if party.compared and party.compared != digest:
        raise ComityError(ErrorCode.ORDER_REPLAYED, "another set was compared in this run before", seq=seq)
    message = message_of(data, Kind.COMPARE)
    if len(message.second) != party.masked * POINT_BYTES:
        raise ComityError(ErrorCode.ORDER_MISMATCH, "the own set came back in another size", field="content")
    return Match(message.first, message.second)


def answer(mode: str, matched: bytes, mine: bytes) -> Message:
    """Return the partner's answer to `COMPARE`; `matched` is the lead's set under both keys, in the order's order."""
    count = len(common(matched, mine))
    return Message(Kind.MATCHED, matched, count=count) if mode == IDS else Message(Kind.COUNT, count=count)


def _illegal(detail: str) -> ComityError:
    return ComityError(ErrorCode.ILLEGAL_EVENT, detail)
