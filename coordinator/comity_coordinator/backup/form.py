"""What a backup looks like: a folder of files (0600) under a manifest that the log's key has signed.

Rules
1. `manifest.json` is a statement of the coordinator (`KIND`). It names the schema, the rows of each table, the ledger's
   size, root and newest checkpoint, and the digest of `files.jsonl`, which names every other file with its digest.
2. Nothing in a backup is used before all of it was compared with the manifest, and nothing else may lie in the folder.
3. `tables/NAME.jsonl`: the columns' names, then a row a line in the order of the primary key; bytes are base64. So it
   belongs to no database: what came from SQLite goes into PostgreSQL, and the other way round.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy.sql.schema import Table
from sqlalchemy.types import LargeBinary

from comity.wire import canonical
from comity.wire.errors import ComityError, ErrorCode
from comity.wire.ids import COORDINATOR
from comity_crypto.keys import OrgKeys
from comity_crypto.statements import STATEMENT_BYTES_MAX, Statement, sign_statement, verify_statement

KIND = "coordinator-backup"
FORMAT = "comity-coordinator-backup/1"
MANIFEST, FILES, SETTINGS = "manifest.json", "files.jsonl", "coordinator.json"
FILES_MAX = 100_000
LINE_BYTES_MAX = 8 << 20
_READ_BYTES = 1 << 20
# What a backup may hold: a name outside these is not written anywhere.
_NAMES = re.compile(
    r"coordinator\.json"
    r"|(tables|spool|policies)/[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
    r"|keys/(authority/)?(tls-[0-9a-f]{32}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
)
_BODY: dict[str, type] = {
    **dict.fromkeys(("format", "log_name", "root", "checkpoint", "files"), str),
    "revisions": list,
    "tables": dict,
    "size": int,
    "keys": bool,
    "payloads": int,
}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `tables` maps names to counts of rows; `root` is hexadecimal, `files` the digest of
    the list of files; `size` 0 is an empty ledger, with an empty `root` and `checkpoint`.
    """

    log_name: str
    revisions: tuple[str, ...]
    tables: Mapping[str, int]
    size: int
    root: str
    checkpoint: str
    files: str
    keys: bool
    payloads: int

    def sign(self, keys: OrgKeys, consortium: str) -> Statement:
        """Return the manifest as the coordinator's statement."""
        body = {
            "format": FORMAT,
            "log_name": self.log_name,
            "revisions": list(self.revisions),
            "tables": dict(self.tables),
            "size": self.size,
            "root": self.root,
            "checkpoint": self.checkpoint,
            "files": self.files,
            "keys": self.keys,
            "payloads": self.payloads,
        }
        return sign_statement(keys, kind=KIND, consortium=consortium, issuer=COORDINATOR, body=body)

    @classmethod
    def read(cls, said: Statement) -> Manifest:
        """Read a manifest; its signature is `verify`'s. Raises `BACKUP_INVALID`, `UNSUPPORTED`."""
        body = said.body
        if said.kind != KIND:
            raise ComityError(ErrorCode.BACKUP_INVALID, "this is no backup of a coordinator")
        if body.get("format") != FORMAT:
            raise ComityError(ErrorCode.UNSUPPORTED, "this is a backup of another format")
        if body.keys() != _BODY.keys() or any(type(body[name]) is not kind for name, kind in _BODY.items()):
            raise _damaged(MANIFEST)
        values = {name: value for name, value in body.items() if name != "format"}
        return cls(**{**values, "revisions": tuple(str(each) for each in body["revisions"])})


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup whose every file has the digest that the manifest names. `files` maps names to sizes in bytes."""

    folder: Path
    said: Statement
    manifest: Manifest
    files: Mapping[str, int]

    def verify(self, log_key: bytes) -> None:
        """Check that the log's key signed it. Raises `SIGNATURE_INVALID`."""
        verify_statement(self.said, log_key, kind=KIND)

    def rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """Yield a table's rows as values by column. Raises `BACKUP_INVALID`."""
        path = self.folder / "tables" / f"{table.name}.jsonl"
        with path.open("rb") as lines:
            names = json.loads(lines.readline(LINE_BYTES_MAX))
            if not set(names) <= set(table.columns.keys()):
                raise ComityError(ErrorCode.BACKUP_INVALID, f"the backup's table {table.name} has unknown columns")
            blobs = {name for name in names if isinstance(table.columns[name].type, LargeBinary)}
            while line := lines.readline(LINE_BYTES_MAX):  # ends with the file
                row = dict(zip(names, json.loads(line), strict=True))
                yield {name: base64.b64decode(v) if name in blobs and v is not None else v for name, v in row.items()}


