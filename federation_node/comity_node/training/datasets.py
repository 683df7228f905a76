"""The datasets that this organisation's admin has named, and the copies of granted columns that apps may read.

Rules:
1. An app sees a copy in the run's folder, read-only, that holds the granted columns and nothing else; never the source.
2. The cohort (number of records) is counted by the node while it copies; nobody is asked for it.
3. A source without a column that the agreement names is refused (`DATASET_COLUMNS`); nothing is guessed.
4. The catalogue is one JSON file, written atomically; it names paths and classifications, never credentials: a
   database's URL is read from the environment variable that the entry names.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import MetaData, Table, create_engine, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from comity.wire import ids
from comity.wire.errors import ComityError, ErrorCode
from comity_node.settings import write_private

FORMATS = ("csv", "npz", "sql")
DATASETS_MAX = 1_000
COLUMNS_MAX = 10_000
CATALOGUE_BYTES_MAX = 8 << 20
COPY_BYTES_MAX = 8 << 30
_FETCH_ROWS = 10_000
_FIELD_CHARS_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Dataset:
    """One catalogue entry.

    Args:
        name: how agreements name it.
        format: `csv` (first line names the columns), `npz` (one array per column) or `sql` (one table).
        source: absolute path of the file; for `sql` the name of the environment variable with the SQLAlchemy URL.
        table: for `sql`, the table.
        classification: the organisation's own word, judged by its policy.
        owner: who answers for it inside the organisation.
        columns: all columns of the source, sorted.
        records: number of records when it was added.
    """

    name: str
    format: str
    source: str
    table: str | None
    classification: str
    owner: str
    columns: tuple[str, ...]
    records: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of granted columns: a read-only file, its columns, and how many records it holds."""

    path: Path
    columns: tuple[str, ...]
    cohort: int


