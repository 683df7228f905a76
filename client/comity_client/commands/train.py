"""`comity train`: propose a training, and follow it to its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.output import DEFAULT_HOME, Home, Json, print_json, progress_console, short

if TYPE_CHECKING:
    from comity_client.documents import News, TrainWish
    from comity_client.sdk import Node

TERMS_BYTES_MAX = 1 << 20
RUN_APPEARS_S = 60.0
_DURATION = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
EXIT_NOT_DONE = 1
HELP = """Propose a training to other organisations, and follow it.

APP is the folder of a Flower app, as `flwr new` makes it. Each organisation's policy answers; once all required ones
agree, the rounds run, and the model is fetched with `comity runs result RUN`. An organisation whose answer is a review
is awaited until its people have decided (`comity review` there). Where people look at orders or results too, give them
time with --reply-timeout.

\b
Examples:
  comity train ./app --purpose research --dataset patients
  comity train ./app --purpose research --dataset patients --with hospital-b --optional hospital-c --rounds 10
  comity train ./app --purpose research --dataset patients --config local-epochs=5 --deadline 48h --no-wait
"""


def train(
    app: Annotated[Path, typer.Argument(help="Folder of a Flower app.", exists=True, file_okay=False)],
    purpose: Annotated[str, typer.Option(help="Code of the purpose, such as research; an unknown one lists all.")],
    dataset: Annotated[str, typer.Option(help="Name of the dataset at every organisation.")],
    partners: Annotated[
        list[str] | None, typer.Option("--with", help="A required organisation; repeat it. By default all members.")
    ] = None,
    optional: Annotated[list[str] | None, typer.Option(help="An organisation that may stay out; repeat it.")] = None,
    minimum: Annotated[int | None, typer.Option(min=1, help="The fewest organisations to train with.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; by default what the app says.")] = None,
    aggregation: Annotated[str | None, typer.Option(help="plain, lead-key, masked, or threshold: the default.")] = None,
    opened_by: Annotated[list[str] | None, typer.Option(help="Who opens rounds' sums beside you; repeat it.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column to ask for; repeat it. By default all of your own dataset of that name."),
    ] = None,
    config: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of the app's run config; repeat it.")] = None,
    terms: Annotated[Path | None, typer.Option(help="JSON file with further terms.", dir_okay=False)] = None,
    accepts: Annotated[
        str | None,
        typer.Option(help="Stricter terms taken unasked: any, none, or within the bounds; by default any."),
    ] = None,
    bound: Annotated[
        list[str] | None, typer.Option(help="TERM=VALUE, the strictest taken unasked; repeat it. Implies within.")
    ] = None,
    person: Annotated[
        list[str] | None,
        typer.Option(help="Who will see the result, for policies that ask; repeat it. By default who is logged in."),
    ] = None,
    deadline: Annotated[str, typer.Option(help="How long answers are awaited: 90s, 30m, 24h, 7d.")] = "24h",
    reply_timeout: Annotated[
        str | None,
        typer.Option(help="How long one order may take, people who look at it included: 30m, 2d; by default 10m."),
    ] = None,
    title: Annotated[str, typer.Option(help="What people read; by default the app's name.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to the end, or return at once.")] = True,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    from comity_client import where
    from comity_client.uploads import app_for

    deadline_s = seconds(deadline)
    wish: TrainWish = {"purpose": purpose, "dataset": dataset, "deadline_s": deadline_s}
    wish.update({"title": title, "partners": partners or [], "optional": optional or [], "columns": column or []})
    wish.update({"run_config": run_config(config or []), "terms": {} if terms is None else read_terms(terms)})
    given: dict[str, Any] = {"persons": person, "minimum": minimum, "rounds": rounds, "aggregation": aggregation}
    given |= {"opened_by": opened_by, "reply_timeout_s": None if reply_timeout is None else seconds(reply_timeout)}
    if accepts is not None or bound:
        given |= {"accepts": accepts or "within", "bounds": read_values(bound or [])}
    wish.update(cast("TrainWish", {name: value for name, value in given.items() if value is not None}))
    with where.node(home) as node:
        wish["app"] = app_for(node, app)
        proposed = node.propose(wish)
        outcome: dict[str, Any] = {"proposal_id": proposed["proposal_id"], "digest": proposed["digest"]}
        done = follow(node, outcome, deadline_s) if wait else True
    show(outcome, as_json, _words)
    if not done:
        raise typer.Exit(EXIT_NOT_DONE)


train.__doc__ = HELP


def follow(node: Node, outcome: dict[str, Any], deadline_s: int) -> bool:
    """Follow a proposal and its run, telling progress; fills `outcome`; True if the run completed."""
    from comity_client.commands.runs import watch_run
    from comity_client.follow import AGREED, ending, negotiated, news_line, run_of

    console = progress_console()
    console.print(f"proposed {outcome['proposal_id']}; every organisation's policy is asked")

    def tell(news: News) -> None:
        console.print(f"  {news_line(news)}", markup=False)

    view = negotiated(node, outcome["proposal_id"], tell, deadline_s + RUN_APPEARS_S)
    news = view["news"]
    assert news is not None, "a negotiation that ended has news"
    outcome["state"] = news["state"]
    if news["state"] != AGREED or news["agreement"] is None:
        outcome["ended"] = news.get("ended")
        outcome["reason"] = ending(news)
        return False
    outcome["agreement"] = news["agreement"]
    console.print(f"agreed: {short(news['agreement'])}")
    run = run_of(node, news["agreement"], RUN_APPEARS_S)
    outcome["run"] = run["run"]
    console.print(f"run {run['run']}, lead {run['lead']}")
    final = watch_run(node, run["run"], lambda line: console.print(f"  {line}", markup=False))
    outcome.update({key: final[key] for key in ("state", "error", "result") if key in final})
    return str(final.get("state", "")).upper() == "COMPLETED"


def seconds(text: str) -> int:
    """Return a duration such as `24h` in seconds. Raises `MALFORMED`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ComityError(ErrorCode.MALFORMED, "a duration is a whole number and s, m, h or d, such as 24h")
    return int(match[1]) * _SECONDS[match[2]]


