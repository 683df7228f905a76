"""How much disk sealed payloads may take at this node: asked before work begins, so that nothing is spent in vain."""

from __future__ import annotations

import os
import time
from pathlib import Path

from comity.wire.errors import ComityError, ErrorCode

# Counting anew at most this often; in between, a run adds no more than a few payloads.
COUNTED_EVERY_S = 1.0


class Room:
    """The folder of payloads and its quota, in bytes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._counted_at = float("-inf")

    def check(self) -> None:
        """Raises `SPOOL_FULL` while the payloads of open runs and unconfirmed results take the whole quota."""
        now = time.monotonic()
        if now - self._counted_at < COUNTED_EVERY_S:
            return
        with os.scandir(self._folder) as entries:
            used = sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file())
        if used >= self._limit_bytes:
            raise ComityError(
                ErrorCode.SPOOL_FULL, "this node's payloads take all they may", limit_bytes=self._limit_bytes
            )
        self._counted_at = now
