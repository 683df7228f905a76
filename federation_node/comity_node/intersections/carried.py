"""Messages of an intersection as contents: one array of bytes, so that they travel and are kept like other contents."""

from __future__ import annotations

import numpy as np

from comity.wire.errors import ComityError, ErrorCode
from comity_agents import memory
from comity_agents.flower.codec import Content, Record, array_entry, read_blob
from comity_crypto.psi.messages import MESSAGE_BYTES_MAX

_RECORD, _KEY = "intersection", "message"
# A content's header and padding around one array.
CARRIED_BYTES_MAX = MESSAGE_BYTES_MAX + 4096


def carry(message: bytes) -> tuple[int, int]:
    """Return a new blob with a message: its descriptor, which the taker closes, and its size."""
    entry = array_entry(_KEY, np.frombuffer(message, np.uint8))
    return memory.write_parts(Content((Record(_RECORD, "array", (entry,)),)).parts())


def carried(fd: int, size: int) -> bytes:
    """Return the message in a blob from a stranger. Raises `TOO_LARGE`, `REPLY_SHAPE`."""
    if size > CARRIED_BYTES_MAX:
        raise ComityError(ErrorCode.TOO_LARGE, "a message of an intersection", limit_bytes=CARRIED_BYTES_MAX)
    # A copy: a refusal's traceback would keep views of the mapping alive.
    with memory.mapped(fd, size) as view:
        data = bytes(view)
    content = read_blob(data)
    shapes = content.shapes()
    message = bytes(content.entries[0].data) if len(shapes) == 1 else b""
    if len(shapes) != 1 or shapes[0] != (_RECORD, _KEY, "uint8", (len(message),)):
        raise ComityError(ErrorCode.REPLY_SHAPE, "this is no message of an intersection")
    return message
