"""The spool's files: `<digest>.<owner>` holds ciphertext, `<digest>.<owner>.json` says that it is whole and whose.

A payload without its second file was being written when the coordinator stopped, and is deleted at the start.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comity.wire import canonical
from comity.wire.errors import ComityError
from comity.wire.ids import COORDINATOR, org_id, sha256_hex

_RECORD_BYTES_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Found:
    """A whole payload on the disk."""

    digest: str
    owner: str
    size_bytes: int
    receivers: tuple[str, ...]
    path: Path


class SpoolFile:
    """An open file that closes with its last user: a thread may be reading while the payload is dropped."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL if create else os.O_RDONLY
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def read(self, size_bytes: int, offset_bytes: int) -> bytes:
        """Return up to `size_bytes` from `offset_bytes` on."""
        return os.pread(self._fd, size_bytes, offset_bytes)

    def store(self, hasher: hashlib._Hash, chunk: bytes | memoryview, offset_bytes: int) -> None:
        """Write `chunk` at `offset_bytes` and hash it; both let other threads run meanwhile."""
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self._fd, view, offset_bytes)
            view, offset_bytes = view[written:], offset_bytes + written
        hasher.update(chunk)

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


def load(folder: Path) -> Iterator[Found]:
    """Make the folder (0700) if needed; yield the whole payloads in it and delete everything else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            if not path.with_suffix("").exists():
                path.unlink()
            continue
        try:
            record = canonical.parse(_record_path(path).read_bytes(), max_bytes=_RECORD_BYTES_MAX)
            found = _check(record, path)
        except (OSError, ComityError, KeyError, TypeError, AttributeError):
            delete(path)
            continue
        yield found


def create(folder: Path, owner: str, digest: str) -> tuple[Path, SpoolFile]:
    """Open a new, empty file for an upload."""
    path = folder / f"{digest}.{owner}"
    delete(path)
    return path, SpoolFile(path, create=True)


def open_whole(path: Path) -> int:
    """Return a descriptor for reading a whole payload."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def record(found: Found) -> None:
    """Say on the disk that a payload is whole."""
    path = _record_path(found.path)
    beside = path.with_suffix(".tmp")
    data = canonical.canonical(
        {
            "digest": found.digest,
            "owner": found.owner,
            "size_bytes": found.size_bytes,
            "receivers": list(found.receivers),
        }
    )
    beside.write_bytes(data)
    beside.replace(path)


def delete(path: Path) -> None:
    """Remove a payload and its record."""
    _record_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """Return what the file system has left."""
    return shutil.disk_usage(folder).free


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check(value: Any, path: Path) -> Found:
    digest, owner = sha256_hex(value["digest"]), _party(value["owner"])
    receivers = tuple(_party(each) for each in value["receivers"])
    if path.name != f"{digest}.{owner}" or path.lstat().st_size != value["size_bytes"]:
        raise KeyError(path.name)
    return Found(digest, owner, int(value["size_bytes"]), receivers, path)


def _party(value: str) -> str:
    return value if value == COORDINATOR else str(org_id(value))
