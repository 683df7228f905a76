"""One open stream: what waits to be sent, what waits to be committed, and why it ended.

Rules
1. Both queues are bounded. Relayed frames are offered and refused when there is no room, and no sender gets more than
   its share of the room: a member that floods a slow node keeps nobody else from reaching it. Durable frames wait,
   because they are safe in the database; control frames (acks, refusals, presence) have a reserve of their own.
2. A session ends once, with one reason.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from comity.v1 import exchange_pb2
from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator.transport.identity import Peer
from comity_coordinator.transport.model import DURABLE_WINDOW, Message

# Acks that came with nothing to send are booked this many at a time, or with the next heartbeat.
ACKS_TOGETHER = 16


@dataclass(frozen=True, slots=True)
class HubLimits:
    """Bounds of every stream."""

    queue_frames: int = 1_024
    queue_bytes: int = 48 << 20
    sender_share: int = 2
    """One sender may fill the queue's room divided by this."""
    control_frames: int = 4_096
    inbound_messages: int = 256
    batch_messages: int = 32
    heartbeat_s: float = 10.0
    lease_s: float = 45.0


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be done for a stream: book an ack, if there is one, and fetch at most `room` messages, if wanted."""

    acked_seq: int | None
    after_seq: int
    room: int | None


class SendQueue:
    """Frames for one node, in order, bounded by number and bytes."""

    def __init__(self, limits: HubLimits) -> None:
        self._limits = limits
        self._frames: deque[tuple[bytes, str]] = deque()
        self._size_bytes = 0
        self._of_sender: Counter[str] = Counter()
        self._bytes_of_sender: Counter[str] = Counter()
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()

    def __len__(self) -> int:
        return len(self._frames)

    def has_room(self, size_bytes: int) -> bool:
        """True if a frame of this size may be added now; an empty queue takes any frame."""
        if not self._frames:
            return True
        fits = self._size_bytes + size_bytes <= self._limits.queue_bytes
        return fits and len(self._frames) < self._limits.queue_frames

    def offer(self, frame: bytes, sender: str = "") -> bool:
        """Add `frame` if there is room, for a member's frame within the share of this `sender`; say whether."""
        if not self.has_room(len(frame)) or (sender and not self._in_share(len(frame), sender)):
            return False
        self._add(frame, sender)
        return True

    def _in_share(self, size_bytes: int, sender: str) -> bool:
        frames, share = self._of_sender[sender], self._limits.sender_share
        if not frames:
            return True
        total_bytes = self._bytes_of_sender[sender] + size_bytes
        return frames * share < self._limits.queue_frames and total_bytes * share <= self._limits.queue_bytes

    async def put(self, frame: bytes) -> None:
        """Add `frame` as soon as there is room; the stream's lease bounds the wait."""
        while not self.has_room(len(frame)):
            self._drained.clear()
            await self._drained.wait()
        self._add(frame)

    def control(self, frame: bytes) -> None:
        """Add a small frame, beyond the limit of the others if need be.

        Raises:
            ComityError: `BUSY` when even the reserve is used up: this node does not read.
        """
        if len(self._frames) >= self._limits.queue_frames + self._limits.control_frames:
            raise ComityError(ErrorCode.BUSY, "the node does not read its stream")
        self._add(frame)

    async def get(self) -> bytes:
        """Take the oldest frame."""
        while not self._frames:
            self._filled.clear()
            await self._filled.wait()
        frame, sender = self._frames.popleft()
        self._size_bytes -= len(frame)
        if sender:
            self._of_sender[sender] -= 1
            self._bytes_of_sender[sender] -= len(frame)
        self._drained.set()
        return frame

    def _add(self, frame: bytes, sender: str = "") -> None:
        self._frames.append((frame, sender))
        self._size_bytes += len(frame)
        if sender:
            self._of_sender[sender] += 1
            self._bytes_of_sender[sender] += len(frame)
        self._filled.set()


class Session:
    """The stream of one organisation, from Welcome to its end."""

    def __init__(
        self,
        peer: Peer,
        limits: HubLimits,
        received_seq: int,
        acked_seq: int,
        *,
        epoch: int = 0,
        reads_presence: bool = False,
    ) -> None:
        """`epoch` numbers the organisation's streams over all replicas; `reads_presence` is what its Hello says."""
        self.peer = peer
        self.epoch = epoch
        self.reads_presence = reads_presence
        self.org = peer.name
        self.queue = SendQueue(limits)
        self.inbound: asyncio.Queue[Message] = asyncio.Queue(limits.inbound_messages)
        self.wake = asyncio.Event()
        self.wake.set()
        self.received_seq = received_seq
        self.acked_seq = acked_seq
        self.sent_seq = acked_seq
        self._booked_seq = acked_seq
        self._more = True  # whether the database may hold more for this node
        self.ended: asyncio.Future[ComityError] = asyncio.get_running_loop().create_future()
        self._batch_messages = limits.batch_messages

    def end(self, reason: ComityError) -> None:
        """End the stream with `reason`; the first reason stays."""
        if not self.ended.done():
            self.ended.set_result(reason)

    def send_control(self, frame: exchange_pb2.ConnectResponse) -> None:
        """Queue an ack, a heartbeat, a presence note or a refusal; a node that does not read loses its stream."""
        try:
            self.queue.control(frame.SerializeToString())
        except ComityError as error:
            self.end(error)

    def refuse(self, message_id: str, error: ComityError) -> None:
        """Tell the node that one message was not taken."""
        body = canonical.canonical(error.to_json())
        self.send_control(exchange_pb2.ConnectResponse(refusal=exchange_pb2.Refusal(id=message_id, error=body)))

    def acknowledged(self, up_to_seq: int) -> None:
        """Note the node's ack; it is booked with the next message, or with `ACKS_TOGETHER` others.

        Raises:
            ComityError: `MALFORMED` if the node acknowledges what was never sent.
        """
        if up_to_seq > self.sent_seq:
            raise ComityError(ErrorCode.MALFORMED, "an ack for a message that was not sent", up_to_seq=up_to_seq)
        if up_to_seq > self.acked_seq:
            self.acked_seq = up_to_seq
            if self._more or self.acked_seq - self._booked_seq >= ACKS_TOGETHER:
                self.wake.set()

    def enqueued(self) -> None:
        """Note that there is something to fetch."""
        self._more = True
        self.wake.set()

    def quiet(self) -> None:
        """Have acks booked that came with nothing after them."""
        if self.acked_seq > self._booked_seq:
            self.wake.set()

    def errand(self) -> Errand:
        """Return what is to be done now, and take it as done."""
        acked = self.acked_seq if self.acked_seq > self._booked_seq else None
        room = self.acked_seq + DURABLE_WINDOW - self.sent_seq if self._more else None
        self._booked_seq, self._more = self.acked_seq, False
        return Errand(acked, self.sent_seq, room)

    def fetched(self, errand: Errand, count: int) -> None:
        """Note how many messages there were: what the window keeps back is fetched after an ack."""
        if errand.room is not None and count == max(0, errand.room):
            self._more = True

    async def next_batch(self) -> Sequence[Message]:
        """Wait for durable messages; return what is there, at most the limit, in order."""
        batch = [await self.inbound.get()]
        while len(batch) < self._batch_messages and not self.inbound.empty():
            batch.append(self.inbound.get_nowait())
        return batch