class DatasetCatalogue:
    """The catalogue in `<home>/datasets.json`; read anew at each use, so that an admin's change counts at once."""

    def __init__(self, home: Path) -> None:
        self._path = home / "datasets.json"
        self._seen: tuple[tuple[int, int, int], dict[str, Dataset]] | None = None

    def add(
        self,
        name: str,
        source: Path | str,
        *,
        classification: str,
        owner: str = "",
        format: str | None = None,  # noqa: A002 - the word people use
        table: str | None = None,
        replace: bool = False,
    ) -> Dataset:
        """Look at a source, count its records and add it.

        Args:
            name: 1 to 128 letters, digits, dots, underscores, hyphens.
            source: a file, or for `sql` the name of the environment variable that holds the URL.
            classification: the organisation's word, such as `health-pseudonymised`.
            owner: who answers for it.
            format: `csv`, `npz` or `sql`; by default from the file's ending.
            table: for `sql`.
            replace: whether an entry of this name may be replaced.

        Raises:
            ComityError: `MALFORMED`, `CONFLICT`, `DATASET_MISSING`, `UNSUPPORTED`.
        """
        ids.name(name)
        entries = self._read()
        if name in entries and not replace:
            raise ComityError(ErrorCode.CONFLICT, "a dataset of this name is in the catalogue", dataset=name)
        if len(entries) >= DATASETS_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "the catalogue is full", limit=DATASETS_MAX)
        kind = format or Path(source).suffix.lstrip(".").lower()
        if kind not in FORMATS:
            raise ComityError(ErrorCode.UNSUPPORTED, f"a dataset is one of {', '.join(FORMATS)}", dataset=name)
        where = str(source) if kind == "sql" else str(Path(source).expanduser().resolve())
        draft = Dataset(name, kind, where, table, classification, owner, (), 0)
        columns, records = _survey(draft)
        if not columns or len(columns) > COLUMNS_MAX or len(set(columns)) != len(columns):
            raise ComityError(ErrorCode.MALFORMED, "a dataset has columns, each of its own name", dataset=name)
        entry = Dataset(name, kind, where, table, classification, owner, tuple(sorted(columns)), records)
        entries[name] = entry
        self._write(entries)
        return entry

    def remove(self, name: str) -> None:
        """Take a dataset out of the catalogue; the source stays. Raises `DATASET_MISSING`."""
        entries = self._read()
        if entries.pop(name, None) is None:
            raise ComityError(ErrorCode.DATASET_MISSING, dataset=name)
        self._write(entries)

    def list(self) -> list[Dataset]:
        """Return all entries, sorted by name."""
        return [entry for _, entry in sorted(self._read().items())]

    def get(self, name: str) -> Dataset:
        """Return one entry. Raises `DATASET_MISSING`."""
        entry = self._read().get(name)
        if entry is None:
            raise ComityError(ErrorCode.DATASET_MISSING, dataset=ids.name(name))
        return entry

    def describe(self, names: Sequence[str]) -> Sequence[dict[str, Any]]:
        """Return what a policy sees of the named datasets; those that are not in the catalogue are left out."""
        entries = self._read()
        return [
            {
                "name": name,
                "classification": entries[name].classification,
                "records": entries[name].records,
                "columns": list(entries[name].columns),
            }
            for name in names
            if name in entries
        ]

    def describe_all(self) -> Sequence[dict[str, Any]]:
        """Return what a policy sees of every dataset."""
        return self.describe(sorted(self._read()))

    def materialise(self, name: str, columns: Sequence[str], folder: Path) -> Copy:
        """Copy the granted columns of a dataset into `folder`; a copy that is there already is kept.

        Keeping it gives a run one snapshot of the data, also after a restart.

        Raises:
            ComityError: `DATASET_MISSING`, `DATASET_COLUMNS`, `TOO_LARGE`.
        """
        entry = self.get(name)
        wanted = tuple(sorted(columns))
        if not wanted:
            # None granted is not all granted.
            raise ComityError(ErrorCode.DATASET_COLUMNS, "no column was granted", dataset=name)
        missing = sorted(set(wanted) - set(entry.columns))
        if missing:
            raise ComityError(ErrorCode.DATASET_COLUMNS, f"no column {missing[0][:64]}", dataset=name)
        path = folder / f"{name}.{'npz' if entry.format == 'npz' else 'csv'}"
        note = folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(note.read_text())
            if tuple(known["columns"]) == wanted and path.is_file():
                return Copy(path, wanted, int(known["cohort"]))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        cohort = _copy_npz(entry, wanted, path) if entry.format == "npz" else _copy_rows(entry, wanted, path)
        path.chmod(0o400)
        write_private(note, json.dumps({"columns": wanted, "cohort": cohort}).encode())
        return Copy(path, wanted, cohort)

    def _read(self) -> dict[str, Dataset]:
        try:
            stat = self._path.stat()
            mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._seen is not None and self._seen[0] == mark:
                return dict(self._seen[1])
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        if len(data) > CATALOGUE_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "datasets.json", limit_bytes=CATALOGUE_BYTES_MAX)
        try:
            document = json.loads(data)
            entries = [Dataset(**{**each, "columns": tuple(each["columns"])}) for each in document["datasets"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ComityError(ErrorCode.MALFORMED, "datasets.json is not in the expected form") from error
        found = {ids.name(entry.name): entry for entry in entries}
        self._seen = (mark, found)
        return dict(found)

    def _write(self, entries: dict[str, Dataset]) -> None:
        document = {"version": 1, "datasets": [asdict(entry) for _, entry in sorted(entries.items())]}
        write_private(self._path, json.dumps(document, indent=2).encode() + b"\n")


def _survey(entry: Dataset) -> tuple[list[str], int]:
    """Return the columns of a source and how many records it has."""
    if entry.format == "npz":
        with _arrays(entry) as arrays:
            lengths = {len(arrays[key]) if arrays[key].ndim else -1 for key in arrays.files}
            if len(lengths) != 1 or -1 in lengths:
                raise ComityError(ErrorCode.MALFORMED, "the arrays of a dataset have one length", dataset=entry.name)
            return list(arrays.files), lengths.pop()
    if entry.format == "sql":
        with _table(entry) as (connection, table):
            count = connection.execute(select(func.count()).select_from(table)).scalar_one()
            return [column.name for column in table.columns], int(count)
    with _csv(entry) as rows:
        header = next(rows, [])
        return header, sum(1 for row in rows if row)


def _copy_rows(entry: Dataset, columns: Sequence[str], path: Path) -> int:
    """Write the granted columns as CSV and return the number of records."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    cohort = 0
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in _rows(entry, columns):
                writer.writerow(row)
                cohort += 1
                if cohort % _FETCH_ROWS == 0 and file.tell() > COPY_BYTES_MAX:
                    raise ComityError(ErrorCode.TOO_LARGE, "the dataset", limit_bytes=COPY_BYTES_MAX)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return cohort


def _rows(entry: Dataset, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    if entry.format == "sql":
        with _table(entry) as (connection, table):
            query = select(*(table.c[column] for column in columns))
            for row in connection.execution_options(yield_per=_FETCH_ROWS).execute(query):
                yield tuple(row)
        return
    with _csv(entry) as rows:
        header = next(rows, [])
        if set(columns) - set(header):
            raise ComityError(ErrorCode.DATASET_COLUMNS, "the file has lost a column", dataset=entry.name)
        places = [header.index(column) for column in columns]
        for row in rows:
            if row and len(row) != len(header):
                raise ComityError(ErrorCode.DATASET_COLUMNS, "a record has other columns", dataset=entry.name)
            if row:
                yield [row[place] for place in places]


def _copy_npz(entry: Dataset, columns: Sequence[str], path: Path) -> int:
    """Write the granted arrays and return their length."""
    with _arrays(entry) as arrays:
        if set(columns) - set(arrays.files):
            raise ComityError(ErrorCode.DATASET_COLUMNS, "the file has lost a column", dataset=entry.name)
        granted = {column: arrays[column] for column in columns}
    lengths = {len(array) for array in granted.values()}
    if len(lengths) != 1:
        raise ComityError(ErrorCode.DATASET_COLUMNS, "the arrays have several lengths", dataset=entry.name)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        np.savez(beside, allow_pickle=False, **granted)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return lengths.pop()


@contextlib.contextmanager
def _csv(entry: Dataset) -> Iterator[Iterator[list[str]]]:
    """Open a CSV file; what is wrong with it is a refusal, never a traceback."""
    csv.field_size_limit(_FIELD_CHARS_MAX)
    try:
        with Path(entry.source).open(newline="", encoding="utf-8-sig") as file:
            yield csv.reader(file)
    except OSError as error:
        raise ComityError(ErrorCode.DATASET_MISSING, "the file cannot be read", dataset=entry.name) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise ComityError(ErrorCode.MALFORMED, "the file is not CSV in UTF-8", dataset=entry.name) from error


@contextlib.contextmanager
def _arrays(entry: Dataset) -> Iterator[Any]:
    """Open an npz file without unpickling anything."""
    try:
        with np.load(entry.source, allow_pickle=False) as arrays:
            if not hasattr(arrays, "files"):
                raise ComityError(ErrorCode.MALFORMED, "the file is not an npz archive", dataset=entry.name)
            yield arrays
    except OSError as error:
        raise ComityError(ErrorCode.DATASET_MISSING, "the file cannot be read", dataset=entry.name) from error
    except ValueError as error:
        raise ComityError(ErrorCode.MALFORMED, "the file holds more than arrays", dataset=entry.name) from error


@contextlib.contextmanager
def _table(entry: Dataset) -> Iterator[tuple[Any, Table]]:
    """Open the table of a database; the URL comes from the environment and appears in no message."""
    url = os.environ.get(entry.source)
    if not url or not entry.table:
        raise ComityError(ErrorCode.DATASET_MISSING, "no table, or no URL in the environment", dataset=entry.name)
    try:
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table(entry.table):
                    raise ComityError(ErrorCode.DATASET_MISSING, "no such table", dataset=entry.name)
                yield connection, Table(entry.table, MetaData(), autoload_with=connection)
        finally:
            engine.dispose()
    except ImportError as error:
        raise ComityError(
            ErrorCode.UNSUPPORTED, "no driver is installed for this database", dataset=entry.name
        ) from error
    except SQLAlchemyError:
        # No cause is attached: a driver's text may repeat the URL with its password.
        raise ComityError(ErrorCode.DATASET_MISSING, "the database cannot be read", dataset=entry.name) from None
