"""`comity proposals list|show|accept|revise` and `comity withdraw`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity_client.output import DEFAULT_HOME, Home, Json, print_json, print_table, words

if TYPE_CHECKING:
    from comity_client.documents import Difference, ProposalView, RevisionWish


def register(app: typer.Typer) -> None:
    """Add the group `proposals`, and `withdraw`."""
    proposals = typer.Typer(no_args_is_help=True, help="Proposals: who answered what, accept, revise.")
    proposals.command("list")(list_proposals)
    proposals.command("show")(show)
    proposals.command("accept")(accept)
    proposals.command("revise")(revise)
    app.add_typer(proposals, name="proposals")
    app.command("withdraw")(withdraw)


def list_proposals(home: Home = DEFAULT_HOME, as_json: Json = False) -> None:
    """List the proposals that this organisation made or was asked, newest first.

    \b
    Example:
      comity proposals list
    """
    from comity_client import where
    from comity_client.follow import movers

    with where.node(home) as node:
        found = node.proposals()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["proposal_id"],
            each["proposer"],
            each["purpose"],
            each["news"]["state"] if each["news"] else "SUBMITTED",
            ", ".join(movers(each["news"])) if each["news"] else "coordinator",
            each["deadline"],
        )
        for each in found
    ]
    print_table(("proposal", "proposer", "purpose", "state", "move", "deadline"), rows, empty="no proposals yet")


def show(
    name: Annotated[str, typer.Argument(help="Proposal id or digest.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Show a proposal: what it asks for, and each organisation's answer with its reasons.

    \b
    Example:
      comity proposals show PROPOSAL
    """
    from comity_client import where

    with where.node(home) as node:
        view = node.proposal(name)
    if as_json:
        print_json(view)
    else:
        _tell(view)