def run_config(items: list[str]) -> dict[str, bool | int | str]:
    """Return `KEY=VALUE` items as a run config: booleans and whole numbers as such, all else as text."""
    found: dict[str, bool | int | str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ComityError(ErrorCode.MALFORMED, f"--config reads KEY=VALUE, not {item[:64]}")
        if value in {"true", "false"}:
            found[key] = value == "true"
        elif re.fullmatch(r"-?[0-9]{1,15}", value):
            found[key] = int(value)
        else:
            found[key] = value
    return found


def read_values(items: list[str]) -> dict[str, Any]:
    """Return `TERM=VALUE` items as terms: a value is JSON if it can be read as such, else text."""
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key or len(value) > TERMS_BYTES_MAX:
            raise ComityError(ErrorCode.MALFORMED, f"a term is written TERM=VALUE, not {item[:64]}")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


def read_terms(path: Path) -> dict[str, Any]:
    """Return the terms in a JSON file. Raises `MALFORMED`, `TOO_LARGE`."""
    try:
        with path.open("rb") as file:
            data = file.read(TERMS_BYTES_MAX + 1)
        if len(data) > TERMS_BYTES_MAX:
            raise ComityError(ErrorCode.TOO_LARGE, "the file of terms", limit_bytes=TERMS_BYTES_MAX)
        terms = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ComityError(ErrorCode.MALFORMED, "--terms: the file cannot be read as JSON") from error
    if not isinstance(terms, dict):
        raise ComityError(ErrorCode.MALFORMED, '--terms: an object is expected, such as {"min_participants": 3}')
    return terms


def show(outcome: dict[str, Any], as_json: bool, words: Callable[[dict[str, Any]], Iterable[str]]) -> None:
    """Print what came of a proposal; `words` says what people read of a run below its state."""
    if as_json:
        print_json(outcome)
    elif "reason" in outcome:
        typer.echo(f"no agreement, {outcome['reason']}")
    elif "run" not in outcome:
        typer.echo(f"proposed {outcome['proposal_id']}; follow it with: comity status")
    else:
        typer.echo(f"run {outcome['run']}: {str(outcome.get('state', 'open')).lower()}")
        if error := outcome.get("error"):
            typer.echo(f"  {error.get('code')}: {error.get('detail')}")
        for line in words(outcome):
            typer.echo(line)


def _words(outcome: dict[str, Any]) -> list[str]:
    fetch = f"fetch the model with: comity runs result {outcome['run']} --output model.npz"
    return [] if outcome.get("error") else [fetch]
