"""One job of the curve's arithmetic: `python -m comity_crypto.psi.worker_main JOB MEMORY_BYTES`.

1. Standard input: the key (32 bytes), how many items (u32, big-endian), the items. Standard output: one point an item,
   in their order, batch by batch; nothing else. `mask` takes elements (32 bytes), `remask` points (33 bytes).
2. The library is native and sees a stranger's bytes: this process has a limit on memory, writes no file, opens none
   after its imports, and its death is the parent's `WORKER_DIED`.
3. Exit codes: 0 done, 3 an item is no point of the curve, 4 the library is missing. Ends when its parent is gone, at
   the latest at the end of its input.
"""

from __future__ import annotations

import resource
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

from comity_crypto.psi.identifiers import ELEMENT_BYTES, ITEMS_MAX
from comity_crypto.psi.messages import POINT_BYTES

KEY_BYTES = 32
COUNT = struct.Struct(">I")
NO_POINT, NO_LIBRARY, BAD_INPUT = 3, 4, 5
ITEM_BYTES = {"mask": ELEMENT_BYTES, "remask": POINT_BYTES}
_BATCH = 1024

Batch = Callable[[list[bytes]], list[bytes]]


def _job(name: str, key: bytes) -> Batch:
    """Return what does one batch. Raises `ImportError` without the library."""
    from private_set_intersection import python as psi

    if name == "mask":
        client = psi.client.CreateFromKey(key, True)
        return lambda items: list(client.CreateRequest([item.hex() for item in items]).encrypted_elements)
    server = psi.server.CreateFromKey(key, True)

    def remask(items: list[bytes]) -> list[bytes]:
        request = psi.Request(reveal_intersection=True, encrypted_elements=items)
        return list(server.ProcessRequest(request).encrypted_elements)

    return remask


def _exactly(source: BinaryIO, size_bytes: int) -> bytes:
    data = source.read(size_bytes)
    if len(data) != size_bytes:
        sys.exit(BAD_INPUT)
    return data


def main(name: str, memory_bytes: int) -> None:
    """Do one job."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    key = _exactly(source, KEY_BYTES)
    (count,) = COUNT.unpack(_exactly(source, COUNT.size))
    if count > ITEMS_MAX or name not in ITEM_BYTES:
        sys.exit(BAD_INPUT)
    try:
        work = _job(name, key)
    except ImportError:
        sys.exit(NO_LIBRARY)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_DATA, memory_bytes)):
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    size = ITEM_BYTES[name]
    for start in range(0, count, _BATCH):
        data = _exactly(source, min(_BATCH, count - start) * size)
        try:
            points = work([data[at : at + size] for at in range(0, len(data), size)])
        except RuntimeError:  # the library's one word for whatever is no point
            sys.exit(NO_POINT)
        if len(points) * size != len(data) or any(len(point) != POINT_BYTES for point in points):
            sys.exit(BAD_INPUT)
        target.write(b"".join(points))
        target.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