def accept(
    name: Annotated[str, typer.Argument(help="Id of your own proposal.")],
    org: Annotated[str, typer.Argument(help="The organisation whose stricter terms you accept.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Accept an organisation's counter-offer. To refuse it, revise the proposal or withdraw.

    \b
    Example:
      comity proposals accept PROPOSAL hospital-b
    """
    from comity_client import where

    with where.node(home) as node:
        done = node.accept(name, org)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"accepted what {done['org']} asks; the ledger will say so")


def revise(
    name: Annotated[str, typer.Argument(help="Id of your own proposal.")],
    term: Annotated[list[str] | None, typer.Option(help="TERM=VALUE (JSON or text) to ask for; repeat it.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="A term to ask for no more; repeat it.")] = None,
    accepts: Annotated[str | None, typer.Option(help="Stricter terms taken unasked: any, none, within.")] = None,
    bound: Annotated[list[str] | None, typer.Option(help="TERM=VALUE, the strictest taken unasked.")] = None,
    minimum: Annotated[int | None, typer.Option(min=1, help="The fewest organisations.")] = None,
    deadline: Annotated[str, typer.Option(help="How long answers are awaited: 90s, 30m, 24h, 7d.")] = "24h",
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Put a newer revision in the place of your proposal; every organisation answers anew. Agreements are not revised.

    \b
    Examples:
      comity proposals revise PROPOSAL --term rounds=5
      comity proposals revise PROPOSAL --term 'min_cohort={"hospital-b/patients": 50}' --deadline 48h
    """
    from comity_client import where
    from comity_client.commands.train import read_values, seconds

    wish: RevisionWish = {"terms": read_values(term or []), "without": without or [], "deadline_s": seconds(deadline)}
    if accepts is not None or bound:
        wish["accepts"] = accepts or "within"
        wish["bounds"] = read_values(bound or [])
    if minimum is not None:
        wish["minimum"] = minimum
    with where.node(home) as node:
        done = node.revise(name, wish)
    if as_json:
        print_json(done)
    else:
        typer.echo(
            f"{done['proposal_id']} is now revision {done['proposal']['revision']}; follow it with: comity status"
        )


def withdraw(
    name: Annotated[str, typer.Argument(help="Proposal id or agreement digest.")],
    reason: Annotated[str, typer.Option(help="Why; every party reads it.")],
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Withdraw from a proposal or an agreement: running work stops at the next dispatch.

    \b
    Example:
      comity withdraw PROPOSAL --reason "the ethics board asked us to stop"
    """
    from comity_client import where

    with where.node(home) as node:
        done = node.withdraw(name, reason)
    if as_json:
        print_json(done)
    else:
        typer.echo(f"withdrawn from {done['withdrawn']}; the ledger will say so")


def _tell(view: ProposalView) -> None:
    proposal, news = view["proposal"], view["news"]
    typer.echo(f"{view['proposal_id']}, revision {view['revision']}: {view['title']}")
    typer.echo(f"  {view['proposer']} asks for {view['purpose']}, until {view['deadline']}")
    for step in proposal["steps"]:
        for line in step_lines(step):
            typer.echo(line)
    for name, value in sorted(proposal["terms"].items()):
        typer.echo(f"  term {name}: {words(value)}")
    if proposal["accepts"] != "any":
        bounds = "; ".join(f"{name} {words(value)}" for name, value in sorted(proposal["bounds"].items()))
        typer.echo(f"  stricter terms taken unasked: {proposal['accepts']} {bounds}".rstrip())
    typer.echo(f"  state: {news['state'].lower() if news else 'on its way to the coordinator'}")
    if news and news["ended"]:
        ended = news["ended"]
        typer.echo(f"  ended by {ended.get('move') or 'nobody'}: {ended.get('code')}, {ended.get('detail')}")
    ongoing = news is not None and not news["ended"]
    for leg in news["legs"] if news else []:
        move = f", awaited: {leg['move']} until {leg['until']}" if leg["move"] and ongoing else ""
        typer.echo(f"  {leg['org']}: {leg['state'].lower()} since {leg['since']}{move}")
        for reason in leg["reasons"]:
            typer.echo(f"    {reason['rule']}: {reason['message']}")
        _tell_difference(leg.get("difference", []))
    if ongoing and news is not None and news.get("then"):
        typer.echo(f"  then: {news['then']}")
    pending = view.get("pending")
    if pending is not None:
        typer.echo(f"  not judged here yet: {pending['why']}; again at {pending['next_at']}, until {pending['until']}")
    for counter in view.get("counters", []):
        state = f"accepted {counter['accepted_at']}" if counter["accepted_at"] else "yours to accept or to revise"
        typer.echo(f"  counter-offer of {counter['org']}, signed: {state}")
        _tell_difference(counter["difference"])


def step_lines(step: dict[str, Any]) -> list[str]:
    """Return what a step asks for, in words; a kind that this command does not know is shown as it is."""
    if step["kind"] == "train":
        app = step["app"]
        return [
            f"  step {step['id']}: {app['publisher']}/{app['name']} {app['version']}, {step['rounds']} rounds",
            f"    lead {step['lead']}, app digest {app['digest']}",
        ]
    if step["kind"] == "aggregate":
        rounds = f", {step['rounds']} rounds" if step["rounds"] > 1 else ""
        return [f"  step {step['id']}: {query_words(step['query'])}{rounds}", f"    lead {step['lead']}, no app runs"]
    if step["kind"] == "intersect":
        keys = " with ".join(f"{each['org']}/{each['dataset']} by {each['column']}" for each in step["keys"])
        return [
            f"  step {step['id']}: intersection ({step['mode']}) of {keys}",
            f"    {step['lead']} receives the result, {step['partner']} helps; no app runs",
        ]
    return [f"  step {step['id']} of kind {step['kind']}: {words(step)}"]


def query_words(query: dict[str, Any]) -> str:
    """Return a statistic as a person would type it."""
    columns = []
    for each in query["columns"]:
        name = f"{each['name']} in {each['low']}..{each['high']}" if "low" in each else each["name"]
        columns.append(name + (f": {', '.join(each['values'])}" if "values" in each else ""))
    lists = ", ".join([*query["edges"], *query["probabilities"]])
    head = f"{query['measure']}({'; '.join(columns)}{': ' + lists if lists else ''})"
    tests = [f"{each['column']} {each['op']} {each['value']}" for each in query["where"]]
    return head + (f" where {' and '.join(tests)}" if tests else "")


def _tell_difference(rows: list[Difference]) -> None:
    for row in rows:
        asked = "nothing" if row["asked"] is None else words(row["asked"])
        typer.echo(f"    {row['field']}: asked {asked}, offered {words(row['offered'])}")
