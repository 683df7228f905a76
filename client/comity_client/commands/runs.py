"""`comity runs list|watch|result`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table

if TYPE_CHECKING:
    from comity_client.documents import RunView
    from comity_client.sdk import Node

Name = Annotated[str, typer.Argument(help="The run's id, see `comity runs list`.")]
EXIT_NOT_DONE = 1


def register(app: typer.Typer) -> None:
    """Add the group `runs`."""
    runs = typer.Typer(no_args_is_help=True, help="Runs of agreements: list them, watch them, fetch results.")
    runs.command("list")(list_runs)
    runs.command("watch")(watch)
    runs.command("result")(result)
    app.add_typer(runs, name="runs")


def list_runs(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the runs that this organisation takes part in, newest first.

    \b
    Example:
      comity runs list --json
    """
    from comity_client import where

    with where.node(home) as node:
        found = node.runs()
    if as_json:
        print_json(found)
        return
    rows = [
        (each["run"], each.get("state"), each.get("lead"), ", ".join(each.get("parties", [])), each.get("prepared_at"))
        for each in found
    ]
    print_table(("run", "state", "lead", "parties", "since"), rows, empty="no runs yet")


def watch(
    run: Name,
    after: Annotated[int, typer.Option(min=0, help="Only events behind this number.")] = 0,
    home: Home = DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, an event each.")] = False,
) -> None:
    """Watch a run: every round with its metrics, to the end.

    \b
    Examples:
      comity runs watch RUN
      comity runs watch RUN --json --after 20
    """
    from comity_client import where

    with where.node(home) as node:
        if as_json:
            for event in node.events(run, after):
                print_json(event)
            final = node.run(run)
        else:
            final = watch_run(node, run, typer.echo, after)
            typer.echo(f"{run}: {str(final.get('state', 'unknown')).lower()}")
    if str(final.get("state", "")).upper() != "COMPLETED":
        raise typer.Exit(EXIT_NOT_DONE)


def result(
    run: Name,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the model.")] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
    round_number: Annotated[
        int | None,
        typer.Option("--round", min=1, help="The mean of this round, where you open sums beside the lead."),
    ] = None,
) -> None:
    """Fetch a run's result, a model as a NumPy archive; of an intersection or a statistic, show what it found.

    \b
    Examples:
      comity runs result RUN --output model.npz
      comity runs result RUN --round 3 --output round-3.npz
    """
    from comity_client import where
    from comity_client.commands.aggregate import answer_lines, answer_of
    from comity_client.commands.intersect import found, found_words

    target = output or Path(f"{run}.npz" if round_number is None else f"{run}-round-{round_number}.npz")
    with where.node(home) as node:
        if round_number is not None:
            _show_file(run, target, node.fetch_sum(run, round_number, target), as_json)
            return
        card = node.card(run)
        common, answer = found(card), answer_of(card)
        size_bytes = 0 if common or answer else node.fetch_result(run, target)
    if answer:
        if as_json:
            print_json({"run": run, "statistic": answer})
        else:
            typer.echo("\n".join(answer_lines(answer)))
        return
    if common:
        if as_json:
            print_json({"run": run, **common})
        else:
            typer.echo(found_words(run, common))
        return
    _show_file(run, target, size_bytes, as_json)


def _show_file(run: str, target: Path, size_bytes: int, as_json: bool) -> None:
    if as_json:
        print_json({"run": run, "file": str(target), "size_bytes": size_bytes})
    else:
        typer.echo(f"{target}: {size_bytes} bytes")


def watch_run(node: Node, run: str, tell: Callable[[str], Any], after: int = 0) -> RunView:
    """Tell each event of a run as a line; returns the run as it ended. Raises `ComityError`."""
    from comity_client.follow import event_line

    for event in node.events(run, after):
        tell(event_line(cast(dict[str, Any], event)))
    return node.run(run)
