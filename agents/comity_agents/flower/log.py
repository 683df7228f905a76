"""What an app prints, drained by the node into the owner's log: bounded, so that an app cannot fill the disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_READ_BYTES = 1 << 16


class LogDrain:
    """A pipe that the event loop empties into `path` (0600, appended) up to `bytes_max`; the rest is dropped."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        self._read_fd: int | None = read_fd
        self._write_fd: int | None = write_fd
        self._loop = asyncio.get_running_loop()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left_bytes = max(0, bytes_max - os.fstat(self._file).st_size)
        self._loop.add_reader(read_fd, self._drain)

    @property
    def write_fd(self) -> int:
        """The end that the process inherits as its standard output and error."""
        if self._write_fd is None:
            raise ValueError("the log's write end is closed")
        return self._write_fd

    def started(self) -> None:
        """Close our copy of the write end, once the process has its own."""
        if self._write_fd is not None:
            os.close(self._write_fd)
            self._write_fd = None

    def close(self) -> None:
        """Take what is still in the pipe and close everything."""
        self.started()
        if self._read_fd is not None:
            self._drain()
        self._stop()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _drain(self) -> None:
        """Take one bounded piece; the loop calls again while there is more, so a chatty app cannot hold the loop."""
        if self._read_fd is None:
            return
        try:
            data = os.read(self._read_fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._stop()
            return
        kept = data[: self._left_bytes]
        self._left_bytes -= len(kept)
        if kept:
            os.write(self._file, kept)

    def _stop(self) -> None:
        if self._read_fd is not None:
            self._loop.remove_reader(self._read_fd)
            os.close(self._read_fd)
            self._read_fd = None
