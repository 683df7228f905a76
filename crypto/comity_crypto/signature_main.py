"""Checks batches of Ed25519 signatures: `python -m comity_crypto.signature_main`, one of the workers of `signatures`.

Standard input, for each batch: how many signatures and how many bytes follow (two u32, big-endian), then for each the
key (32 bytes), a length (u32) and so many bytes: the signature and its message. Standard output: for each batch how
many held before the first that does not (u32). Holds no secrets; ends at the end of its input.
"""

from __future__ import annotations

import struct
import sys

from comity_crypto.ed25519 import PUBLIC_BYTES, holds

BATCH = struct.Struct(">II")
LENGTH = struct.Struct(">I")


def held(count: int, data: bytes) -> int:
    """Return how many of the `count` signatures in `data` hold before the first that does not."""
    at = 0
    for done in range(count):
        key, at = data[at : at + PUBLIC_BYTES], at + PUBLIC_BYTES
        (size_bytes,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        if not holds(key, data[at : at + size_bytes]):
            return done
        at += size_bytes
    return count


def main() -> None:
    """Serve until the input ends."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(BATCH.size)) == BATCH.size:  # bounded: by the parent's life
        count, size_bytes = BATCH.unpack(head)
        data = source.read(size_bytes)
        if len(data) != size_bytes:
            return
        target.write(LENGTH.pack(held(count, data)))
        target.flush()


if __name__ == "__main__":
    main()
