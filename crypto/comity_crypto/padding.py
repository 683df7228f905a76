"""How large a sealed payload is: sizes are padded so that they tell little, and cut into chunks with a tag each.

Source: Padme, "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", PETS 2019, section 4.
"""

from __future__ import annotations

from comity.wire.errors import ComityError, ErrorCode

TAG_BYTES = 16
SEALED_CHUNK_BYTES = 512 * 1024
PLAIN_CHUNK_BYTES = SEALED_CHUNK_BYTES - TAG_BYTES
LENGTH_BYTES = 8


def padme(size_bytes: int) -> int:
    """Return the padded size: at most 12 % more, and O(log log n) bits of the size remain visible (PETS 2019, 4)."""
    if size_bytes < 2:
        return size_bytes
    exponent = size_bytes.bit_length() - 1
    mask = (1 << (exponent - exponent.bit_length())) - 1
    return (size_bytes + mask) & ~mask


def sealed_size(plain_bytes: int, header_bytes: int = 0) -> int:
    """Return the number of sealed bytes for `plain_bytes` of data behind a header of `header_bytes`."""
    padded = padme(LENGTH_BYTES + header_bytes + plain_bytes)
    return padded + TAG_BYTES * -(-padded // PLAIN_CHUNK_BYTES)


def plain_size_of(size: int) -> int:
    """Return the padded plain size behind `size` sealed bytes. Raises `MALFORMED` if no payload seals to it."""
    padded = size - TAG_BYTES * -(-size // SEALED_CHUNK_BYTES)
    if padded < LENGTH_BYTES or padded + TAG_BYTES * -(-padded // PLAIN_CHUNK_BYTES) != size:
        raise ComityError(ErrorCode.MALFORMED, "no sealed payload has this size", size_bytes=size)
    return padded