class NewFile:
    """A file of a backup being written: 0600, counted and hashed, on the disk when closed."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / name
        make_folders(folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb")
        self._hash = hashlib.sha256()
        self.name = name
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    @property
    def sha256(self) -> str:
        """The digest of what was written, hexadecimal."""
        return self._hash.hexdigest()

    def line(self) -> bytes:
        """Return what `files.jsonl` says of it."""
        return canonical.canonical({"file": self.name, "size_bytes": self.size_bytes, "sha256": self.sha256}) + b"\n"


def make_folders(root: Path, name: str) -> None:
    """Make the folders of `name` below `root`, each 0700 whatever the process's umask is."""
    for parent in reversed(Path(name).parents):
        (root / parent).mkdir(mode=0o700, parents=True, exist_ok=True)


def row_line(values: list[Any]) -> bytes:
    """Return a row's line."""
    spelt = [base64.b64encode(bytes(v)).decode() if isinstance(v, bytes | memoryview) else v for v in values]
    return json.dumps(spelt, separators=(",", ":")).encode() + b"\n"


def open_backup(folder: Path) -> Backup:
    """Read a backup and compare every file with its digest.

    Raises:
        ComityError: `NOT_FOUND` if nothing is there; `BACKUP_INVALID` if it is no backup, or naming the file that is
            damaged, missing or too many; `UNSUPPORTED` for another format.
    """
    if not folder.exists():
        raise ComityError(ErrorCode.NOT_FOUND, "there is no backup of this name")
    try:
        with (folder / MANIFEST).open("rb") as file:
            data = file.read(STATEMENT_BYTES_MAX + 1)
    except OSError as error:
        raise ComityError(ErrorCode.BACKUP_INVALID, "this is no folder with a whole backup") from error
    try:
        said = Statement.from_bytes(data)
    except ComityError as error:
        raise _damaged(MANIFEST) from error
    manifest = Manifest.read(said)
    if _digest(folder, FILES)[0] != manifest.files:
        raise _damaged(FILES)
    wanted: dict[str, int] = {}
    with (folder / FILES).open("rb") as lines:
        for line in lines:
            name, sha256, size_bytes = _entry(line)
            if not _NAMES.fullmatch(name) or len(wanted) >= FILES_MAX:
                raise ComityError(ErrorCode.BACKUP_INVALID, "a backup has no such file", file=name[:200])
            if _digest(folder, name) != (sha256, size_bytes):
                raise _damaged(name)
            wanted[name] = size_bytes
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if strays := sorted(found - set(wanted) - {MANIFEST, FILES}):
        raise ComityError(
            ErrorCode.BACKUP_INVALID, "the folder holds a file that is not of this backup", file=strays[0][:200]
        )
    return Backup(folder, said, manifest, wanted)


def _entry(line: bytes) -> tuple[str, str, int]:
    try:
        entry = canonical.parse(line.rstrip(b"\n"), max_bytes=4096)
        return str(entry["file"]), str(entry["sha256"]), int(entry["size_bytes"])
    except (ComityError, KeyError, TypeError, ValueError) as error:
        raise _damaged(FILES) from error


def _digest(folder: Path, name: str) -> tuple[str, int]:
    hasher, size_bytes = hashlib.sha256(), 0
    try:
        fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(fd, "rb") as file:
            while data := file.read(_READ_BYTES):  # ends with the file
                hasher.update(data)
                size_bytes += len(data)
    except OSError as error:
        raise _damaged(name) from error
    return hasher.hexdigest(), size_bytes


def _damaged(name: str) -> ComityError:
    return ComityError(ErrorCode.BACKUP_INVALID, "the backup is damaged; nothing was restored", file=name)
