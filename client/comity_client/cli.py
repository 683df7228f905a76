"""The client's own commands."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the client's commands to `app`."""
    app.command("version")(show_version)


def show_version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print the installed version."""
    found = version("comity")
    typer.echo(json.dumps({"version": found}) if as_json else found)
