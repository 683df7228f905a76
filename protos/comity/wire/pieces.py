"""Pieces of payloads on the wire, read and written without the copies that the protobuf runtime makes.

`PutPayloadRequest.data` (field 2) and `GetPayloadResponse.data` (field 1) are of type bytes. A message of exactly one
piece is: the field's tag (number * 8 + 2, length-delimited), the length as a varint, the bytes (protobuf encoding
guide). The runtime copies a piece twice to read it and twice to write it; at 40 MB a payload that is what a relay does
most of the time.

Rules:
1. `read` knows this one form and nothing else; any other message is for the protobuf runtime to judge.
2. The length is checked against the message before the piece is looked at; its varint has at most four bytes, so a
   piece is below 256 MiB (the transport's own bound is far lower).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

UPLOAD_FIELD = 2
DOWNLOAD_FIELD = 1
_VARINT_BYTES_MAX = 4


def read(message: bytes, field: int) -> memoryview | None:
    """Return the piece in `message`, as a view of it; None if it is no message of exactly one piece."""
    if not message or message[0] != _tag(field):
        return None
    length = 0
    for at in range(1, min(len(message), 1 + _VARINT_BYTES_MAX)):
        length |= (message[at] & 0x7F) << (7 * (at - 1))
        if message[at] < 0x80:
            return memoryview(message)[at + 1 :] if at + 1 + length == len(message) else None
    return None


def write(data: Buffer, field: int) -> bytes:
    """Return the message that holds `data`; one copy. Raises `ValueError` from 256 MiB on."""
    view = memoryview(data)
    length = view.nbytes
    if length >= 1 << (7 * _VARINT_BYTES_MAX):
        raise ValueError("a piece is below 256 MiB")
    header = bytearray([_tag(field)])
    while length >= 0x80:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return b"".join((header, view))


def _tag(field: int) -> int:
    assert 1 <= field <= 15, "a tag of one byte"
    return field << 3 | 2
