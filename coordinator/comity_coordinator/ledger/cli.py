"""`comity coordinator ledger …`: export the log and check every invariant, with the coordinator running or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial as partial_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from comity_coordinator.db import Database
    from comity_coordinator.ledger.service import Ledger

Home = Annotated[Path, typer.Argument(help="The coordinator's folder.", envvar="COMITY_COORDINATOR_HOME")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

group = typer.Typer(no_args_is_help=True, help="The shared ledger, as this coordinator keeps it.")


@group.command("export")
def export(
    home: Home, file: Annotated[Path, typer.Argument(help="Where to write it.")], as_json: AsJson = False
) -> None:
    """Write the log of the newest checkpoint to FILE, for `comity ledger verify`.

    \b
    Example:
      comity coordinator ledger export /srv/comity ledger.jsonl
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with _opened(home) as (database, ledger, _), partial.open("wb") as target:
            entries = _write(database, ledger, target)
            target.flush()
            os.fsync(target.fileno())
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    typer.echo(json.dumps({"entries": entries, "file": str(file)}) if as_json else f"{entries} entries in {file}.")


@group.command("fsck")
def fsck(home: Home, as_json: AsJson = False) -> None:
    """Check every invariant of the stored state; exit status 1 if one does not hold. A writer waits meanwhile.

    \b
    Example:
      comity coordinator ledger fsck /srv/comity
    """
    from comity_coordinator.fsck import check

    with _opened(home) as (database, ledger, log_key):
        found = database.transact(lambda conn: check(conn, ledger, log_key))
    if as_json:
        typer.echo(json.dumps({"findings": found}))
    else:
        typer.echo("\n".join(found) if found else "Every invariant holds.")
    if found:
        raise typer.Exit(1)


def _write(database: Database, ledger: Ledger, target: BinaryIO) -> int:
    """One transaction a page: a running coordinator goes on meanwhile, and entries never change."""
    size, note, final = database.transact(ledger.whole)
    target.write(ledger.export_header(size, note, final))
    index = 0
    while index < size:  # bounded: each turn yields at least one entry
        lines = database.transact(partial_of(ledger.export_page, start=index, size=size))
        target.write(b"".join(lines))
        index += len(lines)
    return size


@contextmanager
def _opened(home: Path) -> Iterator[tuple[Database, Ledger, bytes]]:
    from comity_coordinator import setup
    from comity_coordinator.ledger.service import Ledger
    from comity_coordinator.settings import CoordinatorSettings

    settings = CoordinatorSettings.load(home)
    keys = setup.log_keys(settings)
    with setup.database(settings) as database:
        # Nothing is appended here: no note is signed and no proof leaves.
        ledger = Ledger(settings.consortium, settings.log_name, _refuse_to_sign, _NoOutbox())
        yield database, ledger, keys.public.statement


def _refuse_to_sign(_text: str) -> str:
    raise AssertionError("this command only reads")


class _NoOutbox:
    """Sends nothing: this command only reads."""

    def register(self, kind: str, handler: object) -> None:
        """Refuse."""
        raise AssertionError(f"this command does not handle {kind}: {handler!r}")

    def enqueue(self, conn: object, org: str, kind: str, body: dict[str, object], *, run: str = "") -> None:
        """Refuse."""
        raise AssertionError(f"this command sends no {kind} to {org}: {run} {len(body)} {conn!r}")

    def enqueue_all(self, conn: object, orgs: object, kind: str, body: dict[str, object]) -> None:
        """Refuse."""
        raise AssertionError(f"this command sends no {kind} to {orgs!r}: {len(body)} {conn!r}")
