"""Flower's `Grid` over the channel to the node: an unmodified ServerApp asks, the node answers.

Rules:
1. One frame for each *distinct* content of a push, encoded once, with all its receivers in ascending order.
2. Everything that the app sees is a function of the run's id and of the replies: node ids are the fixed list, replies
   come sorted by node, message ids are `<question>-<node>`. So an app that is started again asks the same questions.
3. The node decides deadlines and answers each (question, node) once, with a content or an error; the app's own timeout
   is passed on as a wish. A question with too few results ends the run, even if the app would swallow it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import Channel
from comity_agents.flower.capture import Recorder
from comity_agents.flower.compat import set_message_id
from comity_agents.flower.records import content_of, records_of, same_content

# Flower's numbers for "the ClientApp raised" and "unknown".
_RAISED, _UNKNOWN = 2, 0
_APP_CODES = frozenset({ErrorCode.APP_FAILED, ErrorCode.APP_SILENT, ErrorCode.APP_INVALID})


class RunEndedError(Exception):
    """The run cannot go on: the node closed the channel, or a question had too few results."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(str(code))
        self.code = code


@dataclass(slots=True)
class _Question:
    """One content on its way: who still owes a reply, and what came."""

    type: str
    messages: dict[int, Any]
    replies: list[Any] = field(default_factory=list)
    errors: Counter[ErrorCode] = field(default_factory=Counter)


class ChannelGrid(Grid):  # type: ignore[misc]  # flwr is not typed for us
    """See the head of this module."""

    def __init__(
        self, channel: Channel, run_id: int, node_ids: list[int], results_min: int, recorder: Recorder
    ) -> None:
        self.failure: ErrorCode | None = None
        self.timings = {"encode_s": 0.0, "decode_s": 0.0, "wait_s": 0.0}
        self._channel = channel
        self._run: Any = SimpleNamespace(run_id=run_id)
        self._node_ids = sorted(node_ids)
        self._results_min = results_min
        self._recorder = recorder
        self._next_seq = 0
        self._open: dict[int, _Question] = {}
        self._ready: dict[str, Any] = {}

    @property
    def questions(self) -> int:
        """How many questions were asked so far."""
        return self._next_seq

    def set_run(self, run: Any) -> None:
        """Accept what Flower's own runtime would set; apps only read it."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run; only its `run_id` is filled."""
        return self._run

    def create_message(
        self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Any:
        """As Flower's: a message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """The agreement's fixed list, ascending; never who happens to be connected."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Send messages; returns their ids in order."""
        return self._push(list(messages), None)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the replies that are there, without waiting, sorted by node."""
        wanted = list(message_ids)
        self._take_frames(wait=False)
        return _by_node([self._ready.pop(message_id) for message_id in wanted if message_id in self._ready])

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
        """Send messages and wait until the node has answered each; replies sorted by node."""
        wanted = self._push(list(messages), timeout)
        begin = time.perf_counter()
        while not all(message_id in self._ready for message_id in wanted):  # the node answers each, or closes
            self._take_frames(wait=True)
        self.timings["wait_s"] += time.perf_counter() - begin
        return _by_node([self._ready.pop(message_id) for message_id in wanted])

    def _push(self, messages: list[Any], timeout_s: float | None) -> list[str]:
        self._check()
        begin = time.perf_counter()
        groups: list[list[Any]] = []
        for message in messages:
            if message.metadata.dst_node_id not in self._node_ids:
                raise ValueError(f"node {message.metadata.dst_node_id} is not part of this run")
            fitting = (group for group in groups if _fits(group, message))
            group = next(fitting, None)
            if group is None:
                groups.append([message])
            else:
                group.append(message)
        for group in groups:
            self._ask(sorted(group, key=lambda message: int(message.metadata.dst_node_id)), timeout_s)
        self.timings["encode_s"] += time.perf_counter() - begin
        return [message.metadata.message_id for message in messages]

    def _ask(self, group: list[Any], timeout_s: float | None) -> None:
        seq, first = self._next_seq, group[0]
        self._next_seq += 1
        for message in group:
            set_message_id(message, f"{seq}-{message.metadata.dst_node_id}")
        if first.content.array_records and self._recorder.source != "strategy":
            self._recorder.arrays = next(iter(first.content.array_records.values()))
            self._recorder.source = "outgoing"
        header = {
            "op": "ask",
            "seq": seq,
            "dst": [message.metadata.dst_node_id for message in group],
            "type": first.metadata.message_type,
            "group": first.metadata.group_id,
            "ttl_s": first.metadata.ttl,
            "timeout_s": timeout_s,
        }
        self._open[seq] = _Question(
            first.metadata.message_type, {message.metadata.dst_node_id: message for message in group}
        )
        fd, size_bytes = memory.write_parts(content_of(first.content).parts())
        try:
            self._channel.send(header, fd, size_bytes)
        finally:
            os.close(fd)

    def _take_frames(self, *, wait: bool) -> None:
        """Take one reply, waiting for it, or all that are there."""
        self._check()
        while True:  # without waiting: bounded by the open questions, since the node answers each once
            try:
                frame = self._channel.recv(None if wait else 0)
            except ComityError as error:
                if error.code is ErrorCode.TIMEOUT:
                    return
                self.failure = ErrorCode.WORKER_DIED
                raise RunEndedError(ErrorCode.WORKER_DIED) from error
            self._accept(frame)
            if wait:
                return

    def _accept(self, frame: Any) -> None:
        begin = time.perf_counter()
        seq, src = frame.header["seq"], frame.header["src"]
        question = self._open[seq]
        asked = question.messages.pop(src)
        if frame.fd is None:
            error = ComityError.from_json(frame.header.get("error"))
            question.errors[error.code] += 1
            code = _RAISED if error.code in _APP_CODES else _UNKNOWN
            reply = Message(Error(code, f"{error.code}: {error.detail}"), reply_to=asked)
        else:
            size_bytes = frame.size_bytes
            reply = Message(records_of(frame.take(), size_bytes), reply_to=asked)
        set_message_id(reply, f"{seq}-{src}-reply")
        self._ready[asked.metadata.message_id] = reply
        question.replies.append(reply)
        self.timings["decode_s"] += time.perf_counter() - begin
        if not question.messages:
            self._close(seq)

    def _close(self, seq: int) -> None:
        """Judge a question that has all its answers."""
        question = self._open.pop(seq)
        results = sum(not reply.has_error() for reply in question.replies)
        asked = len(question.replies)
        if results < min(self._results_min, asked):
            only = next(iter(question.errors)) if len(question.errors) == 1 and results == 0 else None
            self.failure = only if only in _APP_CODES else ErrorCode.PARTICIPANTS_TOO_FEW
            self._check()
        self._recorder.replies(question.type, _by_node(question.replies))

    def _check(self) -> None:
        if self.failure is not None:
            raise RunEndedError(self.failure)


def _fits(group: list[Any], message: Any) -> bool:
    first, one, other = group[0], group[0].metadata, message.metadata
    return (
        (one.message_type, one.group_id, one.ttl) == (other.message_type, other.group_id, other.ttl)
        and all(member.metadata.dst_node_id != other.dst_node_id for member in group)
        and same_content(first.content, message.content)
    )


def _by_node(replies: list[Any]) -> list[Any]:
    return sorted(replies, key=lambda reply: (int(reply.metadata.src_node_id), str(reply.metadata.reply_to_message_id)))
