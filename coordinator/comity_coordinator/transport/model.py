"""What travels on a node's stream, as pure rules: no clock, no I/O.

Rules
1. A durable message has a sequence number above 0, is for the coordinator or from it, and is acted on once.
2. Durable numbers from a node are contiguous. The next one is taken; an old one with a known id was taken already; an
   old one with an unknown id comes from a journal that went back in time; a later one means that something was lost.
3. A relayed message has number 0, names its run and its receivers, and is never stored here.
4. The sender of a message is the organisation of the certificate; a frame that claims another one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from comity.observability import scope
from comity.v1 import exchange_pb2
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR, org_id

PROTOCOL = 1
BODY_BYTES_MAX = 1 << 20
INLINE_BYTES_MAX = 256 << 10
RECEIVERS_MAX = 64
ID_CHARS_MAX = 80
RUN_CHARS_MAX = 64
DURABLE_WINDOW = 64
KNOWN_IDS_KEPT = 4_096

RELAYED_KINDS = frozenset({"order", "reply", "reply.ack", "secagg", "result", "result.ack"})
PRESENCE = "presence"


@dataclass(frozen=True, slots=True)
class Message:
    """One envelope, checked. `inline` is a sealed payload that travels along, at most 256 KiB."""

    id: str
    kind: str
    sender: str
    receivers: tuple[str, ...]
    run: str
    body: bytes
    inline: bytes = b""
    seq: int = 0
    trace: str = ""

    def document(self) -> Any:
        """Return the body as JSON. Raises `MALFORMED` if it is not canonical."""
        return canonical.parse(self.body, max_bytes=BODY_BYTES_MAX)

    @property
    def size_bytes(self) -> int:
        """Size of what counts against a queue."""
        return len(self.body) + len(self.inline)


class Place(StrEnum):
    """Where a durable message stands in its sender's sequence."""

    NEXT = "next"
    KNOWN = "known"
    REWOUND = "rewound"
    GAP = "gap"


def place(received_seq: int, seq: int, *, id_known: bool) -> Place:
    """Judge number `seq` after `received_seq` was the last one taken (rule 2)."""
    if seq <= received_seq:
        return Place.KNOWN if id_known else Place.REWOUND
    return Place.NEXT if seq == received_seq + 1 else Place.GAP


def from_wire(envelope: exchange_pb2.Envelope, sender: str) -> Message:
    """Return the message that `sender` (the certificate's organisation) put on its stream.

    Raises:
        ComityError: `FORBIDDEN` for another sender's name, `TOO_LARGE` and `MALFORMED` for sizes and forms.
    """
    if envelope.sender != sender:
        raise ComityError(ErrorCode.FORBIDDEN, "the envelope names another sender than the certificate")
    if not 0 < len(envelope.id) <= ID_CHARS_MAX or not envelope.id.isprintable():
        raise ComityError(ErrorCode.MALFORMED, "an envelope needs an id of at most 80 characters")
    if not 0 < len(envelope.kind) <= ID_CHARS_MAX or len(envelope.run) > RUN_CHARS_MAX:
        raise ComityError(ErrorCode.MALFORMED, "the envelope's kind or run is empty or too long")
    for size, limit in ((len(envelope.body), BODY_BYTES_MAX), (len(envelope.inline_payload), INLINE_BYTES_MAX)):
        if size > limit:
            raise ComityError(ErrorCode.TOO_LARGE, size_bytes=size, limit_bytes=limit)
    if len(envelope.receivers) > RECEIVERS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, receivers=len(envelope.receivers), limit=RECEIVERS_MAX)
    receivers = tuple(sorted({str(org_id(receiver)) for receiver in envelope.receivers}))
    message = Message(
        id=envelope.id,
        kind=envelope.kind,
        sender=sender,
        receivers=receivers,
        run=envelope.run,
        body=envelope.body,
        inline=envelope.inline_payload,
        seq=envelope.seq,
        trace=scope.accepted(envelope.traceparent),
    )
    _check_form(message)
    return message


def to_wire(message: Message) -> bytes:
    """Return the bytes of the frame that carries `message` to a node; made once, sent to every receiver."""
    return exchange_pb2.ConnectResponse(
        envelope=exchange_pb2.Envelope(
            id=message.id,
            seq=message.seq,
            kind=message.kind,
            sender=message.sender,
            receivers=message.receivers,
            run=message.run,
            body=message.body,
            inline_payload=message.inline,
            traceparent=scope.trace() or message.trace,
        )
    ).SerializeToString()


def from_coordinator(
    message_id: str, kind: str, body: dict[str, Any], *, run: str = "", seq: int = 0, inline: bytes = b""
) -> Message:
    """Return a message of the coordinator itself. Raises `MALFORMED`, and `TOO_LARGE` above `BODY_BYTES_MAX`."""
    data = canonical.canonical(body)
    if len(data) > BODY_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, size_bytes=len(data), limit_bytes=BODY_BYTES_MAX)
    return Message(message_id, kind, COORDINATOR, (), run, data, inline, seq, scope.trace())


def _check_form(message: Message) -> None:
    relayed = message.kind in RELAYED_KINDS
    if relayed and (message.seq != 0 or not message.run or not message.receivers):
        raise ComityError(ErrorCode.MALFORMED, "a relayed message names run and receivers and has no number")
    if not relayed and (message.seq == 0 or message.receivers):
        raise ComityError(ErrorCode.MALFORMED, "a message for the coordinator has a number and no receivers")
