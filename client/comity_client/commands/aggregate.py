"""`comity aggregate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from comity.wire.errors import ComityError, ErrorCode
from comity_client.commands.train import EXIT_NOT_DONE, follow, read_terms, read_values, seconds, show
from comity_client.output import DEFAULT_HOME, Home, Json

if TYPE_CHECKING:
    from comity_client.documents import StatisticWish

QUERY_BYTES_MAX = 1 << 16
HELP = """Ask for a statistic over everybody's records; no organisation shows a record, and nobody's code runs.

Each node counts its own records, and under the agreed aggregation nobody sees the numbers of a single organisation. A
number needs its range: values outside are clipped to it. With --epsilon each organisation adds noise of its own, and
the answer says how much lies on it.

\b
Queries:
  count                                     sum(days in 0..365)
  mean(age in 0..120) where smoker = 1      variance(bmi in 10..60 by 0.1)
  median(age in 0..120)                     quantiles(age in 0..120: 0.25, 0.5, 0.75)
  histogram(age: 0, 20, 40, 60, 80, 120)    table(smoker: 0, 1; sex: f, m) where age >= 18

\b
Examples:
  comity aggregate --query 'mean(age in 0..120) where smoker = 1' --dataset patients --purpose research
  comity aggregate --query 'mean(age)' --range age=0..120 --dataset patients --purpose research --epsilon 1
  comity aggregate --query 'count where age >= 65' --dataset patients --purpose statistics
"""


def aggregate(
    query: Annotated[str, typer.Option(help="The statistic, as above; or a JSON query; or @FILE with either.")],
    dataset: Annotated[
        list[str], typer.Option(help="NAME at every organisation, or ORG/NAME for one of them; repeat it.")
    ],
    purpose: Annotated[str, typer.Option(help="Code of the purpose, such as research; an unknown one lists all.")],
    partners: Annotated[
        list[str] | None, typer.Option("--with", help="A required organisation; repeat it. By default all members.")
    ] = None,
    optional: Annotated[list[str] | None, typer.Option(help="An organisation that may stay out; repeat it.")] = None,
    minimum: Annotated[
        int | None, typer.Option(min=1, help="The fewest organisations behind the answer; by default all required.")
    ] = None,
    ranges: Annotated[
        list[str] | None, typer.Option("--range", help="COLUMN=LOW..HIGH, where the query gives no range; repeat it.")
    ] = None,
    epsilon: Annotated[str | None, typer.Option(help="Ask for noise within this privacy budget, such as 1.")] = None,
    delta: Annotated[str, typer.Option(help="The budget's delta.")] = "0.000001",
    rounds: Annotated[int | None, typer.Option(min=1, help="The most refinements of quantiles.")] = None,
    aggregation: Annotated[
        str | None, typer.Option(help="plain, lead-key, masked or threshold; by default the node's setting.")
    ] = None,
    term: Annotated[list[str] | None, typer.Option(help="TERM=VALUE, a further term to ask for; repeat it.")] = None,
    terms: Annotated[Path | None, typer.Option(help="JSON file with further terms.", dir_okay=False)] = None,
    deadline: Annotated[str, typer.Option(help="How long answers are awaited: 90s, 30m, 24h, 7d.")] = "24h",
    reply_timeout: Annotated[str, typer.Option(help="How long one round may take, people included: 30m, 2d.")] = "10m",
    title: Annotated[str, typer.Option(help="What people read; by default the query.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it to the end, or return at once.")] = True,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    from comity_client import where

    deadline_s = seconds(deadline)
    wish: StatisticWish = {"purpose": purpose, "query": read_query(query), "datasets": dataset, "title": title}
    wish.update({"partners": partners or [], "optional": optional or [], "ranges": ranges or []})
    wish["terms"] = ({} if terms is None else read_terms(terms)) | read_values(term or [])
    if epsilon is not None:
        wish["terms"]["privacy"] = {"epsilon": epsilon, "delta": delta}
    wish.update({"deadline_s": deadline_s, "reply_timeout_s": seconds(reply_timeout)})
    given: dict[str, Any] = {"minimum": minimum, "rounds": rounds, "aggregation": aggregation}
    wish.update(cast("StatisticWish", {name: value for name, value in given.items() if value is not None}))
    with where.node(home) as node:
        proposed = node.aggregate(wish)
        outcome: dict[str, Any] = {"proposal_id": proposed["proposal_id"], "digest": proposed["digest"]}
        done = follow(node, outcome, deadline_s) if wait else True
        if wait and done:
            outcome["statistic"] = answer_of(node.card(outcome["run"]))
    show(outcome, as_json, _words)
    if not done:
        raise typer.Exit(EXIT_NOT_DONE)


aggregate.__doc__ = HELP


def read_query(text: str) -> str | dict[str, Any]:
    """Return a query's text, or its JSON form if it starts with a brace; `@FILE` is read. Raises `MALFORMED`."""
    if text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                text = file.read(QUERY_BYTES_MAX + 1)[:QUERY_BYTES_MAX].decode()
        except (OSError, ValueError) as error:
            raise ComityError(ErrorCode.MALFORMED, "--query: the file cannot be read as text") from error
    if not text.lstrip().startswith("{"):
        return text.strip()
    try:
        found: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ComityError(ErrorCode.MALFORMED, "--query: what starts with a brace is JSON, and this is not") from error
    return found


