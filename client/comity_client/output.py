"""How commands speak: results on standard output (one JSON value with `--json`), progress on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_HOME = Path.home() / ".comity"
# Where a command finds its node if not in `--home`: the options before the command, or these (`where.py`).
NODE_VARIABLE = "COMITY_NODE"
TOKEN_FILE_VARIABLE = "COMITY_TOKEN_FILE"  # noqa: S105 - a variable's name
CA_VARIABLE = "COMITY_NODE_CA"
Home = Annotated[Path, typer.Option("--home", envvar="COMITY_HOME", help="The node's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, nothing else.")]


def print_json(value: Any) -> None:
    """Print one JSON value on one line."""
    typer.echo(json.dumps(value, sort_keys=True))


def progress_console() -> Console:
    """Return a console on standard error: lines there never disturb a program that reads the result."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def result_console() -> Console:
    """Return a console on standard output; without a terminal its lines are not cut."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows as a table, or a sentence if there are none. Cells are shown as they are, without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    if table.row_count:
        result_console().print(table)
    else:
        typer.echo(empty)


def words(value: Any) -> str:
    """Return a JSON value as a person reads it."""
    if isinstance(value, list):
        return ", ".join(map(words, value))
    if isinstance(value, dict):
        return "; ".join(f"{key} {words(item)}" for key, item in sorted(value.items()))
    return str(value)


def short(digest: str | None) -> str:
    """Return the first characters of a digest: enough to recognise it."""
    return (digest or "")[:12]
