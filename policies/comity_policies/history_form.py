"""Obligation 1 of `history.py`, the form of an export; and how a failed obligation is named.

An export is JSON lines: a header, then one entry a line, each flat and of bounded length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comity.wire import canonical, ids
from comity.wire.errors import ComityError, ErrorCode

FORMAT = "comity-ledger-export/1"
LINE_BYTES_MAX = 2 << 20
ENTRIES_MAX = 10_000_000
BRACKETS_MAX = 64


class Obligation:
    """Names obligation and entry in whatever is raised inside: a judge of history must not crash on it."""

    __slots__ = ("_index", "_number")

    def __init__(self, number: int, index: int) -> None:
        self._number = number
        self._index = index

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, ComityError):
            detail = f"obligation {self._number}: {error.detail or error.code}"
            raise ComityError(
                ErrorCode.LEDGER_INVALID, detail, obligation=self._number, index=self._index, cause=str(error.code)
            ) from error
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError | RecursionError):
            detail = f"obligation {self._number}: the entry is not in the agreed form"
            raise ComityError(ErrorCode.LEDGER_INVALID, detail, obligation=self._number, index=self._index) from error


def lines(stream: Any) -> Iterator[bytes]:
    """Yield the lines of an export, cut where they are too long."""
    for _ in range(ENTRIES_MAX + 1):
        line = stream.readline(LINE_BYTES_MAX + 1)
        if not line:
            return
        yield line


def read_line(line: bytes, names: frozenset[str], optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the object that a line holds, with the fields `names` and perhaps `optional`. Raises `LEDGER_INVALID`."""
    if len(line) > LINE_BYTES_MAX or not line.endswith(b"\n"):
        raise ComityError(ErrorCode.LEDGER_INVALID, "a line is too long or cut short")
    # Lines are flat; refusing nesting before parsing does not depend on the parser's recursion limit.
    if line.count(b"[") + line.count(b"{") > BRACKETS_MAX:
        raise ComityError(ErrorCode.LEDGER_INVALID, "a line is nested")
    value = canonical.read(line, max_bytes=LINE_BYTES_MAX)
    if not isinstance(value, dict) or not names <= value.keys() <= names | optional:
        raise ComityError(ErrorCode.LEDGER_INVALID, f"a line has exactly {', '.join(sorted(names))}")
    return value


def read_header(line: bytes) -> tuple[str, int, str, str]:
    """Return consortium, size, checkpoint and final note of an export. Raises `LEDGER_INVALID`."""
    header = read_line(line, frozenset({"format", "consortium", "size", "checkpoint"}), frozenset({"final"}))
    size = header["size"]
    if header["format"] != FORMAT or type(size) is not int or not 1 <= size <= ENTRIES_MAX:
        raise ComityError(ErrorCode.LEDGER_INVALID, f"the export is not of the form {FORMAT}")
    return ids.name(header["consortium"]), size, str(header["checkpoint"]), str(header.get("final", ""))