def answer_of(card: dict[str, Any]) -> dict[str, Any] | None:
    """Return a card's statistic, None for the card of anything else."""
    found: dict[str, Any] | None = card.get("statistic")
    return found


def answer_lines(answer: dict[str, Any]) -> list[str]:
    """Return a statistic and what is not exact in it, in words."""
    lines = [answer["query"]]
    if answer["measure"] in ("histogram", "table"):
        lines += _cells(answer)
    elif answer["measure"] == "quantiles":
        lines += [_quantile(each) for each in answer["values"]]
    else:
        value = answer.get("exact", answer["value"])
        shown = "nothing: too little is left under the noise" if value is None else _number(value)
        lines.append(f"  {shown}" + (f" (sample variance {_number(answer['sample'])})" if "sample" in answer else ""))
    behind = f"  {answer['parties']} organisations"
    if answer.get("records") is not None:
        behind += f", {'about ' if answer['privacy'] else ''}{answer['records']} records"
    return [*lines, behind, *_caveats(answer)]


def _caveats(answer: dict[str, Any]) -> list[str]:
    lines = []
    budget = answer["privacy"]
    if budget and answer["noise_std"] is not None:
        what = "counts" if answer["measure"] in ("histogram", "table", "quantiles") else "the value"
        lines.append(f"  noise on {what}: standard deviation {_number(answer['noise_std'])}")
        lines.append(f"  privacy budget of the agreement: epsilon {budget['epsilon']}, delta {budget['delta']}")
    if answer["measure"] in ("histogram", "table") and not budget:
        lines.append(f"  an organisation hides its cells of fewer than {answer['minimum']} records")
    if answer.get("rank_error"):
        lines.append(f"  ranks are right to {answer['rank_error']} records: small groups were averaged")
    if answer["measure"] not in ("count", "table"):
        lines.append(f"  numbers were rounded to {answer['rounded_to']} before they were counted")
    return lines


def _cells(answer: dict[str, Any]) -> list[str]:
    if answer["measure"] == "histogram":
        edges, last = answer["edges"], len(answer["counts"]) - 1
        names = [f"{edges[n]} to {'' if n == last else 'below '}{edges[n + 1]}" for n in range(last + 1)]
        return [f"  {name}: {_count(answer, place)}" for place, name in enumerate(names)]
    rows, columns = answer["rows"], answer["columns"]
    return [
        f"  {rows['column']} {row}, {columns['column']} {column}: {_count(answer, down, across)}"
        for down, row in enumerate(rows["values"])
        for across, column in enumerate(columns["values"])
    ]


def _count(answer: dict[str, Any], *place: int) -> str:
    count, at_least, hidden = answer["counts"], answer["at_least"], answer["hidden_by"]
    for each in place:
        count, at_least, hidden = count[each], at_least[each], hidden[each]
    if hidden:
        return f"at least {at_least}, hidden by {hidden} of {answer['parties']}"
    return f"fewer than {answer['minimum']}" if count is None else str(count)


def _quantile(row: dict[str, Any]) -> str:
    wide = "" if row["low"] == row["high"] else f" (between {_number(row['low'])} and {_number(row['high'])})"
    return f"  {row['p']}: {_number(row['value'])}{wide}"


def _number(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _words(outcome: dict[str, Any]) -> list[str]:
    return answer_lines(outcome["statistic"]) if outcome.get("statistic") else []
