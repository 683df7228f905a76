"""Messages of the stream as values, and the checks that every envelope passes before anything reads it.

Rules:
1. A durable message (sequence number above 0) comes from the coordinator only.
2. A relayed message (number 0) comes from another organisation and names this one among its receivers; the
   coordinator's own messages without a number are transient.
3. Sizes, counts and names are bounded here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comity.observability import scope
from comity.v1 import exchange_pb2
from comity.wire import canonical, ids
from comity.wire.errors import ComityError, ErrorCode
from comity_crypto.statements import Statement

BODY_BYTES_MAX = 1 << 20
INLINE_BYTES_MAX = 256 * 1024
RECEIVERS_MAX = 256


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the stream. `body` is canonical JSON; `inline` a sealed payload of at most 256 KiB."""

    id: str
    seq: int
    kind: str
    sender: str
    receivers: tuple[str, ...]
    run: str
    body: bytes
    inline: bytes = b""
    trace: str = ""

    @property
    def durable(self) -> bool:
        """Whether it is kept by its sender until acknowledged."""
        return self.seq > 0

    def statement(self, kind: str) -> Statement:
        """Return the body as a statement of `kind` by the sender; its signature is not checked here.

        Raises:
            ComityError: `MALFORMED`; `FORBIDDEN` if a member relays what another one signed, as a replay would.
        """
        statement = Statement.from_bytes(self.body, max_bytes=BODY_BYTES_MAX)
        if statement.kind != kind:
            raise ComityError(ErrorCode.MALFORMED, f"a statement of kind {kind} was expected")
        if self.sender not in (ids.COORDINATOR, statement.issuer):
            raise ComityError(ErrorCode.FORBIDDEN, "the sender is not who signed", sender=self.sender)
        return statement

    def document(self) -> dict[str, Any]:
        """Return the body as a JSON object. Raises `MALFORMED`."""
        value = canonical.parse(self.body, max_bytes=BODY_BYTES_MAX)
        if not isinstance(value, dict):
            raise ComityError(ErrorCode.MALFORMED, "the body is not an object")
        return value


def read_envelope(envelope: exchange_pb2.Envelope, org: str) -> Message:
    """Check one envelope that arrived at `org` and return it. Raises `MALFORMED`, `TOO_LARGE`."""
    if len(envelope.body) > BODY_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "message body", limit_bytes=BODY_BYTES_MAX)
    if len(envelope.inline_payload) > INLINE_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "inline payload", limit_bytes=INLINE_BYTES_MAX)
    if len(envelope.receivers) > RECEIVERS_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "receivers", limit=RECEIVERS_MAX)
    from_coordinator = envelope.sender == ids.COORDINATOR
    if not from_coordinator:
        ids.org_id(envelope.sender)
        if envelope.seq or org not in envelope.receivers:
            raise ComityError(ErrorCode.MALFORMED, "a relayed message has no number and names its receivers")
    return Message(
        id=ids.name(envelope.id),
        seq=envelope.seq,
        kind=ids.name(envelope.kind),
        sender=envelope.sender,
        receivers=tuple(envelope.receivers),
        run=ids.name(envelope.run) if envelope.run else "",
        body=envelope.body,
        inline=envelope.inline_payload,
        trace=scope.accepted(envelope.traceparent),
    )


def write_envelope(message: Message) -> exchange_pb2.Envelope:
    """Return the wire form of a message of ours. Raises `TOO_LARGE`."""
    if len(message.body) > BODY_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "message body", limit_bytes=BODY_BYTES_MAX)
    if len(message.inline) > INLINE_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "inline payload", limit_bytes=INLINE_BYTES_MAX)
    return exchange_pb2.Envelope(
        id=message.id,
        seq=message.seq,
        kind=message.kind,
        sender=message.sender,
        receivers=message.receivers,
        run=message.run,
        body=message.body,
        inline_payload=message.inline,
        traceparent=message.trace,
    )
