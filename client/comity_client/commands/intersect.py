"""`comity intersect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.commands.train import EXIT_NOT_DONE, follow, read_terms, read_values, seconds, show
from comity_client.output import DEFAULT_HOME, Home, Json

if TYPE_CHECKING:
    from comity_client.documents import IntersectWish

HELP = """Find out how many records two organisations have in common, or which of your own.

Both write their identifiers alike and mask them; the other organisation sees first how many are common, and its policy
decides whether you hear it. With --mode ids you get the numbers of your own records, in a file on your node that never
leaves it; the other organisation never learns which of its records are meant.

\b
Examples:
  comity intersect --with hospital-b --dataset patients.nhs-number --purpose research
  comity intersect --with registry --dataset patients.id --their-dataset deaths.person --purpose research --mode ids
"""


def intersect(
    partner: Annotated[str, typer.Option("--with", help="The other organisation.")],
    dataset: Annotated[str, typer.Option(help="Your dataset and its column of identifiers: DATASET.COLUMN.")],
    purpose: Annotated[str, typer.Option(help="Code of the purpose, such as research; an unknown one lists all.")],
    their_dataset: Annotated[
        str | None, typer.Option(help="The other dataset and its column; by default named like yours.")
    ] = None,
    mode: Annotated[str, typer.Option(help="cardinality: how many; ids: which of your own.")] = "cardinality",
    normalise: Annotated[
        str, typer.Option(help="How both write identifiers first: some of case, nfc, trim, or none.")
    ] = "case,nfc,trim",
    term: Annotated[list[str] | None, typer.Option(help="TERM=VALUE, a further term to ask for; repeat it.")] = None,
    terms: Annotated[Path | None, typer.Option(help="JSON file with further terms.", dir_okay=False)] = None,
    uses: Annotated[int, typer.Option(min=1, help="How many runs to ask for.")] = 1,
    deadline: Annotated[str, typer.Option(help="How long answers are awaited: 90s, 30m, 24h, 7d.")] = "24h",
    reply_timeout: Annotated[str, typer.Option(help="How long one order may take, people included: 30m, 2d.")] = "30m",
    title: Annotated[str, typer.Option(help="What people read; by default the names of both datasets.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to the end, or return at once.")] = True,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    from comity_client import where

    mine, column = named(dataset)
    theirs, their_column = named(their_dataset) if their_dataset is not None else (mine, column)
    deadline_s = seconds(deadline)
    wish: IntersectWish = {"purpose": purpose, "dataset": mine, "column": column, "partner": partner, "mode": mode}
    wish.update({"partner_dataset": theirs, "partner_column": their_column, "uses": uses, "title": title})
    wish["normalise"] = [] if normalise == "none" else normalise.split(",")
    wish["terms"] = ({} if terms is None else read_terms(terms)) | read_values(term or [])
    wish.update({"deadline_s": deadline_s, "reply_timeout_s": seconds(reply_timeout)})
    with where.node(home) as node:
        proposed = node.intersect(wish)
        outcome: dict[str, Any] = {"proposal_id": proposed["proposal_id"], "digest": proposed["digest"]}
        done = follow(node, outcome, deadline_s) if wait else True
        if wait and done:
            outcome.update(found(node.card(outcome["run"])))
    show(outcome, as_json, _words)
    if not done:
        raise typer.Exit(EXIT_NOT_DONE)


intersect.__doc__ = HELP


def named(text: str) -> tuple[str, str]:
    """Return dataset and column of `[ORGANISATION/]DATASET.COLUMN`; the last dot counts. Raises `MALFORMED`."""
    dataset, dot, column = text.rpartition("/")[2].rpartition(".")
    if not dot or not dataset or not column:
        raise ComityError(ErrorCode.MALFORMED, f"a dataset and its column are written DATASET.COLUMN, not {text[:64]}")
    return dataset, column


def found(card: dict[str, Any]) -> dict[str, Any]:
    """Return what a card says an intersection found; empty for the card of anything else."""
    step = card.get("step") or {}
    if step.get("kind") != "intersect":
        return {}
    counts = [each["metrics"]["common"] for each in card.get("metrics", []) if "common" in each["metrics"]]
    return {"common": counts[0] if counts else None, "mode": step.get("mode"), "lead": step.get("lead")}


def found_words(run: str, result: dict[str, Any]) -> str:
    """Return the result of an intersection in words."""
    text = f"{result['common']} identifiers in common"
    if result["mode"] == "ids":
        text += f"\n{result['lead']} finds its records in results/{run}/rows.csv of its node's folder"
    return text


def _words(outcome: dict[str, Any]) -> list[str]:
    if (outcome.get("error") or {}).get("code") == str(ErrorCode.EGRESS_DENIED):
        return ["  a policy kept its answer inside: mostly, because too few identifiers are common"]
    return [found_words(outcome["run"], outcome)] if "common" in outcome and not outcome.get("error") else []
