"""The `comity` command: assembled from what each package registers in the entry-point group `comity.commands`.

Errors of the catalogue end with status 2: the sentence, whose move it is, and the detail; with `--json`, as JSON.

Starting is most of what a short command costs. So a command imports what it needs inside itself, only the command that
was typed is made ready, and httpx is kept from importing the libraries of a command line of its own.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from comity.wire.catalog import row
from comity.wire.errors import ComityError
from comity.wire.remedies import remedy
from comity_client.output import CA_VARIABLE, NODE_VARIABLE, TOKEN_FILE_VARIABLE

GROUP = "comity.commands"
EXIT_REFUSED = 2
HELP_WIDTH_CHARS = 110
# Plain help keeps the lines of examples, so that they can be copied, and starts quicker.
typer.core.HAS_RICH = False


def build_app() -> typer.Typer:
    """Return the command with every package's subcommands."""
    app = typer.Typer(
        name="comity",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"max_content_width": HELP_WIDTH_CHARS},
        help="Work together across organisations without trust in the middle.",
    )
    app.callback()(where_to)
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        point.load()(app)
    _merge_groups(app)
    return app


def where_to(
    node: Annotated[str, typer.Option(envvar=NODE_VARIABLE, help="A node that listens for people, by URL.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar=TOKEN_FILE_VARIABLE, help="Act as the person whose token is in this file.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar=CA_VARIABLE, help="What the certificate of --node is checked against.")
    ] = None,
) -> None:
    """Work together across organisations without trust in the middle."""
    for name, value in ((NODE_VARIABLE, node), (TOKEN_FILE_VARIABLE, token_file), (CA_VARIABLE, ca)):
        if value:
            os.environ[name] = str(value)


def main() -> None:
    """Run the command line and end the process."""
    # Found missing, it is left out by httpx: 50 ms of colours and lexers that nothing here uses.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    app = build_app()
    _keep_only(app, sys.argv[1] if len(sys.argv) > 1 else "")
    try:
        app()
    except ComityError as error:
        _report(error)
        sys.exit(EXIT_REFUSED)


def _keep_only(app: typer.Typer, name: str) -> None:
    """Leave out every command but `name`, so that only its options are made; everything stays if there is none."""
    groups = [info for info in app.registered_groups if info.name == name]
    commands = [info for info in app.registered_commands if info.name == name]
    if groups or commands:
        app.registered_groups, app.registered_commands = groups, commands


def _merge_groups(app: typer.Typer) -> None:
    """Let several packages add to one group: `ledger verify` and `ledger export` come from two of them."""
    kept: dict[str, typer.Typer] = {}
    for info in list(app.registered_groups):
        group, name = info.typer_instance, str(info.name)
        if group is None or name not in kept:
            if group is not None:
                kept[name] = group
            continue
        kept[name].registered_commands.extend(group.registered_commands)
        kept[name].registered_groups.extend(group.registered_groups)
        app.registered_groups.remove(info)


def _report(error: ComityError) -> None:
    found = row(error.code)
    if "--json" in sys.argv:
        document = {**error.to_json(), "sentence": found.sentence, "move": str(found.move), "retry": found.retry}
        document["remedy"] = remedy(error.code)
        typer.echo(json.dumps({"error": document}, sort_keys=True), err=False)
        return
    typer.echo(f"{error.code}: {found.sentence}", err=True)
    if error.detail:
        typer.echo(f"  {error.detail}", err=True)
    for key, value in sorted(error.facts.items()):
        typer.echo(f"  {key}: {value}", err=True)
    typer.echo(f"  Next move: {found.move}. {remedy(error.code)}", err=True)
