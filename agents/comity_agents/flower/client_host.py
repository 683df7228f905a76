"""`python -m comity_agents.flower.client_host DESCRIPTOR`: the warm process of a ClientApp.

Imports the app once, then answers one message at a time until the node closes the channel (frames: `workers.py`).
Randomness is seeded anew for each message from the run, the node, the question's number and the content's header: a
worker that was killed and started again gives the same reply as one that was not.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any

from flwr.app import Context, Message, RecordDict

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.channel import Channel, Frame
from comity_agents.flower.compat import SERVER_NODE_ID, set_identity, set_message_id
from comity_agents.flower.host import load, open_channel, report, seed
from comity_agents.flower.records import content_of, records_of

_SEED_BYTES_MAX = 1 << 16


def main() -> None:
    """Serve messages until the channel ends."""
    channel, setup = open_channel(sys.argv[1:])
    run_id, node_id = int(setup["run_id"]), int(setup["node_id"])
    set_identity(run_id, node_id)
    try:
        app, run_config = load(setup, "clientapp")
    except ComityError as error:
        channel.send({"op": "failed", "code": str(error.code)})
        return
    context = Context(run_id, node_id, dict(setup["node_config"]), RecordDict(), run_config)
    channel.send({"op": "ready"})
    while True:  # bounded by the node, which closes the channel
        try:
            frame = channel.recv(None)
        except ComityError:
            return
        _answer(channel, frame, app, context, setup["seed"])


def _answer(channel: Channel, frame: Frame, app: Any, context: Any, run_seed: int) -> None:
    header = frame.header
    try:
        fd, size_bytes, timings = _reply(frame, app, context, run_seed)
    except ComityError as error:
        channel.send({"op": "reply", "id": header.get("id"), "error": str(error.code)})
        return
    try:
        channel.send({"op": "reply", "id": header.get("id"), "timings": timings}, fd, size_bytes)
    finally:
        os.close(fd)


def _reply(frame: Frame, app: Any, context: Any, run_seed: int) -> tuple[int, int, dict[str, float]]:
    """Run the app on one message; returns the reply's blob. Raises `APP_FAILED`, `APP_SILENT` or `REPLY_SHAPE`."""
    begin = time.perf_counter()
    header = frame.header
    size_bytes = frame.size_bytes
    fd = frame.take()
    seed(run_seed, header["type"], header.get("seq", ""), _content_header(fd))
    message = _message(header, records_of(fd, size_bytes), context)
    decoded = time.perf_counter()
    reply = _run(app, message, context)
    del message
    done = time.perf_counter()
    reply_fd, reply_bytes = memory.write_parts(content_of(reply.content).parts())
    timings = {
        "decode_s": decoded - begin,
        "app_s": done - decoded,
        "encode_s": time.perf_counter() - done,
    }
    return reply_fd, reply_bytes, timings


def _run(app: Any, message: Any, context: Any) -> Any:
    try:
        reply = app(message, context)
    except (Exception, SystemExit) as error:  # a stranger's function may raise anything
        report("the ClientApp raised")
        raise ComityError(ErrorCode.APP_FAILED) from error
    if not isinstance(reply, Message) or (reply.has_content() and not reply.content):
        raise ComityError(ErrorCode.APP_SILENT)
    if not reply.has_content():
        print(f"comity: the ClientApp replied with an error: {reply.error.reason}", file=sys.stderr)
        raise ComityError(ErrorCode.APP_FAILED)
    return reply


def _message(header: dict[str, Any], content: Any, context: Any) -> Any:
    set_identity(context.run_id, SERVER_NODE_ID)  # the sender, as the app sees it
    message = Message(
        content,
        dst_node_id=context.node_id,
        message_type=header["type"],
        ttl=float(header["ttl_s"]),
        group_id=header["group"],
    )
    set_identity(context.run_id, context.node_id)
    set_message_id(message, str(header["id"]))
    return message


def _content_header(fd: int) -> str:
    """The beginning of the content's header (names, shapes, configuration such as the round), but no array."""
    (length,) = struct.unpack("<I", os.pread(fd, 4, 0))
    return os.pread(fd, min(length, _SEED_BYTES_MAX), 4).hex()


if __name__ == "__main__":
    main()
