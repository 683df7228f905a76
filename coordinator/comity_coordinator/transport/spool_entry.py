"""One payload in the spool, as the process knows it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from comity.wire.errors import ComityError
from comity_coordinator.transport import spool_files


@dataclass(slots=True)
class Entry:
    """One payload of one owner. `tail` keeps the newest chunks for readers that follow the upload closely."""

    digest: str
    owner: str
    size_bytes: int
    receivers: set[str]
    path: Path
    file: spool_files.SpoolFile | None
    touched_at: float
    present_bytes: int = 0
    complete: bool = False
    failed: ComityError | None = None
    upload: int = 0
    readers: int = 0
    fetched: set[str] = field(default_factory=set)
    hasher: hashlib._Hash = field(default_factory=hashlib.sha256)
    tail: OrderedDict[int, bytes | memoryview] = field(default_factory=OrderedDict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def tell(self) -> None:
        """Wake every reader that waits for more."""
        self.news.set()
        self.news = asyncio.Event()
