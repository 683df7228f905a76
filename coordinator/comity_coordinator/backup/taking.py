"""Taking a backup while the coordinator runs: tables of one instant, then the payloads in the spool.

Payloads come after the tables: one that a row names and that was fetched meanwhile is missing, and nobody needs it;
a payload whose digest does not hold is left out. Senders keep theirs until they are answered.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from comity.wire.errors import ComityError, ErrorCode
from comity_coordinator import setup
from comity_coordinator.backup import form, store
from comity_coordinator.backup.form import Manifest, NewFile
from comity_coordinator.ledger import store as ledger_store
from comity_coordinator.migrations import schema
from comity_coordinator.settings import CoordinatorSettings

Tell = Callable[[str], None]
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What a backup holds: the manifest, and how large it is."""

    manifest: Manifest
    size_bytes: int


def take(home: Path, target: Path, *, keys: bool, payloads: bool, tell: Tell) -> Taken:
    """Write a backup of the coordinator in `home` to the new folder `target`.

    Args:
        keys: also the private keys, as they are; whoever has them is the coordinator.
        payloads: also what lies in the spool.
        tell: called with a line on each part.

    Raises:
        ComityError: `CONFLICT` if `target` exists; `UNSUPPORTED` for a schema that is not this version's; what the
            settings, keys and database raise.
    """
    settings = CoordinatorSettings.load(home)
    log_keys = setup.log_keys(settings)
    if target.exists():
        raise ComityError(ErrorCode.CONFLICT, "there is a file or folder of this name already")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a backup that was cut off
    partial.mkdir(mode=0o700, parents=True)
    try:
        with NewFile(partial, form.FILES) as listed:
            wrote = _Writing(partial, listed)
            manifest = _tables(settings, wrote, tell)
            wrote.bytes(form.SETTINGS, json.dumps(_portable(settings), indent=2, sort_keys=True).encode())
            wrote.folder(home / "policies", "policies")
            if keys:
                wrote.folder(home / "keys", "keys")
            count = _payloads(home / "spool", wrote, tell) if payloads else 0
        whole = Manifest(**{**manifest, "files": listed.sha256, "keys": keys, "payloads": count})
        said = whole.sign(log_keys, settings.consortium)
        with NewFile(partial, form.MANIFEST) as file:  # the last: without it there is no backup
            file.write(said.to_bytes())
        _sync(partial)
        partial.rename(target)
        _sync(target.parent)
    except BaseException:  # also Ctrl-C leaves nothing that looks like a backup
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Taken(whole, wrote.size_bytes)


class _Writing:
    def __init__(self, folder: Path, listed: NewFile) -> None:
        self.folder_path = folder
        self.size_bytes = 0
        self._listed = listed

    def note(self, file: NewFile) -> None:
        self._listed.write(file.line())
        self.size_bytes += file.size_bytes

    def bytes(self, name: str, data: bytes) -> None:
        with NewFile(self.folder_path, name) as file:
            file.write(data)
        self.note(file)

    def folder(self, source: Path, under: str) -> None:
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_file() and not path.is_symlink():
                self.copy(path, f"{under}/{path.relative_to(source).as_posix()}")

    def copy(self, source: Path, name: str) -> None:
        with source.open("rb") as opened, NewFile(self.folder_path, name) as file:
            for data in _pieces(opened):
                file.write(data)
        self.note(file)


def _tables(settings: CoordinatorSettings, wrote: _Writing, tell: Tell) -> dict[str, Any]:
    counts: dict[str, int] = {}
    with setup.database(settings) as database, store.snapshot(database) as conn:
        standing = schema.standing(conn)
        if standing.needs or standing.unknown:
            raise ComityError(
                ErrorCode.UNSUPPORTED, "another schema than this version's: run `comity coordinator migrate`"
            )
        head = ledger_store.newest_checkpoint(conn)
        for table in store.tables():
            count = 0
            with NewFile(wrote.folder_path, f"tables/{table.name}.jsonl") as file:
                file.write(form.row_line([column.name for column in table.columns]))
                for row in store.rows(conn, table):
                    file.write(form.row_line(row))
                    count += 1
            wrote.note(file)
            counts[str(table.name)] = count  # a plain text: SQLAlchemy has one of its own
            tell(f"table {table.name}: {count} rows")
    return {
        "log_name": settings.log_name,
        "revisions": standing.has,
        "tables": counts,
        "size": head.size if head else 0,
        "root": head.root.hex() if head else "",
        "checkpoint": head.note if head else "",
    }


def _payloads(spool: Path, wrote: _Writing, tell: Tell) -> int:
    """Copy payloads that are whole, each with its record; return how many."""
    count = 0
    for record in sorted(spool.glob("*.json")) if spool.is_dir() else ():
        path = record.with_suffix("")
        try:
            said, source = record.read_bytes(), path.open("rb")
        except FileNotFoundError:
            continue  # fetched by everybody meanwhile
        name = f"spool/{path.name}"
        with source, NewFile(wrote.folder_path, name) as file:
            for data in _pieces(source):
                file.write(data)
        if file.sha256 != path.name.partition(".")[0]:
            (wrote.folder_path / name).unlink()
            continue
        wrote.note(file)
        wrote.bytes(f"spool/{record.name}", said)
        count += 1
    tell(f"payloads: {count}")
    return count


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while data := source.read(_READ_BYTES):  # ends with the file
        yield data


def _portable(settings: CoordinatorSettings) -> dict[str, Any]:
    """Return the settings without the database's place: that is said at the restore, and may hold a secret."""
    values = settings.to_json()
    return {name: value for name, value in values.items() if name not in ("database_url", "database_password_file")}


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
